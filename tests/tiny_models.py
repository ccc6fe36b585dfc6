"""Narrow models in the real file formats, with weights seeded by their names.

Every file has the names, layouts and types of the original, so that nothing but its size tells it from a
real one; the pictures it makes are noise that depends on prompt, seed and LoRA as a trained model's would.

    from tests.tiny_models import write_sd15
    path = write_sd15(tmp_path / "checkpoints" / "tiny.safetensors")

Shapes are offered apart from files (`unet_shapes`, `flux_shapes` …): a LoRA maker needs no more.
Widths are the smallest that the real architecture allows: UNet channels are multiples of 32 (64 for SD2
and SDXL, whose heads are 64 wide), CLIP widths multiples of 64.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

Shape: TypeAlias = "tuple[int, ...]"
Shapes: TypeAlias = "dict[str, Shape]"
Writer: TypeAlias = Callable[[Path], Path]

VOCABULARY = 49408
"""Rows of CLIP's token table: prompts are tokenised with the real vocabulary."""

T5_VOCABULARY = 32128


def tensor(name: str, shape: Shape, seed: str = "") -> Tensor:
    """The value of a tensor, float32: norms near one, biases small, the rest variance 1 / inputs."""
    key = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
    values = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        is_gain = name.endswith((".weight", ".scale"))
        return 1 + 0.1 * values if is_gain else 0.02 * values
    if "embedding" in name or "shared" in name or "embed_tokens" in name:
        return 0.5 * values
    return values / math.sqrt(math.prod(shape[1:]))


