"""Every family runs from every storage format: the picture is that of a file of the same values, unpacked."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import save_file
from torch import Tensor

from loraloom.engine.node import collect
from loraloom.models.recognition import family_named
from loraloom.session import Session
from loraloom.weights.formats import Format, formats
from loraloom.weights.packed import packed_as
from loraloom.weights.tensor_file import TensorFile
from tests.families import figure_nodes
from tests.families.bench import Narrow, Shelf, edit_graph_of, graph_of, narrow_by_family, stated
from tests.weights.gguf_writer import write_gguf
from tests.weights.test_marks import mark

WRITTEN = [one for one in formats().values() if type(one).pack is not Format.pack]
IN_A_BLOCK = re.compile(r"\.\d+\..*\.weight$")


@pytest.fixture(scope="module")
def widening(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session(
        shelf.folder,
        output_dir=tmp_path_factory.mktemp("output"),
        dtype="fp32",
        storage="widened",
        nodes=collect(figure_nodes),
    ) as made:
        yield made


def _latent(session: Session, shelf: Shelf, narrow: Narrow, file: str) -> Tensor:
    """After one step of the first case, an edit where the family's figures are of edits alone."""
    if cases := stated(narrow.name)["cases"]:
        graph = graph_of(shelf, narrow, {**next(iter(cases.values())), "batch": 1, "loras": []})
    else:
        graph = edit_graph_of(shelf, narrow, next(iter(stated(f"{narrow.name}_edit")["cases"])))
    graph["sample"]["inputs"] |= {"steps": 1, "cfg": 1.0}
    graph["unet"]["inputs"]["unet_name"] = file
    run = session.run(graph)
    path = next(output.path for output in run.outputs if output.path.suffix == ".latent")
    return TensorFile(path).read("latent_tensor", torch.float32)


def _must_agree(session: Session, shelf: Shelf, narrow: Narrow, packed: str, plain: str) -> None:
    found, wanted = (_latent(session, shelf, narrow, file) for file in (packed, plain))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("family", narrow_by_family())
def test_formats_with_marks(family: str, widening: Session, shelf: Shelf) -> None:
    """The layers of the blocks take turns at the formats."""
    narrow = narrow_by_family()[family][0]
    packed: dict[str, Tensor] = dict(narrow.others)
    plain: dict[str, Tensor] = dict(narrow.others)
    used: set[str] = set()
    weights = narrow.network()
    for name in weights.known:
        value, stem = weights.value(name), name.removesuffix(".weight")
        packed[name] = plain[name] = value
        turn = WRITTEN[len(used) % len(WRITTEN)]
        if value.dim() != 2 or not IN_A_BLOCK.search(name) or (made := turn.pack(value.float(), "")) is None:
            continue
        parts, said = made
        del packed[name]
        packed |= {f"{stem}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        packed[f"{stem}.comfy_quant"] = mark(**said)
        stored = packed_as(turn, value.float())
        assert stored is not None
        plain[name] = stored.widened(torch.float32)
        used.add(name)
    assert len(used) >= len(WRITTEN)
    folder = shelf.folder / "diffusion_models"
    folder.mkdir(exist_ok=True)
    save_file(packed, folder / f"{family}_packed.safetensors")
    save_file(plain, folder / f"{family}_unpacked.safetensors")
    _must_agree(widening, shelf, narrow, f"{family}_packed.safetensors", f"{family}_unpacked.safetensors")


@pytest.mark.parametrize("family", narrow_by_family())
def test_gguf(family: str, widening: Session, shelf: Shelf) -> None:
    """Matrices as Q8_0, the rest as float32."""
    narrow = narrow_by_family()[family][0]
    weights = narrow.network()
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    plain: dict[str, Tensor] = {}
    for name in [*weights.known, *narrow.others]:
        value = (narrow.others[name] if name in narrow.others else weights.value(name)).float().contiguous()
        shape = tuple(value.shape)
        if IN_A_BLOCK.search(name) and value.dim() == 2 and shape[1] % 32 == 0:
            blocks = quants.quantize(value.numpy(), GGMLQuantizationType.Q8_0)
            tensors[name] = ("Q8_0", shape, blocks.tobytes())
            value = torch.from_numpy(quants.dequantize(blocks, GGMLQuantizationType.Q8_0).astype(np.float32))
        else:
            tensors[name] = ("F32", shape, value.numpy().tobytes())
        plain[name] = value
    folder = shelf.folder / "diffusion_models"
    folder.mkdir(exist_ok=True)
    save_file(plain, folder / f"{family}_plain.safetensors")
    known = family_named(family)
    assert known is not None
    write_gguf(folder / f"{family}.gguf", tensors, general__architecture=known.gguf or known.name)
    _must_agree(widening, shelf, narrow, f"{family}.gguf", f"{family}_plain.safetensors")
