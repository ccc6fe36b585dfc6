"""How much memory computing takes beside the weights, from shapes alone.

The factors are peaks of live tensors, measured on the CPU with fused attention (SD 1.5: 26 maps, SDXL: 16;
Flux.1: 15 sequences; the KL decoder: 6 maps, its encoder: 5), rounded up for what kernels take besides.
Upscale models are reckoned where they are run, by tiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from loraloom.sampling.inputs import Inputs

UNET_MAPS = 32
"""Maps as large as the first level's that a UNet holds at once: skips, and the gated feed-forward layer."""

TRANSFORMER_SEQUENCES = 20
"""Sequences of hidden states that a block of a transformer holds at once."""

DECODER_MAPS, ENCODER_MAPS = 8, 7
"""Maps of the picture's size and the outermost level's width that an autoencoder holds at once."""

TINY_DECODER_MAPS = 6
"""The same of a tiny autoencoder's decoder."""

STATES, INNER_STATES, BIASES = 10, 4, 4
"""What an encoder of texts or pictures holds at once: sequences of hidden states, sequences as wide as its
widest layer, and what is added to the attention of all heads."""

POSITION = 16 * 16
"""Pixels of the picture that a transformer sees as one position, whatever its latent's size."""


def step_bytes(
    config: Mapping[str, object], width: int, pixels: int, x: Tensor, inputs: Inputs, itemsize: int
) -> int:
    """Bytes that one evaluation of a diffusion network takes, all of its batch together.

    width: of a transformer's hidden states (see `hidden_width`); UNets say theirs in their config. pixels:
    sides of the square that a latent pixel stands for. itemsize: bytes of a number that it computes with."""
    channels = config.get("block_out_channels")
    if channels is not None:
        return UNET_MAPS * _cells(x) * cast("tuple[int, ...]", channels)[0] * itemsize
    cells = sum(_cells(latent) for latent in (x, *inputs.references))
    text = sum(tokens.values.shape[0] * tokens.values.shape[1] for tokens in inputs.tokens.values())
    positions = cells * min(pixels**2, POSITION) // POSITION + text
    return TRANSFORMER_SEQUENCES * positions * width * itemsize


def hidden_width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The width of a transformer's hidden states: the side that most of its matrices have."""
    sides = Counter(min(shape) for shape in shapes.values() if len(shape) == 2)
    return sides.most_common(1)[0][0] if sides else 0


def picture_bytes(width: int, pixels: int, itemsize: int, maps: int) -> int:
    """Bytes that an autoencoder takes for a picture of so many pixels. width: of its maps at the picture's
    own size. maps: DECODER_MAPS or ENCODER_MAPS."""
    return maps * pixels * width * itemsize


def _cells(latent: Tensor) -> int:
    """Pixels of a latent (B, C, …), of all its batch."""
    return latent.numel() // latent.shape[1]


def sequence_numbers(network: nn.Module, rows: int, length: int, states: int = 0) -> int:
    """Numbers that an encoder of texts or pictures holds at once for so many sequences of so many tokens.

    states: how many layers' are kept until the end, and joined then."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    sides = [(layer.out_features, layer.in_features) for layer in layers]
    width = hidden_width({str(number): shape for number, shape in enumerate(sides)})
    inner = max((max(shape) for shape in sides), default=0)
    tables = (layer for name, layer in network.named_modules() if name.endswith("relative_attention_bias"))
    heads = max((table.embedding_dim for table in tables if isinstance(table, nn.Embedding)), default=0)
    of_tokens = (STATES + 2 * states) * width + INNER_STATES * inner
    return rows * length * of_tokens + BIASES * rows * heads * length**2


def kept_numbers(network: nn.Module, length: int) -> int:
    """Numbers that a language model keeps of so many tokens to go on writing: its keys and values."""
    named = network.named_modules()
    layers = [layer for name, layer in named if name.endswith((".k_proj", ".v_proj"))]
    return length * sum(layer.out_features for layer in layers if isinstance(layer, nn.Linear))