def write(
    path: Path,
    shapes: Mapping[str, Shape],
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
    seed: str = "",
    change: Mapping[str, float] | None = None,
) -> Path:
    """A safetensors file of seeded tensors; the folder is made when needed. change: name → factor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor(name, shape, seed).to(dtype) for name, shape in shapes.items()}
    for name, factor in (change or {}).items():
        tensors[name] *= factor
    save_file(tensors, path, metadata=dict(metadata) if metadata else {"format": "pt"})
    return path


def prefixed(prefix: str, shapes: Mapping[str, Shape]) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


# Stable Diffusion's UNet


def _resnet(name: str, inputs: int, outputs: int, time: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.in_layers.0", inputs)
    yield from _conv(f"{name}.in_layers.2", inputs, outputs)
    yield from _linear(f"{name}.emb_layers.1", time, outputs)
    yield from _norm(f"{name}.out_layers.0", outputs)
    yield from _conv(f"{name}.out_layers.3", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.skip_connection", inputs, outputs, 1)


def _attention(name: str, width: int, depth: int, context: int, linear: bool) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm", width)
    for place in ("proj_in", "proj_out"):
        yield from (
            _linear(f"{name}.{place}", width, width) if linear else _conv(f"{name}.{place}", width, width, 1)
        )
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, inputs in (("attn1", width), ("attn2", context)):
            yield from _linear(f"{block}.{attention}.to_q", width, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_k", inputs, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_v", inputs, width, bias=False)
            yield from _linear(f"{block}.{attention}.to_out.0", width, width)
        yield from _linear(f"{block}.ff.net.0.proj", width, 8 * width)
        yield from _linear(f"{block}.ff.net.2", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{block}.{norm}", width)


def unet_shapes(
    *,
    width: int = 32,
    levels: tuple[int, ...] = (1, 2),
    depths: tuple[int, ...] = (1, 0),
    middle: int = 1,
    context: int = 64,
    label: int | None = None,
    linear: bool = False,
    in_channels: int = 4,
    resnets: int = 1,
) -> Shapes:
    """A UNet under its original names. levels: channel factor per level; depths: transformer blocks there."""
    return dict(_unet(width, levels, depths, middle, context, label, linear, in_channels, resnets))


def _unet(
    width: int,
    levels: tuple[int, ...],
    depths: tuple[int, ...],
    middle: int,
    context: int,
    label: int | None,
    linear: bool,
    in_channels: int,
    resnets: int,
) -> Iterator[tuple[str, Shape]]:
    time = 4 * width
    yield from _linear("time_embed.0", width, time)
    yield from _linear("time_embed.2", time, time)
    if label:
        yield from _linear("label_emb.0.0", label, time)
        yield from _linear("label_emb.0.2", time, time)
    yield from _conv("input_blocks.0.0", in_channels, width)
    skips, now, index = [width], width, 1
    for level, factor in enumerate(levels):
        for _ in range(resnets):
            yield from _resnet(f"input_blocks.{index}.0", now, width * factor, time)
            now = width * factor
            if depths[level]:
                yield from _attention(f"input_blocks.{index}.1", now, depths[level], context, linear)
            skips.append(now)
            index += 1
        if level + 1 < len(levels):
            yield from _conv(f"input_blocks.{index}.0.op", now, now)
            skips.append(now)
            index += 1
    yield from _resnet("middle_block.0", now, now, time)
    yield from _attention("middle_block.1", now, middle, context, linear)
    yield from _resnet("middle_block.2", now, now, time)
    index = 0
    for level in reversed(range(len(levels))):
        for number in range(resnets + 1):
            yield from _resnet(f"output_blocks.{index}.0", now + skips.pop(), width * levels[level], time)
            now, place = width * levels[level], 1
            if depths[level]:
                yield from _attention(f"output_blocks.{index}.1", now, depths[level], context, linear)
                place = 2
            if level and number == resnets:
                yield from _conv(f"output_blocks.{index}.{place}.conv", now, now)
            index += 1
    yield from _norm("out.0", width)
    yield from _conv("out.2", width, 4)


# The autoencoder


def _autoencoder_resnet(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm1", inputs)
    yield from _conv(f"{name}.conv1", inputs, outputs)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.nin_shortcut", inputs, outputs, 1)


def _autoencoder_middle(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _autoencoder_resnet(f"{name}.block_1", width, width)
    yield from _norm(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.attn_1.{part}", width, width, 1)
    yield from _autoencoder_resnet(f"{name}.block_2", width, width)


def autoencoder_shapes(
    *, width: int = 32, levels: tuple[int, ...] = (1, 1, 1, 1), latent: int = 4, quant: bool = True
) -> Shapes:
    """A KL autoencoder under its original names; four levels make eight pixels per latent pixel."""
    found: Shapes = dict(_conv("encoder.conv_in", 3, width))
    now = width
    for level, factor in enumerate(levels):
        found.update(_autoencoder_resnet(f"encoder.down.{level}.block.0", now, width * factor))
        now = width * factor
        if level + 1 < len(levels):
            found.update(_conv(f"encoder.down.{level}.downsample.conv", now, now))
    found.update(_autoencoder_middle("encoder.mid", now))
    found.update(_norm("encoder.norm_out", now))
    found.update(_conv("encoder.conv_out", now, 2 * latent))
    found.update(_conv("decoder.conv_in", latent, now))
    found.update(_autoencoder_middle("decoder.mid", now))
    for level in reversed(range(len(levels))):
        for block in range(2):
            found.update(_autoencoder_resnet(f"decoder.up.{level}.block.{block}", now, width * levels[level]))
            now = width * levels[level]
        if level:
            found.update(_conv(f"decoder.up.{level}.upsample.conv", now, now))
    found.update(_norm("decoder.norm_out", now))
    found.update(_conv("decoder.conv_out", now, 3))
    if quant:
        found.update(_conv("quant_conv", 2 * latent, 2 * latent, 1))
        found.update(_conv("post_quant_conv", latent, latent, 1))
    return found


# Text encoders


def clip_shapes(*, width: int = 64, layers: int = 2, inner: int = 128) -> Shapes:
    """CLIP-L's text model under Hugging Face's names, with the real vocabulary."""
    start = "text_model."
    found: Shapes = {
        f"{start}embeddings.position_embedding.weight": (77, width),
        f"{start}embeddings.token_embedding.weight": (VOCABULARY, width),
    }
    for number in range(layers):
        layer = f"{start}encoder.layers.{number}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found.update(_linear(f"{layer}.self_attn.{projection}", width, width))
        found.update(_linear(f"{layer}.mlp.fc1", width, inner))
        found.update(_linear(f"{layer}.mlp.fc2", inner, width))
        found.update(_norm(f"{layer}.layer_norm1", width))
        found.update(_norm(f"{layer}.layer_norm2", width))
    found.update(_norm(f"{start}final_layer_norm", width))
    return found


def open_clip_shapes(*, width: int = 128, layers: int = 2, inner: int = 256) -> Shapes:
    """OpenCLIP's text model under its own names: fused attention, transposed projection."""
    found: Shapes = {
        "token_embedding.weight": (VOCABULARY, width),
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
    }
    for number in range(layers):
        layer = f"transformer.resblocks.{number}"
        found[f"{layer}.attn.in_proj_weight"] = (3 * width, width)
        found[f"{layer}.attn.in_proj_bias"] = (3 * width,)
        found.update(_linear(f"{layer}.attn.out_proj", width, width))
        found.update(_linear(f"{layer}.mlp.c_fc", width, inner))
        found.update(_linear(f"{layer}.mlp.c_proj", inner, width))
        found.update(_norm(f"{layer}.ln_1", width))
        found.update(_norm(f"{layer}.ln_2", width))
    found.update(_norm("ln_final", width))
    return found


