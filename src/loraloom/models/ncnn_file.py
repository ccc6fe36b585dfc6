"""Real-ESRGAN models as ncnn keeps them, which is how many programs ship them: a .param and a .bin file.

The .param text lists the layers of the network, one a line: type, name, numbers and names of its inputs and
outputs, and parameters "key=value". The .bin file holds the values of those layers that have any, in that
order: a convolution's weights behind a word that says how they are stored, then its biases; a PReLU's slopes.
(https://github.com/Tencent/ncnn/wiki, "param and model file structure".)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loraloom.errors import ModelFileError

MAGIC = "7767517"
MOST_TEXT = 16_000_000
HALF, SINGLE = 0x01306B47, 0
"""How weights are stored. Others are quantised."""

OUTPUTS, KERNEL, HAS_BIAS, COUNT, ACTIVATION = "0", "1", "5", "6", "9"
SLOPE, FACTORS = "-23310", "-23301"
LEAKY, RESIDUAL = "1,2.000000e-01", "2,2.000000e-01,1.000000e+00"
"""The slope of the leaky ReLUs, and the shares in which blocks are added: counts and values as printed."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One line of a .param file."""

    kind: str
    name: str
    said: Mapping[str, str]

    def number(self, key: str, default: int = 0) -> int:
        return int(self.said.get(key, default))


def read_ncnn(param: Path, weights: Path) -> dict[str, Tensor]:
    """A Real-ESRGAN network under the names of its original (basicsr) state dict, float32.

    Raises ModelFileError for files that do not belong together and for other networks."""
    try:
        layers = list(_layers(param))
        stored = list(_stored(layers, _Bytes(weights)))
        if any(layer.kind == "PReLU" for layer in layers):
            return _compact(layers, stored)
        return _dense(layers, stored)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        raise ModelFileError(f"{param}: not a readable ncnn network: {error}") from error
    except _Unknown as error:
        raise ModelFileError(f"{param}: an ncnn network that is not known here: {error}") from error


class _Unknown(Exception):
    """A network of another kind; says what it was told by."""


class _Bytes:
    """The .bin file, read from its start."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.at = 0

    def take(self, count: int, dtype: str) -> Tensor:
        """So many numbers as float32; they end at a multiple of four bytes."""
        size = count * np.dtype(dtype).itemsize
        if count <= 0 or self.at + size > len(self.content):
            raise ValueError(f"the .bin file ends before byte {self.at + size}")
        found = np.frombuffer(self.content, dtype, count, self.at).astype(np.float32)
        self.at += -(-size // 4) * 4
        return torch.from_numpy(found)

    def word(self) -> int:
        start, self.at = self.at, self.at + 4
        return int.from_bytes(self.content[start : self.at], "little")


def _layers(param: Path) -> Iterator[Layer]:
    with param.open("rb") as file:
        lines = file.read(MOST_TEXT).decode("ascii").splitlines()
    if len(lines) < 3 or lines[0].strip() != MAGIC:
        raise ValueError(f"it does not begin with {MAGIC}")
    for line in lines[2:]:
        words = line.split()
        if len(words) < 4:
            raise ValueError(f"a line is cut short: {line!r:.80}")
        blobs = int(words[2]) + int(words[3])
        said = (word.partition("=") for word in words[4 + blobs :])
        yield Layer(words[0], words[1], {key: value for key, _, value in said})


def _stored(layers: list[Layer], content: _Bytes) -> Iterator[tuple[Layer, list[Tensor]]]:
    """The layers with values, and these."""
    for layer in layers:
        if layer.kind == "Convolution":
            yield layer, list(_convolution(layer, content))
        elif layer.kind == "PReLU":
            yield layer, [content.take(layer.number(OUTPUTS), "<f4")]
    if content.at != len(content.content):
        raise ValueError(f"the .bin file has {len(content.content)} bytes; {content.at} were expected")


def _convolution(layer: Layer, content: _Bytes) -> Iterator[Tensor]:
    storage, outputs, kernel = content.word(), layer.number(OUTPUTS), layer.number(KERNEL)
    if storage not in (HALF, SINGLE):
        raise _Unknown(f"{layer.name} is quantised")
    weights = content.take(layer.number(COUNT), "<f2" if storage == HALF else "<f4")
    yield weights.reshape(outputs, -1, kernel, kernel)
    if not layer.number(HAS_BIAS):
        raise _Unknown(f"{layer.name} has no bias")
    yield content.take(outputs, "<f4")


def _expect(layers: list[Layer], kinds: Mapping[str, int]) -> None:
    found = Counter(layer.kind for layer in layers)
    for kind in {*kinds, *found} - {"Input", "Split"}:
        if found[kind] != kinds.get(kind, 0):
            raise _Unknown(f"it has {found[kind]} layers {kind} where {kinds.get(kind, 0)} were expected")


def _compact(layers: list[Layer], stored: list[tuple[Layer, list[Tensor]]]) -> dict[str, Tensor]:
    """SRVGGNetCompact: convolutions and PReLUs in turn, a pixel shuffle, the enlarged picture added."""
    depth = len(stored)
    if [layer.kind for layer, _ in stored] != ["Convolution", "PReLU"] * (depth // 2) + ["Convolution"]:
        raise _Unknown("convolutions and PReLUs do not take turns")
    if sum(layer.kind == "Interp" for layer in layers) > 1:
        raise _Unknown("it makes its result smaller again; use the file for the full enlargement (x4)")
    expected = {"Convolution": depth // 2 + 1, "PReLU": depth // 2, "PixelShuffle": 1, "Interp": 1}
    _expect(layers, {**expected, "BinaryOp": 1})
    found: dict[str, Tensor] = {}
    for place, (_, values) in enumerate(stored):
        for name, value in zip(("weight", "bias"), values, strict=False):
            found[f"body.{place}.{name}"] = value
    return found


def _dense(layers: list[Layer], stored: list[tuple[Layer, list[Tensor]]]) -> dict[str, Tensor]:
    """RRDBNet, four times: blocks of three times five convolutions, each joined to those before it."""
    blocks, rest = divmod(len(stored) - 6, 15)
    if blocks < 1 or rest:
        raise _Unknown(f"it has {len(stored)} convolutions")
    expected = {"Convolution": len(stored), "Concat": 12 * blocks, "Eltwise": 4 * blocks}
    _expect(layers, {**expected, "Interp": 2, "BinaryOp": 1})
    names = ["conv_first"]
    names += [f"body.{b}.rdb{r}.conv{c}" for b in range(blocks) for r in (1, 2, 3) for c in range(1, 6)]
    names += ["conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    found: dict[str, Tensor] = {}
    for name, (layer, values) in zip(names, stored, strict=True):
        bent = name.endswith(("conv1", "conv2", "conv3", "conv4", "up1", "up2", "hr"))
        if layer.number(ACTIVATION) != (2 if bent else 0) or (bent and layer.said.get(SLOPE) != LEAKY):
            raise _Unknown(f"{layer.name} is not followed by what follows {name}")
        found[f"{name}.weight"], found[f"{name}.bias"] = values
    for layer in layers:
        if layer.kind == "Eltwise" and layer.said.get(FACTORS) != RESIDUAL:
            raise _Unknown(f"{layer.name} adds in other shares")
    return found
