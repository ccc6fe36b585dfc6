"""Hook nodes: what they say, and that a LoRA of both conditionings equals a LoRA of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.errors import InputError
from loraloom.lora.place import NO_NETWORK
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.handles import DiffusionModel, TextEncoders
from loraloom.nodes import hook_keyframes, hooked_conditioning, hooks, text
from loraloom.nodes.conditioning import combine
from loraloom.nodes.lora import load_lora
from loraloom.nodes.sampling import ksampler
from loraloom.nodes.sockets import LatentValue
from loraloom.runtime.lora_shelf import LoraShelf
from loraloom.runtime.services import services
from loraloom.sampling.hooks import Hooks, Keyframe, LoraHook
from loraloom.sampling.types import Cond, Conditioning
from tests import tiny_models
from tests.nodes.runs import PlainRun

A, B = (LoraHook("a", 1.0),), (LoraHook("b", 0.5),)
PROMPT: Conditioning = (Cond(torch.zeros(1, 77, 64)),)
OTHER: Conditioning = (Cond(torch.ones(1, 77, 64)),)


@pytest.fixture
def run(tmp_path: Path) -> PlainRun:
    return PlainRun(tmp_path)


@pytest.fixture
def loaded(tmp_path: Path) -> tuple[DiffusionModel, TextEncoders]:
    model, clip, _ = open_checkpoint(tiny_models.write_sd15(tmp_path / "models/checkpoints/tiny.safetensors"))
    assert clip is not None
    path = tmp_path / "models/loras/style.safetensors"
    path.parent.mkdir(parents=True)
    unet = [
        ("lora_unet_" + path.replace(".", "_"), model.weights.shapes[target.weight])
        for path, target in model.lora_aliases().items()
        if ".attn" in path and target.rows is None and len(model.weights.shapes[target.weight]) == 2
    ]
    shape = clip.parts[0].weights.shapes["clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"]
    te = [("lora_te_text_model_encoder_layers_0_mlp_fc1", shape)]
    assert len(unet) > 4
    save_file(tiny_models.lora(unet + te, size=1.0), path)
    return model, clip


def test_hooks_are_gathered_once(run: PlainRun, loaded: object) -> None:
    found = hooks.create_lora(lora_name="style.safetensors", strength_model=0.5, prev_hooks=A, run=run)
    assert found[0] == A[0] and Path(found[1].path).name == "style.safetensors"
    assert found[1].strength_model == 0.5 and found[1].strength_clip == 1.0
    only = hooks.create_lora_model_only(lora_name="style.safetensors", run=run)
    assert only[0].strength_clip == 0.0
    assert hooks.create_lora_model_only(lora_name="style.safetensors", strength_model=0, run=run) == ()
    model = hooks.create_model(ckpt_name="tiny.safetensors", run=run)
    assert model[0].is_model and model[0].strength_clip == 1.0
    assert hooks.create_model_only(ckpt_name="tiny.safetensors", run=run)[0].strength_clip == 0.0
    assert hooks.combine_2(A, B) == A + B
    assert hooks.combine_4(hooks_A=A, hooks_C=B, hooks_D=A) == A + B
    assert hooks.combine_8(hooks_H=B) == B


def test_keyframes_are_ordered_and_interpolated(run: PlainRun) -> None:
    late = hook_keyframes.create_keyframe(0.2, 0.8)
    both = hook_keyframes.create_keyframe(1.0, 0.1, late)
    assert both == (Keyframe(1.0, 0.1), Keyframe(0.2, 0.8))
    assert hook_keyframes.set_keyframes(A, both)[0].keyframes == both
    assert hook_keyframes.set_keyframes(A) == A
    frames = hook_keyframes.interpolate_keyframes(
        strength_start=0.0, strength_end=1.0, interpolation="ease_in", keyframes_count=3, run=run
    )
    assert frames == (Keyframe(0.0, 0.0, 1), Keyframe(0.25, 0.5, 0), Keyframe(1.0, 1.0, 0))


def test_keyframes_of_given_strengths(run: PlainRun) -> None:
    late = (Keyframe(0.1, 0.9),)
    frames = hook_keyframes.keyframes_of_floats(
        floats_strength=[1.0, 0.5, 0], start_percent=0.2, end_percent=0.6, prev_hook_kf=late, run=run
    )
    assert frames == (Keyframe(1.0, 0.2, 1), Keyframe(0.5, 0.4, 0), Keyframe(0.0, 0.6, 0), late[0])
    one = hook_keyframes.keyframes_of_floats(floats_strength=0.3, print_keyframes=True, run=run)
    assert one == (Keyframe(0.3, 0.0, 1),) and run.notes("text") == ["keyframes: 0.3 from 0.0%"]
    for wrong in ("0.5", [1.0, None], []):
        with pytest.raises(InputError, match="list of numbers"):
            hook_keyframes.keyframes_of_floats(floats_strength=wrong, run=run)


@pytest.mark.parametrize(("name", "middle"), [("linear", 0.5), ("ease_out", 0.75), ("ease_in_out", 0.5)])
def test_easings(run: PlainRun, name: str, middle: float) -> None:
    frames = hook_keyframes.interpolate_keyframes(
        strength_start=0.0,
        strength_end=1.0,
        interpolation=name,
        keyframes_count=3,
        print_keyframes=True,
        run=run,
    )
    assert [frame.strength for frame in frames] == pytest.approx([0, middle, 1])
    assert run.notes("text")


def test_properties_of_conditionings() -> None:
    span, before, after = hooked_conditioning.steps_range(0.2, 0.6)
    assert (span, before, after) == ((0.2, 0.6), (0.0, 0.2), (0.6, 1.0))
    (found,) = hooked_conditioning.set_properties(
        cond_NEW=PROMPT,
        strength=0.5,
        set_cond_area="mask bounds",
        mask=torch.ones(8, 8),
        hooks=A,
        timesteps=span,
    )
    assert found.options["mask_strength"] == 0.5 and found.options["set_area_to_bounds"] is True
    assert (found.options["start_percent"], found.options["end_percent"]) == (0.2, 0.6)
    assert found.options["hooks"] == A
    both = hooked_conditioning.set_properties_and_combine(
        cond=PROMPT, cond_NEW=(found,), set_cond_area="default", hooks=A + B
    )
    assert [cond.options.get("hooks") for cond in both] == [None, A + B]
    positive, negative = hooked_conditioning.set_pair_properties(
        positive_NEW=PROMPT, negative_NEW=PROMPT, set_cond_area="default", hooks=B
    )
    assert positive[0].options == negative[0].options == {"hooks": B}


def test_pairs_and_defaults() -> None:
    both = hooked_conditioning.combine_pairs(
        positive_A=PROMPT, negative_A=PROMPT, positive_B=OTHER, negative_B=OTHER
    )
    assert both == (PROMPT + OTHER, PROMPT + OTHER)
    found = hooked_conditioning.set_pair_properties_and_combine(
        positive=PROMPT,
        negative=PROMPT,
        positive_NEW=OTHER,
        negative_NEW=OTHER,
        set_cond_area="default",
        hooks=A,
    )
    assert [[cond.options.get("hooks") for cond in side] for side in found] == [[None, A], [None, A]]
    default = hooked_conditioning.set_default_pair(
        positive=PROMPT, negative=PROMPT, positive_DEFAULT=OTHER, negative_DEFAULT=OTHER, hooks=B
    )
    assert [[dict(cond.options) for cond in side] for side in default] == [
        [{}, {"hooks": B, "default": True}]
    ] * 2
    assert hooked_conditioning.set_default(cond=PROMPT, cond_DEFAULT=OTHER)[1].options == {"default": True}


def sampled(
    model: DiffusionModel, positive: Conditioning, negative: Conditioning, run: PlainRun
) -> torch.Tensor:
    latent: LatentValue = {"samples": torch.zeros(1, 4, 8, 8)}
    found = ksampler(
        model=model,
        seed=5,
        steps=3,
        cfg=3.0,
        sampler_name="euler",
        scheduler="karras",
        positive=positive,
        negative=negative,
        latent_image=latent,
        run=run,
    )
    return found.get("samples", torch.empty(0))


def test_hooks_on_both_sides_equal_a_lora_on_the_model(
    run: PlainRun, loaded: tuple[DiffusionModel, TextEncoders]
) -> None:
    model, clip = loaded
    changed, changed_clip = load_lora(model, clip, "style.safetensors", 0.7, 0.4, run=run)
    prompts = [text.encode_text(words, changed_clip, run=run) for words in ("a rose", "blurry")]
    wanted = sampled(changed, prompts[0], prompts[1], run)

    made = hooks.create_lora(lora_name="style.safetensors", strength_model=0.7, strength_clip=0.4, run=run)
    hooked_clip = hooks.set_clip_hooks(clip=clip, hooks=made, run=run)
    hooked = [text.encode_text(words, hooked_clip, run=run) for words in ("a rose", "blurry")]
    torch.testing.assert_close(hooked[0][0].context, prompts[0][0].context)
    assert hooked[0][0].options["hooks"] == made
    found = sampled(model, hooked[0], hooked[1], run)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))
    plain = sampled(model, prompts[0], prompts[1], run)
    assert not torch.allclose(plain, wanted, atol=0.01 * float(wanted.std()))


def test_text_encoders_may_keep_hooks_to_themselves(
    run: PlainRun, loaded: tuple[DiffusionModel, TextEncoders]
) -> None:
    _, clip = loaded
    keyed: Hooks = hook_keyframes.set_keyframes(
        hooks.create_lora(lora_name="style.safetensors", run=run), (Keyframe(0.5),)
    )
    quiet = hooks.set_clip_hooks(clip=clip, apply_to_conds=False, schedule_clip=True, hooks=keyed, run=run)
    assert "hooks" not in text.encode_text("a rose", quiet, run=run)[0].options
    assert len(quiet.stack) == 1 and "schedule_clip" in run.warnings[0]
    assert hooks.set_clip_hooks(clip=clip, run=run) == clip
    model_hook = hooks.create_model(ckpt_name="tiny.safetensors", run=run)
    same = hooks.set_clip_hooks(clip=clip, hooks=model_hook, run=run)
    torch.testing.assert_close(
        text.encode_text("a rose", same, run=run)[0].context,
        text.encode_text("a rose", clip, run=run)[0].context,
    )


def receipts(run: PlainRun) -> list[dict[str, Any]]:
    return [cast("dict[str, Any]", payload) for payload in run.notes("lora")]


def test_a_hooks_lora_has_a_receipt_where_it_is_applied(
    run: PlainRun, loaded: tuple[DiffusionModel, TextEncoders]
) -> None:
    model, clip = loaded
    load_lora(model, clip, "style.safetensors", 0.5, 0.4, run=run)
    (whole,) = receipts(run)
    run.noted.clear()
    made = hooks.create_lora(lora_name="style.safetensors", strength_model=0.5, strength_clip=0.4, run=run)
    keyed = hook_keyframes.set_keyframes(made, (Keyframe(1.0, 0.0), Keyframe(0.2, 0.5)))
    hooked = hooks.set_clip_hooks(clip=clip, hooks=keyed, run=run)
    (said,) = receipts(run)
    assert (said["name"], said["strength_model"], said["strength_clip"]) == ("style.safetensors", None, 0.4)
    assert said["complete"] and said["warnings"] == () and "schedule" not in said
    assert said["components"] == (whole["components"][1],) and said["effects"] == (whole["effects"][1],)
    assert [entry["reason"] for entry in said["ignored"]] == [NO_NETWORK]
    run.noted.clear()

    prompt = text.encode_text("a rose", hooked, run=run)
    plain = text.encode_text("", clip, run=run)
    sampled(model, combine(prompt, prompt), plain, run)
    (said,) = receipts(run)
    assert (said["name"], said["strength_model"], said["strength_clip"]) == ("style.safetensors", 0.5, None)
    assert said["conditionings"] == ["positive"] and said["matched"] == said["total"] > 4
    assert said["components"] == (whole["components"][0],) and said["effects"] == (whole["effects"][0],)
    assert said["schedule"] == [
        {"start_percent": 0.0, "strength": 0.5},
        {"start_percent": 0.5, "strength": 0.1},
    ]
    run.noted.clear()
    sampled(
        model, prompt, hooks.with_hooks(plain, hooks.create_model(ckpt_name="tiny.safetensors", run=run)), run
    )
    assert [said["conditionings"] for said in receipts(run)] == [["positive"]]
    run.noted.clear()
    sampled(model, prompt, prompt, run)
    assert [said["conditionings"] for said in receipts(run)] == [["positive", "negative"]]


def test_a_hook_of_which_nothing_is_applied_is_an_error(
    run: PlainRun, loaded: tuple[DiffusionModel, TextEncoders], tmp_path: Path
) -> None:
    model, clip = loaded
    shape = clip.parts[0].weights.shapes["clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"]
    te = ("lora_te_text_model_encoder_layers_0_mlp_fc1", shape)
    save_file(tiny_models.lora([te]), tmp_path / "models/loras/words.safetensors")
    made = hooks.create_lora(lora_name="words.safetensors", run=run)
    prompt = hooks.with_hooks(text.encode_text("a rose", clip, run=run), made)
    with pytest.raises(InputError, match="nothing of this LoRA could be applied"):
        sampled(model, prompt, prompt, run)
    assert not receipts(run)
    encoded = text.encode_text("a rose", hooks.set_clip_hooks(clip=clip, hooks=made, run=run), run=run)
    sampled(model, encoded, encoded, run)
    assert [said["strength_clip"] for said in receipts(run)] == [1.0]


def test_text_modules_that_do_not_fit_are_warned_of(
    run: PlainRun, loaded: tuple[DiffusionModel, TextEncoders], tmp_path: Path
) -> None:
    _, clip = loaded
    te = ("lora_te_text_model_encoder_layers_0_mlp_fc1", (7, 9))
    save_file(tiny_models.lora([te]), tmp_path / "models/loras/other.safetensors")
    made = hooks.create_lora(lora_name="other.safetensors", run=run)
    hooks.set_clip_hooks(clip=clip, hooks=made, run=run)
    assert len(run.warnings) == 1 and "other.safetensors: " in run.warnings[0] and not receipts(run)
    strict = replace(services(run), loras=LoraShelf(strict=True))
    run.services = strict
    with pytest.raises(InputError, match=r"other\.safetensors"):
        hooks.set_clip_hooks(clip=clip, hooks=made, run=run)


def test_hooks_of_different_prompts_combine(
    run: PlainRun, loaded: tuple[DiffusionModel, TextEncoders]
) -> None:
    model, clip = loaded
    rose, night = (text.encode_text(words, clip, run=run) for words in ("a rose", "night"))
    made = hooks.create_lora_model_only(lora_name="style.safetensors", strength_model=0.7, run=run)
    positive = combine(rose, hooks.with_hooks(night, made))
    both = sampled(model, positive, night, run)
    neither = sampled(model, combine(rose, night), night, run)
    assert torch.isfinite(both).all()
    assert not torch.allclose(both, neither, atol=0.01 * float(neither.std()))