def t5_shapes(*, width: int = 64, layers: int = 2, heads: int = 2, inner: int = 128) -> Shapes:
    """T5 1.1's encoder under Hugging Face's names, with the real vocabulary."""
    found: Shapes = {"shared.weight": (T5_VOCABULARY, width)}
    for number in range(layers):
        layer = f"encoder.block.{number}.layer"
        for projection in "qkvo":
            found[f"{layer}.0.SelfAttention.{projection}.weight"] = (width, width)
        if number == 0:
            found[f"{layer}.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
        found[f"{layer}.0.layer_norm.weight"] = (width,)
        found[f"{layer}.1.DenseReluDense.wi_0.weight"] = (inner, width)
        found[f"{layer}.1.DenseReluDense.wi_1.weight"] = (inner, width)
        found[f"{layer}.1.DenseReluDense.wo.weight"] = (width, inner)
        found[f"{layer}.1.layer_norm.weight"] = (width,)
    found["encoder.final_layer_norm.weight"] = (width,)
    return found


# Flux.1


def flux_shapes(
    *,
    width: int = 128,
    head: int = 128,
    double: int = 1,
    single: int = 2,
    context: int = 64,
    pooled: int = 64,
    guidance: bool = True,
) -> Shapes:
    """Flux.1's transformer under its original names. head: width of an attention head (128 in all)."""
    inner = 4 * width
    found: Shapes = dict(_linear("img_in", 64, width))
    found.update(_linear("txt_in", context, width))
    embedders = [("time_in", 256), ("vector_in", pooled), *([("guidance_in", 256)] if guidance else [])]
    for name, inputs in embedders:
        found.update(_linear(f"{name}.in_layer", inputs, width))
        found.update(_linear(f"{name}.out_layer", width, width))
    for number in range(double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{number}.{stream}_"
            found.update(_linear(f"{block}mod.lin", width, 6 * width))
            found.update(_linear(f"{block}attn.qkv", width, 3 * width))
            found.update(_linear(f"{block}attn.proj", width, width))
            found.update({f"{block}attn.norm.{part}_norm.scale": (head,) for part in ("key", "query")})
            found.update(_linear(f"{block}mlp.0", width, inner))
            found.update(_linear(f"{block}mlp.2", inner, width))
    for number in range(single):
        block = f"single_blocks.{number}."
        found.update(_linear(f"{block}linear1", width, 3 * width + inner))
        found.update(_linear(f"{block}linear2", width + inner, width))
        found.update(_linear(f"{block}modulation.lin", width, 3 * width))
        found.update({f"{block}norm.{part}_norm.scale": (head,) for part in ("key", "query")})
    found.update(_linear("final_layer.adaLN_modulation.1", width, 2 * width))
    found.update(_linear("final_layer.linear", width, 64))
    return found


# Whole files


def write_sd15(path: Path, *, context: int = 64, dtype: torch.dtype = torch.float16, seed: str = "") -> Path:
    """A Stable Diffusion 1.5 checkpoint: UNet, CLIP-L and autoencoder. context: width of CLIP (of 64s)."""
    return write(
        path,
        prefixed("cond_stage_model.transformer.", clip_shapes(width=context))
        | prefixed("first_stage_model.", autoencoder_shapes())
        | prefixed("model.diffusion_model.", unet_shapes(context=context)),
        dtype,
        seed=seed,
    )


def write_sd20(path: Path, *, dtype: torch.dtype = torch.float16, v: bool = False, seed: str = "") -> Path:
    """A Stable Diffusion 2 checkpoint: UNet, OpenCLIP-H and autoencoder. v: marked as v-prediction."""
    marks: Shapes = {"v_pred": ()} if v else {}
    return write(
        path,
        prefixed("cond_stage_model.model.", open_clip_shapes(width=128))
        | prefixed("first_stage_model.", autoencoder_shapes())
        | prefixed("model.diffusion_model.", unet_shapes(width=64, linear=True, context=128) | marks),
        dtype,
        seed=seed,
    )


def sdxl_unet_shapes(*, context: int = 192, pooled: int = 128) -> Shapes:
    """SDXL's UNet: a first level without attention, linear projections, sizes beside the pooled prompt."""
    return unet_shapes(
        width=64, levels=(1, 2), depths=(0, 2), middle=2, context=context, label=pooled + 6 * 256, linear=True
    )


def write_sdxl(path: Path, *, dtype: torch.dtype = torch.float16, seed: str = "") -> Path:
    """An SDXL checkpoint: UNet (context 64 + 128), CLIP-L, OpenCLIP-bigG and autoencoder."""
    return write(
        path,
        prefixed("conditioner.embedders.0.transformer.", clip_shapes(width=64))
        | prefixed("conditioner.embedders.1.model.", open_clip_shapes(width=128))
        | prefixed("first_stage_model.", autoencoder_shapes())
        | prefixed("model.diffusion_model.", sdxl_unet_shapes()),
        dtype,
        seed=seed,
    )


def write_refiner(path: Path, *, dtype: torch.dtype = torch.float16, seed: str = "") -> Path:
    """An SDXL refiner checkpoint: UNet (outer levels without attention) and OpenCLIP-bigG."""
    unet = unet_shapes(
        width=64,
        levels=(1, 1, 2, 2),
        depths=(0, 1, 1, 0),
        middle=1,
        context=128,
        label=128 + 5 * 256,
        linear=True,
    )
    return write(
        path,
        prefixed("conditioner.embedders.0.model.", open_clip_shapes(width=128))
        | prefixed("first_stage_model.", autoencoder_shapes())
        | prefixed("model.diffusion_model.", unet),
        dtype,
        seed=seed,
    )


def write_flux(
    path: Path,
    *,
    context: int = 64,
    pooled: int = 64,
    double: int = 1,
    single: int = 2,
    guidance: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    seed: str = "",
) -> Path:
    """A Flux.1 transformer alone (for the folder diffusion_models); without guidance it is a schnell."""
    shapes = flux_shapes(context=context, pooled=pooled, double=double, single=single, guidance=guidance)
    return write(path, shapes, dtype, seed=seed)


def write_flux_checkpoint(path: Path, *, guidance: bool = True, seed: str = "") -> Path:
    """Flux.1 with its text encoders and autoencoder in one file, in fp8, as ComfyUI offers it."""
    return write(
        path,
        prefixed("model.diffusion_model.", flux_shapes(context=64, pooled=64, guidance=guidance))
        | prefixed("text_encoders.clip_l.transformer.", clip_shapes(width=64))
        | prefixed("text_encoders.t5xxl.transformer.", t5_shapes(width=64))
        | prefixed("vae.", autoencoder_shapes(latent=16, quant=False)),
        torch.float8_e4m3fn,
        seed=seed,
    )


def write_clip_l(path: Path, *, width: int = 64, dtype: torch.dtype = torch.float16, seed: str = "") -> Path:
    return write(path, clip_shapes(width=width), dtype, seed=seed)


def write_t5(path: Path, *, width: int = 64, dtype: torch.dtype = torch.float16, seed: str = "") -> Path:
    return write(path, t5_shapes(width=width), dtype, seed=seed)


def write_vae(path: Path, *, latent: int = 4, dtype: torch.dtype = torch.float32, seed: str = "") -> Path:
    """An autoencoder file; 16 latent channels make it Flux.1's, without the quantisation layers."""
    return write(path, autoencoder_shapes(latent=latent, quant=latent == 4), dtype, seed=seed)


def lora(
    modules: Iterable[tuple[str, Shape]],
    *,
    rank: int = 4,
    alpha: float | None = 2.0,
    down: str = ".lora_down.weight",
    up: str = ".lora_up.weight",
    size: float = 0.2,
    seed: str = "",
) -> dict[str, Tensor]:
    """The tensors of a plain LoRA for modules named as the file spells them, given their weights' shapes."""
    found: dict[str, Tensor] = {}
    for name, shape in modules:
        kernel = shape[2:]
        found[name + down] = tensor(name + down, (rank, *shape[1:]), seed)
        found[name + up] = tensor(name + up, (shape[0], rank, *(1 for _ in kernel)), seed) * size
        if alpha is not None:
            found[name + ".alpha"] = torch.tensor(alpha)
    return found
