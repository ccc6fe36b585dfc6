"""FLUX 3 against diffusers' own forward pass: there are no figures of ComfyUI for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from loraloom.errors import InputError
from loraloom.folders import ModelFolders
from loraloom.models.checkpoint import open_diffusion_model, open_text_encoders
from loraloom.models.families.flux3.network import following, positions
from loraloom.models.residency.memory import Memory
from loraloom.models.text.encode import encode_prompt
from loraloom.sampling.types import Cond, SampleContext
from loraloom.session import Session
from tests.families.autoencoders import write_flux2_vae
from tests.families.bench import Shelf, api_node
from tests.narrow_models import Weights, write_qwen3vl_4b

WIDTH, HEAD, CHANNELS, TAPS = 128, 64, 128, 8
INNER = 3 * WIDTH


def network(tag: str, *, distilled: bool = False) -> Weights:
    made = Weights(tag)

    def linear(name: str, inputs: int, outputs: int, gain: float = 1.0) -> None:
        made.linear(name, inputs, outputs, gain, bias=False)

    linear("txt_in", TAPS * 64, WIDTH, 0.5)
    linear("final_layer.image.linear", WIDTH, CHANNELS)
    linear("final_layer.image.adaLN_modulation.1", WIDTH, 2 * WIDTH, 0.5)
    for name in ("time_in", "ref_time_in") if distilled else ("time_in",):
        linear(f"{name}.in_layer", 256, WIDTH, 1.4)
        linear(f"{name}.out_layer", WIDTH, WIDTH)
    groups = ["txt_mode_blocks"]
    for kind in ("image", "image_cond", "txt"):
        if kind != "txt":
            linear(f"emb_in.{kind}", CHANNELS, WIDTH)
            groups.append(f"content_mode_blocks.{kind}")
        for where in ("early", "single"):
            linear(f"{where}_stream_modulations.{kind}.lin", WIDTH, 3 * WIDTH, 0.7)
    for start in [f"{group}.{block}." for group in (*groups, "single_blocks") for block in range(2)]:
        for part in ("q_proj", "k_proj", "v_proj", "attn_out"):
            linear(start + part, WIDTH, WIDTH)
        linear(f"{start}mlp_in", WIDTH, 2 * INNER)
        linear(f"{start}mlp_out", INNER, WIDTH)
        for part in ("query_norm", "key_norm"):
            made.put(f"{start}norm.{part}.scale", (HEAD,), 0.1, 1.2)
    return made


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


X, TEXT, TIME = noise(2, CHANNELS, 4, 6), noise(2, 80, TAPS * 64), torch.tensor([0.75, 0.5])
REFERENCES = (noise(2, CHANNELS, 3, 4), noise(2, CHANNELS, 5, 2))


def grid(rows: int, columns: int, last: float) -> Tensor:
    return torch.tensor([[0, row / 2, column / 2, last] for row in range(rows) for column in range(columns)])


def tokens(picture: Tensor) -> Tensor:
    return picture.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("references", [(), REFERENCES])
def test_it_computes_what_diffusers_does(
    tmp_path: Path, distilled: bool, references: tuple[Tensor, ...]
) -> None:
    model = open_diffusion_model(network("flux3", distilled=distilled).write(tmp_path / "flux3.safetensors"))
    memory = Memory("cpu", "fp32")
    found = memory.network(model)
    levels = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    cond = Cond(TEXT, options={"reference_latents": references})
    given = found.inputs(cond, SampleContext(noise=X, latent=X, sigmas=levels))
    if distilled:
        given = given.mapped(lambda tensor: tensor.expand(2, *tensor.shape[1:]))
    output = found(X, TIME, given)
    words = torch.zeros(80, 4)
    words[:, 3] = torch.arange(80)
    shown: dict[str, Any] = {}
    if references:
        shown["image_cond_hidden_states"] = torch.cat([tokens(one) for one in references], 1)
        shown["image_cond_ids"] = torch.cat([grid(3, 4, -1), grid(5, 2, -2)])
    if distilled:
        shown["target_timestep"] = torch.tensor([0.5, 0.25])
    (expected,) = cast(Any, memory.resident_module(model))(
        tokens(X), TEXT, TIME, grid(4, 6, 0), words, **shown, return_dict=False
    )
    torch.testing.assert_close(tokens(output), expected, rtol=1e-4, atol=1e-4)


def test_pictures_lie_at_half_steps_and_references_behind() -> None:
    torch.testing.assert_close(positions([noise(1, 1, 3, 4), noise(1, 1, 5, 2)], 1)[-1:], grid(5, 2, -2)[-1:])


def test_the_level_that_a_step_leads_to() -> None:
    levels = torch.tensor([[1.0, 0.6, 0.2, 0.0]]).expand(4, -1)
    found = following(levels, torch.tensor([1.0, 0.6, 0.4, 0.0]))
    assert found.tolist() == pytest.approx([0.6, 0.2, 0.2, 0.0])


def test_a_prompt_fills_windows_of_80_tokens_whose_padding_stands_at_one_place(tmp_path: Path) -> None:
    clip = open_text_encoders((write_qwen3vl_4b(tmp_path / "qwen3vl_4b.safetensors"),), "flux3")
    assert clip.kind == "flux3"
    memory = Memory("cpu", "fp32")
    (cond,), _ = encode_prompt(memory, clip, "a red fox", ModelFolders(()))
    assert cond.context.shape == (1, 80, TAPS * 64) and cond.mask is None
    (longer,), _ = encode_prompt(memory, clip, "fox " * 90, ModelFolders(()))
    assert longer.context.shape[1] == 160
    pads = cond.context[0, 40:]  # all alike: one token, at one place, that sees the same words
    torch.testing.assert_close(pads, pads[:1].expand_as(pads), rtol=1e-3, atol=1e-3)


def test_a_workflow_draws(session: Session, shelf: Shelf) -> None:
    names = {
        "unet": shelf.put("diffusion_models/flux3.safetensors", network("flux3", distilled=True).write),
        "clip": shelf.put("text_encoders/qwen3vl_4b.safetensors", write_qwen3vl_4b),
        "vae": shelf.put("vae/write_flux2_vae.safetensors", write_flux2_vae),
    }
    graph = {
        "unet": api_node("UNETLoader", unet_name=names["unet"], weight_dtype="default"),
        "clip": api_node("CLIPLoader", clip_name=names["clip"], type="flux3"),
        "vae": api_node("VAELoader", vae_name=names["vae"]),
        "latent": api_node("EmptyFlux2LatentImage", width=64, height=96, batch_size=1),
        "words": api_node("CLIPTextEncode", clip=["clip", 0], text="a red fox"),
        "sample": api_node(
            "KSampler",
            model=["unet", 0], positive=["words", 0], negative=["words", 0], latent_image=["latent", 0],
            seed=1, steps=2, cfg=1.0, sampler_name="er_sde", scheduler="simple", denoise=1.0,
        ),
        "decode": api_node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": api_node("SaveImage", images=["decode", 0], filename_prefix="flux3"),
    }  # fmt: skip
    (picture,) = session.run(graph).images
    assert picture.size == (64, 96)


def test_a_prompt_of_another_encoder_is_refused(tmp_path: Path) -> None:
    model = open_diffusion_model(network("flux3").write(tmp_path / "flux3.safetensors"))
    context = SampleContext(noise=X, latent=X)
    with pytest.raises(InputError, match="with the type flux3"):
        Memory("cpu", "fp32").network(model).inputs(Cond(noise(1, 5, 64)), context)


def test_half_precision_follows_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = open_diffusion_model(network("flux3").write(tmp_path / "flux3.safetensors"))
    context = SampleContext(noise=X, latent=X)
    full, half = (
        found(X, TIME, found.inputs(Cond(TEXT), context))
        for found in (Memory("cpu", dtype).network(model) for dtype in ("fp32", "bf16"))
    )
    assert float((half - full).norm() / full.norm()) < 0.02
    assert not [warning for warning in recwarn if "dtype" in str(warning.message)]
