"""Flux.1 from its published description, on native weights: slow, plain, and independent of the product."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Callable[[str], Tensor]


def flux(
    weights: Weights,
    depth: tuple[int, int],
    x: Tensor,
    time: Tensor,
    guidance: Tensor,
    y: Tensor,
    context: Tensor,
    bias: Tensor | None = None,
    styles: Tensor | None = None,
) -> Tensor:
    """x (B, 16, H, W), time and guidance (B,), y (B, P), context (B, T, D) → (B, 16, H, W). bias: added to
    the scores of attention between all tokens. styles: (B, S, width) tokens before the text's."""

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, weights(f"{name}.weight"), weights(f"{name}.bias"))

    def two_layers(name: str, values: Tensor) -> Tensor:
        return linear(f"{name}.out_layer", F.silu(linear(f"{name}.in_layer", values)))

    def modulation(name: str, count: int) -> tuple[Tensor, ...]:
        return linear(name, F.silu(vector))[:, None].chunk(count, dim=-1)

    def heads(name: str, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part.unflatten(-1, (-1, head)).transpose(1, 2) for part in fused.chunk(3, dim=-1))
        return rms(q, f"{name}.query_norm.scale"), rms(k, f"{name}.key_norm.scale"), v

    def rms(values: Tensor, name: str) -> Tensor:
        return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-6) * weights(name)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = rotate(q, angles) @ rotate(k, angles).transpose(-1, -2) / math.sqrt(head)
        scores = scores if bias is None else scores + bias
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)

    def norm(values: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return (1 + scale) * F.layer_norm(values, values.shape[-1:], eps=1e-6) + shift

    head = len(weights("double_blocks.0.img_attn.norm.key_norm.scale"))
    batch, channels, height, width = x.shape
    tiles = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    img = linear("img_in", tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
    txt = linear("txt_in", context)
    txt = txt if styles is None else torch.cat([styles, txt], dim=1)
    vector = two_layers("time_in", waves(time)) + two_layers("guidance_in", waves(guidance))
    vector = vector + two_layers("vector_in", y)
    angles = all_angles(txt.shape[1], height // 2, width // 2, head)
    length = txt.shape[1]
    for number in range(depth[0]):
        streams, mods, parts = {"txt": txt, "img": img}, {}, {}
        for name, stream in streams.items():
            block = f"double_blocks.{number}.{name}_"
            mods[name] = modulation(f"{block}mod.lin", 6)
            shift, scale = mods[name][:2]
            parts[name] = heads(f"{block}attn.norm", linear(f"{block}attn.qkv", norm(stream, shift, scale)))
        both = [torch.cat([parts["txt"][part], parts["img"][part]], dim=2) for part in range(3)]
        attended = attend(*both)
        for name, own in (("txt", attended[:, :length]), ("img", attended[:, length:])):
            block = f"double_blocks.{number}.{name}_"
            _, _, gate, shift, scale, second = mods[name]
            stream = streams[name] + gate * linear(f"{block}attn.proj", own)
            inner = F.gelu(linear(f"{block}mlp.0", norm(stream, shift, scale)), approximate="tanh")
            streams[name] = stream + second * linear(f"{block}mlp.2", inner)
        txt, img = streams["txt"], streams["img"]
    stream = torch.cat([txt, img], dim=1)
    for number in range(depth[1]):
        block = f"single_blocks.{number}."
        shift, scale, gate = modulation(f"{block}modulation.lin", 3)
        first = linear(f"{block}linear1", norm(stream, shift, scale))
        fused, inner = first[..., : 3 * stream.shape[-1]], first[..., 3 * stream.shape[-1] :]
        attended = attend(*heads(f"{block}norm", fused))
        out = torch.cat([attended, F.gelu(inner, approximate="tanh")], dim=-1)
        stream = stream + gate * linear(f"{block}linear2", out)
    shift, scale = modulation("final_layer.adaLN_modulation.1", 2)
    out = linear("final_layer.linear", norm(stream[:, length:], shift, scale))
    tiles = out.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def waves(values: Tensor) -> Tensor:
    """(B,) → (B, 256): cosines, then sines, of 1000 times the value."""
    frequencies = 10000.0 ** (-torch.arange(128) / 128)
    angles = 1000 * values[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def all_angles(text: int, rows: int, columns: int, head: int) -> Tensor:
    """(text + rows · columns, head / 2): rotation angles of every pair of channels."""
    places = [(0, 0, 0)] * text + [(0, row, column) for row in range(rows) for column in range(columns)]
    widths = (head // 8, head * 7 // 16, head * 7 // 16)
    axes = [
        torch.tensor([place[axis] for place in places], dtype=torch.float64)[:, None]
        * 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        for axis, width in enumerate(widths)
    ]
    return torch.cat(axes, dim=-1).float()


def rotate(values: Tensor, angles: Tensor) -> Tensor:
    even, odd = values[..., 0::2], values[..., 1::2]
    turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(turned, dim=-1).flatten(-2)
