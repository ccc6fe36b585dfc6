"""Files → handles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.errors import ModelFileError
from loraloom.models.autoencoders.kl import AUTOENCODER as KL
from loraloom.models.checkpoint import (
    open_autoencoder,
    open_checkpoint,
    open_diffusion_model,
    open_text_encoders,
)
from loraloom.models.residency.memory import Memory
from loraloom.weights.tensor_file import TensorFile
from tests import tiny_models as tiny


@pytest.mark.parametrize(
    ("write", "kind", "roles"),
    [
        (tiny.write_sd15, "sd15", ("clip_l",)),
        (tiny.write_sd20, "sd20", ("clip_h",)),
        (tiny.write_sdxl, "sdxl", ("clip_l", "clip_g")),
        (tiny.write_refiner, "refiner", ("clip_g",)),
    ],
)
def test_a_checkpoint_has_all_its_parts(
    tmp_path: Path, write: tiny.Writer, kind: str, roles: tuple[str, ...]
) -> None:
    model, text, vae = open_checkpoint(write(tmp_path / "m.safetensors"))
    assert text is not None and vae is not None
    assert (text.kind, tuple(part.role for part in text.parts)) == (kind, roles)
    assert vae.latent_channels == model.latent.channels == 4
    for part in text.parts:
        name = f"{part.role}.transformer.text_model.encoder.layers.1.self_attn.k_proj.weight"
        assert part.weights.shapes[name][0] in (64, 128)


def test_handles_are_values(tmp_path: Path) -> None:
    path = tiny.write_sd15(tmp_path / "m.safetensors")
    one, other = open_checkpoint(path), open_checkpoint(path)
    assert one == other and hash(one) == hash(other)
    changed = one[0].with_option("b", 1).with_option("a", 2).with_option("b", 3)
    assert changed != one[0] and changed.option("b") == 3 and changed.options == (("a", 2), ("b", 3))
    tiny.write_sd15(path, seed="other")
    assert open_checkpoint(path)[0] != one[0]


def test_open_clip_is_read_under_hugging_face_names(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "clip_g.safetensors", tiny.open_clip_shapes())
    (part,) = open_text_encoders((path,), "sdxl").parts
    file, start = TensorFile(path), f"{part.role}.transformer."
    assert part.role == "clip_g"
    fused = file.read("transformer.resblocks.1.attn.in_proj_weight")
    layer = f"{start}text_model.encoder.layers.1."
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        found = part.weights.read(f"{layer}self_attn.{name}.weight")
        assert torch.equal(found, fused[128 * number : 128 * (number + 1)])
    projection = part.weights.read(f"{start}text_projection.weight")
    assert torch.equal(projection, file.read("text_projection").T)
    assert torch.equal(
        part.weights.read(f"{layer}mlp.fc1.weight"), file.read("transformer.resblocks.1.mlp.c_fc.weight")
    )


def test_separate_files_in_any_order(tmp_path: Path) -> None:
    clip, t5 = tiny.write_clip_l(tmp_path / "clip.safetensors"), tiny.write_t5(tmp_path / "t5.safetensors")
    for paths in ((clip, t5), (t5, clip)):
        text = open_text_encoders(paths, "flux")
        assert text.kind == "flux"
        assert {part.role for part in text.parts} == {"clip_l", "t5xxl"}


def test_scaled_t5_is_read_scaled(tmp_path: Path) -> None:
    tensors = {name: tiny.tensor(name, shape).half() for name, shape in tiny.t5_shapes().items()}
    name = "encoder.block.0.layer.0.SelfAttention.q"
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.float8_e4m3fn)
    tensors |= {
        f"{name}.scale_weight": torch.tensor([0.5]),
        "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "t5.safetensors")
    text = open_text_encoders((tmp_path / "t5.safetensors",), "flux")
    (part,) = text.parts
    assert set(part.weights.shapes) == {f"t5xxl.transformer.{known}" for known in tiny.t5_shapes()}
    found = part.weights.read(f"t5xxl.transformer.{name}.weight")
    assert torch.equal(found, 0.5 * tensors[f"{name}.weight"].float())
    assert set(Memory("cpu", "fp32").text(text)) == {"t5xxl"}


def test_flux_in_one_file(tmp_path: Path) -> None:
    shapes = (
        tiny.prefixed("model.diffusion_model.", tiny.flux_shapes())
        | tiny.prefixed("text_encoders.clip_l.transformer.", tiny.clip_shapes())
        | tiny.prefixed("text_encoders.t5xxl.transformer.", tiny.t5_shapes())
        | tiny.prefixed("vae.", tiny.autoencoder_shapes(latent=16, quant=False))
    )
    model, text, vae = open_checkpoint(tiny.write(tmp_path / "all.safetensors", shapes))
    assert model.family.name == "flux"
    assert text is not None and {part.role for part in text.parts} == {"clip_l", "t5xxl"}
    assert vae is not None and vae.latent_channels == 16


def test_an_autoencoder_in_diffusers_layout_is_the_same(tmp_path: Path) -> None:
    shapes = tiny.autoencoder_shapes()
    places = KL.blueprint(shapes).placements
    turned = {name: shapes[place.native] for name, place in places.items()}
    vae = open_autoencoder(tiny.write(tmp_path / "d.safetensors", turned))
    assert dict(vae.weights.shapes) == shapes


def test_weight_dtype_is_an_option(tmp_path: Path) -> None:
    path = tiny.write_flux(tmp_path / "f.safetensors")
    assert open_diffusion_model(path, "fp8_e4m3fn").option("weight_dtype") == "fp8_e4m3fn"
    assert open_diffusion_model(path) == open_diffusion_model(path, "default")
    with pytest.raises(ModelFileError, match="weight_dtype"):
        open_diffusion_model(path, "int3")


def test_wrong_files_say_what_they_are(tmp_path: Path) -> None:
    vae = tiny.write_vae(tmp_path / "vae.safetensors")
    clip = tiny.write_clip_l(tmp_path / "clip.safetensors")
    with pytest.raises(ModelFileError, match="looks like an autoencoder"):
        open_checkpoint(vae)
    with pytest.raises(ModelFileError, match="no autoencoder.*CLIP text encoder"):
        open_autoencoder(clip)
    with pytest.raises(ModelFileError, match="no text encoder.*autoencoder"):
        open_text_encoders((vae,), "stable_diffusion")


def test_models_that_are_not_run_are_named(tmp_path: Path) -> None:
    clip = tiny.write_clip_l(tmp_path / "clip.safetensors")
    with pytest.raises(ModelFileError, match=r"HiDream's, which is not run here.*Llama 3\.1.*in ComfyUI"):
        open_text_encoders((clip,), "hidream")
    network = tiny.write(tmp_path / "h.safetensors", {"model.caption_projection.0.linear.weight": (4, 4)})
    with pytest.raises(ModelFileError, match="it looks like HiDream, which is not run here"):
        open_diffusion_model(network)
    llama = tiny.write(tmp_path / "l.safetensors", {"model.layers.0.self_attn.q_proj.weight": (4, 4)})
    with pytest.raises(ModelFileError, match="a language model of another kind"):
        open_text_encoders((llama,), "flux2")


def test_names_reach_handles(tmp_path: Path) -> None:
    model, text, _ = open_checkpoint(tiny.write_sd15(tmp_path / "m.safetensors"))
    assert text is not None
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    assert model.lora_aliases()[path].weight == weight
    assert "clip_l.text_model.encoder.layers.0.mlp.fc1" in text.lora_aliases()
    assert "clip_l.text_model.encoder.layers.0.mlp.fc1" in text.lora_aliases()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("sd15", tiny.unet_shapes(levels=(1, 2, 2), depths=(1, 1, 0), resnets=2)),
        ("sdxl", tiny.sdxl_unet_shapes()),
        ("flux", tiny.flux_shapes(double=2, single=2)),
    ],
)
def test_networks_in_diffusers_layout_are_the_same(tmp_path: Path, name: str, shapes: tiny.Shapes) -> None:
    original = open_diffusion_model(tiny.write(tmp_path / "native.safetensors", shapes))
    blueprint = original.blueprint
    turned: dict[str, torch.Tensor] = {}
    for parameter, placement in blueprint.placements.items():
        whole = original.weights.read(placement.native)
        parts = [whole[begin:end] for begin, end in placement.rows]
        own = parameter.replace("class_embedding", "add_embedding")
        turned[own] = torch.cat(parts) if parts else whole
    save_file(turned, tmp_path / "turned.safetensors")
    model = open_diffusion_model(tmp_path / "turned.safetensors")
    assert model.family.name == name
    assert dict(model.weights.shapes) == dict(original.weights.shapes)
    assert model.weights.dtypes == original.weights.dtypes
    for native in shapes:
        assert torch.equal(model.weights.read(native), original.weights.read(native)), native
