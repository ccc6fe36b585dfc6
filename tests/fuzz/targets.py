"""What is fuzzed: readers of strangers' files and texts. Each takes any bytes, and may refuse them."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loraloom.confined import parts_of, resolved
from loraloom.lora.file import read_lora
from loraloom.lora.tensor_names import split_key
from loraloom.models.text.prompt import parse_prompt
from loraloom.training.settings import Settings
from loraloom.training.toml import read_toml
from loraloom.weights.header import read_header
from loraloom.workflow.api_format import parse_api
from loraloom.workflow.implemented import known_schemas
from loraloom.workflow.json_text import read_json
from loraloom.workflow.pictures import is_picture, picture_texts
from loraloom.workflow.sources import workflows_of
from loraloom.workflow.ui_document import is_ui
from loraloom.workflow.ui_format import parse_ui
from loraloom.workflow.validate import validate
from tests.fuzz.editor_seeds import EDITOR
from tests.weights.gguf_writer import write_gguf

_ROOT = Path(__file__).parents[2]
_FOLDER = Path(tempfile.mkdtemp(prefix="loraloom-fuzz-"))


SLOW_SECONDS = 5.0
"""An input may not take longer."""


@dataclass(frozen=True, slots=True)
class Tree:
    """How the JSON in an input is read (ValueError where there is none) and such JSON made an input."""

    read: Callable[[bytes], object]
    write: Callable[[object], bytes]


@dataclass(frozen=True, slots=True)
class Target:
    """run: takes the bytes; raises LoraloomError to refuse them, anything else is a fault.
    words: pieces that are put in. tree: the JSON in an input, if it has any."""

    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...] = ()
    tree: Tree | None = None


def _file(content: bytes, suffix: str) -> Path:
    path = _FOLDER / f"input{suffix}"
    path.write_bytes(content)
    return path


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _header(content: bytes) -> None:
    read_header(_file(content, ".safetensors"))


def _header_tree(content: bytes) -> object:
    length = min(int.from_bytes(content[:8], "little"), len(content))
    return [json.loads(content[8 : 8 + length]), len(content) - 8 - length]


def _header_of(tree: object) -> bytes:
    header, size = cast("list[Any]", tree) if isinstance(tree, list) and len(tree) == 2 else (tree, 0)
    return safetensors(header, bytes(size if isinstance(size, int) and 0 <= size < 1 << 16 else 0))


def _headers() -> list[bytes]:
    weight = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    half = {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]}
    return [
        safetensors({}),
        safetensors({"a": weight}, bytes(16)),
        safetensors({"__metadata__": {"format": "pt"}, "a": weight, "b.weight": half}, bytes(24)),
        safetensors({"x.weight": {"dtype": "F8_E4M3", "shape": [2, 0], "data_offsets": [0, 0]}}),
    ]


def _gguf(content: bytes) -> None:
    read_header(_file(content, ".gguf"))


def _ggufs() -> list[bytes]:
    tensors = {
        "blk.0.attn_q.weight": ("Q8_0", (2, 32), bytes(68)),
        "token_embd.weight": ("F32", (2, 4), bytes(32)),
        "x": ("Q4_K", (1, 256), bytes(144)),
    }
    fields = {
        "general__architecture": "flux", "general__alignment": 32, "a": [1, 2], "b": ["x", "y"], "c": True,
        "d": 0.5, "comfy__gguf__orig_shape__x": [16, 16],
    }  # fmt: skip
    some = write_gguf(_FOLDER / "seed.gguf", tensors, **fields)
    encoder = write_gguf(_FOLDER / "encoder.gguf", tensors, general__architecture="llama")
    return [path.read_bytes() for path in (some, encoder, write_gguf(_FOLDER / "empty.gguf", {}))]


def _names(content: bytes) -> None:
    """A name that is taken stays inside its folder, on every system."""
    parts = parts_of(content.decode("utf-8", "surrogateescape"))
    assert all(part not in ("", ".", "..") and not {*part} & {*"/\\\0"} for part in parts)
    assert resolved(_FOLDER, parts) == Path(os.path.realpath(_FOLDER)).joinpath(*parts)


NAMES = (
    "a/b.png", "..\\..\\x", "CON.txt", "C:\\x", "a [output]", "\u202egnp.exe", "x" * 201, "a/./b//c", "a. ",
    "\\\\?\\C:\\x", "/etc/passwd", "%2e%2e/", "com\u00b9",
)  # fmt: skip


def _workflow(content: bytes) -> None:
    data = read_json(content.decode("utf-8", "replace"), "the input")
    if not isinstance(data, dict):
        return
    graph = parse_ui(data, schemas=known_schemas()) if is_ui(data) else parse_api(data)
    validate(graph, known_schemas(), lambda _: [])
    json.dumps(graph.to_api())


def _workflows() -> list[bytes]:
    found = workflows_of((_ROOT / "examples/lora-tutorial.md").read_bytes(), "page")
    graphs = [json.dumps(item.graph(known_schemas()).to_api()).encode() for item in found]
    return [*graphs[:3], *(json.dumps(ui).encode() for ui in EDITOR)]


def _page(content: bytes) -> None:
    for found in workflows_of(content, "page.html"):
        found.graph(known_schemas())


def _pages() -> list[bytes]:
    graph = json.dumps({"1": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["2", 0]}}})
    escaped = graph.replace('"', "&quot;")
    return [
        (_ROOT / "examples/lora-tutorial.md").read_bytes()[:6000],
        f"<html><body><h2>One</h2><pre><code>{escaped}</code></pre></body></html>".encode(),
        f"text\n```json\n{graph}\n```\nmore {{ text".encode(),
        f'<script type="application/json">{graph}</script>'.encode(),
    ]


def _prompt(content: bytes) -> None:
    parse_prompt(content.decode("utf-8", "replace"))


def _picture(content: bytes) -> None:
    if is_picture(content):
        picture_texts(content)
    workflows_of(content, "picture.png")


def _pictures() -> list[bytes]:
    graph = json.dumps({"1": {"class_type": "KSampler", "inputs": {"seed": 1}}})
    small, found = Image.new("RGB", (2, 2)), list[bytes]()
    info = PngInfo()
    info.add_text("prompt", graph)
    info.add_text("workflow", graph, zip=True)
    info.add_itxt("parameters", "ü", zip=True)
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = f"workflow:{graph}", f"prompt:{graph}"
    for kind, more in (("PNG", {"pnginfo": info}), ("WEBP", {"exif": exif}), ("JPEG", {"exif": exif})):
        buffer = io.BytesIO()
        small.save(buffer, kind, **more)
        found.append(buffer.getvalue())
    return found


def _lora_keys(content: bytes) -> None:
    """A LoRA file whose tensors have the lines of a text as names."""
    names = dict.fromkeys(line for line in content.decode("utf-8", "replace").split("\n")[:40] if line)
    for name in names:
        split_key(name)
    header = {
        name: {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * i, 4 * i + 4]}
        for i, name in enumerate(names)
    }
    read_lora(_file(safetensors(header, bytes(4 * len(names))), ".safetensors"))


def _settings(content: bytes) -> None:
    read_toml(_file(content, ".toml"), Settings)


KEYS = (
    b"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight\n"
    b"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight\n"
    b"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.alpha",
    b"transformer.single_transformer_blocks.0.attn.to_k.lora_A.default.weight\n"
    b"transformer.single_transformer_blocks.0.attn.to_k.lora_B.default.weight",
    b"lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_a\nbundle_emb.x.string_to_param.*\nx.dora_scale",
    b"unet.down_blocks.0.oft_blocks\nlycoris_x.lokr_w1\nlycoris_x.lokr_w2_a\ndiffusion_model.x.diff_b",
)
PROMPTS = (
    b"a (red:1.3) [rose] embedding:name.pt, ((x))",
    b"\\(a\\) (b:0.5(c:2)) embedding:",
    b"(a:1e9) (b:-.5) (c:) (((((((",
)
TOML = (
    b'name = "x"\noutput = "x"\n[model]\ncheckpoint = "a.safetensors"\n[[data]]\nfolder = "pictures"\n'
    b'[adapter]\nkind = "lora"\nrank = 8\n[run]\nsteps = 100\nseed = 1\n[optimizer]\nrate = 1e-4\n'
    b'betas = [0.9, 0.99]\n[noise]\noffset = 0.1\n[samples]\nprompts = ["a"]\n[validation]\nshare = 0.1\n',
)
_JSON = Tree(json.loads, lambda tree: json.dumps(tree).encode())

TARGETS: dict[str, Target] = {
    "safetensors": Target(
        _header,
        _headers,
        (b'"data_offsets"', b'"shape"', b'"F8_E5M2"', b"[0,0]", b"-1", b"1e999", b"\xff" * 8),
        Tree(_header_tree, _header_of),
    ),
    "gguf": Target(_gguf, _ggufs, (b"GGUF", b"general.alignment", b"\x09\0\0\0", b"\xff" * 8, bytes(8))),
    "names": Target(
        _names, lambda: [name.encode() for name in NAMES], (b"..", b"/", b"\\", b":", b"CON", b"\xe2\x80\xae")
    ),
    "workflow": Target(
        _workflow,
        _workflows,
        (b'"links"', b'"nodes"', b'"inputs"', b"null", b'["1",0]', b'"mode":2', b'"subgraphs"'),
        _JSON,
    ),
    "page": Target(
        _page, _pages, (b"&quot;", b"<pre>", b"```", b'{"', b'"class_type"', b"&#34;", b"\xc2\xa0")
    ),
    "prompt": Target(_prompt, lambda: PROMPTS, (b"(", b")", b":1.2)", b"embedding:", b"\\", b"[", b"\n")),
    "picture": Target(
        _picture,
        _pictures,
        (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"EXIF", b"Exif\0\0", b"II*\0", b"MM\0*"),
    ),
    "lora_keys": Target(
        _lora_keys,
        lambda: KEYS,
        (b".lora_up.weight", b".alpha", b".lora_A.", b"hada_w2_b", b"\n", b".."),
    ),
    "settings": Target(
        _settings,
        lambda: TOML,
        (b"[model]", b"[[data]]", b"= -1", b'= ""', b"= nan", b"= [[]]", b"{a=1}"),
    ),
}
