"""Everything that a user may give as SOURCE, whole and damaged."""

from __future__ import annotations

import html
import io
import json
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.errors import InputError, WorkflowError
from loraloom.workflow import pictures
from loraloom.workflow.sources import MAX_BYTES, read_source, select
from tests.workflow.pictures_samples import png, png_by_pillow, with_exif
from tests.workflow.ui_samples import link, node, workflow

API: dict[str, Any] = {
    "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "2": {"class_type": "LatentFlip", "inputs": {"samples": ["1", 0], "flip_method": "x-axis: vertically"}},
}
UI = workflow(
    node(1, "EmptyLatentImage", values=[64, 64, 1], outputs=["LATENT"]),
    node(2, "LatentFlip", values=["x-axis: vertically"], inputs=[("samples", "LATENT", 1)]),
    links=[link(1, 1, 0, 2, 0)],
)
OTHER = workflow(node(1, "CLIPTextEncode", values=['a "rose", {red|blue} <lora:x> & more\n']))


def inputs_of(source: str | bytes | Path) -> list[dict[str, Any]]:
    graphs = [found.graph().to_api() for found in read_source(source)]
    return [{key: entry["inputs"] for key, entry in graph.items()} for graph in graphs]  # type: ignore[call-overload, index]


WANTED = {key: entry["inputs"] for key, entry in API.items()}


@pytest.mark.parametrize(
    "data",
    [
        API,
        UI,
        {"prompt": API},
        {"workflow": UI},
        {"prompt": API, "extra_data": {"workflow": UI}},
        [API],
        [UI],
    ],
)
def test_json_plain_and_wrapped(data: Any) -> None:
    assert inputs_of(json.dumps(data)) == [WANTED]
    assert inputs_of(json.dumps(data, indent=2).encode()) == [WANTED]


def test_file_and_standard_input(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text("\ufeff" + json.dumps(UI), "utf-8")
    assert inputs_of(path) == [WANTED]
    assert inputs_of(str(path)) == [WANTED]
    assert read_source(path)[0].origin == "w.json"
    found = read_source("-", stdin=io.BytesIO(json.dumps(API).encode()))
    assert found[0].origin == "standard input"
    path.write_bytes(json.dumps(UI).encode("utf-16"))
    assert inputs_of(path) == [WANTED]


PAGE = f"""What is a LoRA?
Some words {{ and a brace }} and "quotes", {{"a": 1}} too.
## The first one
Workflow

{json.dumps(UI, indent=1)}

Then it changes.
The second one
```json
{json.dumps({"prompt": API})}
```
and {json.dumps(OTHER)} in a sentence. The first again: {json.dumps(UI)}
"""


def test_page_with_several_workflows() -> None:
    found = read_source(PAGE)
    assert [(f.index, f.format, f.title) for f in found] == [
        (1, "ui", "The first one"),
        (2, "api", "The second one"),
        (3, "ui", "and"),
    ]
    assert found[1].origin == "the given text, workflow 2"
    assert inputs_of(PAGE)[:2] == [WANTED, WANTED]


@pytest.mark.parametrize("quote", [True, False])
def test_html_with_entities_and_tags(quote: bool) -> None:
    body = html.escape(json.dumps(OTHER, indent=1), quote=quote).replace("\n", "<br>\n")
    coloured = body.replace("nodes", '<span class="key">nodes</span>', 1)
    page = f"<html><body><h2>One</h2><p>Text &amp; more</p><pre><code>{coloured}</code></pre></body></html>"
    assert inputs_of(page)[0]["1"]["text"].startswith('a "rose", ')
    assert "<lora:x> & more" in inputs_of(page)[0]["1"]["text"]


def test_html_attribute() -> None:
    page = f"<div class='x' data-workflow=\"{html.escape(json.dumps(UI))}\">see</div>"
    assert inputs_of(page) == [WANTED]


def test_html_with_one_raw_and_one_escaped() -> None:
    page = f"<script>var w = {json.dumps(UI)};</script><pre>{html.escape(json.dumps(OTHER))}</pre>"
    assert [f.node_count for f in read_source(page)] == [2, 1]


def test_curly_quotes_are_named_as_the_damage() -> None:
    damaged = json.dumps(UI).replace('"', "”")
    with pytest.raises(WorkflowError, match="curly"):
        read_source(f"Here it is:\n{damaged}\n")[0].graph()
    found = read_source(f"{PAGE}\nand\n{damaged}")
    assert [f.damage is None for f in found] == [True, True, True, False]


def test_cut_short_json_says_so() -> None:
    with pytest.raises(WorkflowError, match="cut short"):
        read_source(json.dumps(UI)[:-20])
    found = read_source(f"Some page\n{json.dumps(UI)[:-20]}")
    with pytest.raises(WorkflowError, match=r"line 2.*cut short"):
        found[0].graph()


def test_choosing_among_several() -> None:
    found = read_source(PAGE)
    assert [f.index for f in select(found, "2")] == [2]
    assert [f.index for f in select(found, "all")] == [1, 2, 3]
    assert select(read_source(json.dumps(UI)), None)[0].index == 1
    with pytest.raises(
        InputError, match=r"3 workflows; choose with --workflow N or all:\n  1  The first one"
    ):
        select(found, None)
    for wrong in ("0", "4", "x", "-1", "²"):
        with pytest.raises(InputError, match="no workflow"):
            select(found, wrong)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt packed"])
def test_png_text_chunks(kind: str) -> None:
    found = read_source(png({"prompt": json.dumps(API), "workflow": json.dumps(OTHER)}, kind))
    assert [f.format for f in found] == ["api"]
    graph = found[0].graph()
    assert graph.ui == OTHER
    assert list(graph.nodes) == ["1", "2"]
    assert read_source(png({"workflow": json.dumps(UI)}, kind))[0].format == "ui"


def test_png_of_pillow_with_nan_and_umlauts() -> None:
    prompt = json.dumps({**API, "3": {"class_type": "Ä", "inputs": {}, "is_changed": [float("nan")]}})
    graph = read_source(png_by_pillow({"prompt": prompt}))[0].graph()
    assert graph.nodes["3"].class_type == "Ä"


@pytest.mark.parametrize("container", ["WEBP", "JPEG"])
@pytest.mark.parametrize("tags", [(0x0110, 0x010F), (0x010F, 0x010E)])
def test_exif(container: str, tags: tuple[int, int]) -> None:
    texts = {tags[0]: f"prompt:{json.dumps(API)}", tags[1]: f"workflow:{json.dumps(OTHER)}"}
    graph = read_source(with_exif(container, texts))[0].graph()
    assert list(graph.nodes) == ["1", "2"]
    assert graph.ui == OTHER
    only = read_source(with_exif(container, {tags[1]: f"Workflow: {json.dumps(UI)}"}))
    assert only[0].format == "ui"


def test_exif_user_comment() -> None:
    for comment in (
        b"UNICODE\0" + json.dumps(API).encode("utf-16-be"),
        b"ASCII\0\0\0" + json.dumps(API).encode(),
    ):
        picture = with_exif("JPEG", {0x9286: comment})  # type: ignore[dict-item]
        assert list(read_source(picture)[0].graph().nodes) == ["1", "2"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"just words", "holds no workflow"),
        (b'{"a": 1}', "holds no workflow"),
        (b"[]", "holds no workflow"),
        (b'\x08\0\0\0\0\0\0\0{"a":1}', "model file"),
        (json.dumps(API).encode("utf-16-le"), "UTF-16 text without its mark: save it as UTF-8"),
        (json.dumps(API).encode("utf-16-be"), "UTF-16 text without its mark: save it as UTF-8"),
        (png({}), "no texts at all"),
        (png({"parameters": "a rose\nSteps: 20"}), "settings of another program"),
        (png({"prompt": "{broken"}), "its text 'prompt' is not valid JSON"),
        (png({"prompt": json.dumps(API)})[:60], "cut short"),
        (with_exif("WEBP", {}), "picture without a workflow"),
        (b'{"nodes":' + b"[" * 5000, "deeper than 128"),
        (b"words " + b'{"nodes":' + b"[" * 5000, "deeper than 128"),
    ],
)
def test_what_is_no_workflow_is_told_apart(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_source(data)[0].graph()


def test_missing_files_folders_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_source(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        read_source(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_source("nul\0byte")
    with pytest.raises(InputError, match="larger than 64 MB"):
        read_source(b" " * (MAX_BYTES + 1))


def test_an_inflating_bomb_stops_at_the_limit() -> None:
    packed = zlib.compress(b"a" * (pictures.MAX_TEXT + 10))
    body = b"prompt\0\0" + packed
    chunk = len(body).to_bytes(4, "big") + b"zTXt" + body + b"\0\0\0\0"
    with pytest.raises(InputError, match="larger than 16 MB"):
        read_source(b"\x89PNG\r\n\x1a\n" + chunk)


@pytest.mark.parametrize("piece", ['{"', '{"a":', '{"nodes":[', "{\u201c", '{"a":{"b":[1,2,3]},'])
def test_hostile_pages_end_soon(piece: str) -> None:
    text = "x " + piece * (300_000 // len(piece))
    started = time.perf_counter()
    with pytest.raises(InputError):
        read_source(text)[0].graph()
    assert time.perf_counter() - started < 10


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_workflows_or_an_input_error(data: bytes) -> None:
    for prefix in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe1",
        b"RIFF\0\0\0\0WEBPEXIF",
        b'{"nodes":[{"id":1,',
    ):
        try:
            for found in read_source(prefix + data):
                found.graph()
        except InputError:
            pass


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damaged_pictures_never_crash(position: int, junk: bytes) -> None:
    texts = {"prompt": json.dumps(API), "workflow": json.dumps(UI)}
    for whole in (png(texts, "iTXt packed"), with_exif("JPEG", {0x010F: f"prompt:{texts['prompt']}"})):
        data = whole[:position] + junk + whole[position + len(junk) :]
        try:
            for found in read_source(data):
                found.graph()
        except InputError:
            pass


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
LINKS = st.tuples(st.text(), st.integers(0, 9)).map(list)
GRAPHS = st.dictionaries(
    st.text(min_size=1),
    st.fixed_dictionaries({
        "class_type": st.text(min_size=1),
        "inputs": st.dictionaries(st.text(), LITERALS | LINKS, max_size=4),
    }),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(GRAPHS)
def test_api_round_trip(prompt: dict[str, Any]) -> None:
    graph = read_source(json.dumps(prompt))[0].graph()
    again = read_source(json.dumps(graph.to_api()))[0].graph()
    assert again.nodes == graph.nodes
    assert again.to_api() == graph.to_api()


def test_reading_workflows_needs_no_tensor_library() -> None:
    script = (
        "import sys, json\n"
        "from loraloom.workflow.sources import read_source\n"
        f"read_source({PAGE!r})\n"
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors', 'yaml', 'typer', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={"PYTHONPATH": "src"}, cwd=Path(__file__).parents[2]
    )


BROKEN = ("a red rose, plain words", '{"1": {"class_type": "Emp', "", "[1, 2]", '"words"')


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("whole", ["prompt", "workflow"])
def test_a_picture_is_read_by_the_text_that_is_whole(whole: str, broken: str) -> None:
    other = "workflow" if whole == "prompt" else "prompt"
    data = png({other: broken, whole: json.dumps(API if whole == "prompt" else UI)})
    (found,) = read_source(data)
    graph = found.graph()
    assert inputs_of(data) == [WANTED]
    assert any(f"'{other}' is no workflow" in note and f"'{whole}' is used" in note for note in graph.notes)


def test_a_picture_whose_prompt_has_a_broken_node_is_read_by_its_workflow() -> None:
    data = png({"prompt": json.dumps({"1": {"class_type": "X", "inputs": 3}}), "workflow": json.dumps(UI)})
    graph = read_source(data)[0].graph()
    assert {key: dict(node.inputs) for key, node in graph.nodes.items()}["1"] == WANTED["1"]
    assert "text 'workflow' is used" in graph.notes[0]


def test_a_picture_whose_texts_are_both_broken_says_why() -> None:
    with pytest.raises(WorkflowError, match="text 'prompt' is not valid JSON"):
        read_source(png({"prompt": "words", "workflow": "{"}))


@pytest.mark.parametrize("comment", ["made by hand", 1, None, ["a"], {}, {"by": "hand"}])
def test_what_is_no_node_is_left_out_of_an_api_workflow(comment: Any) -> None:
    data = {"_comment": comment, **API, "version": 1}
    (found,) = read_source(json.dumps(data))
    graph = found.graph()
    assert list(graph.nodes) == ["1", "2"]
    assert "'_comment', 'version'" in graph.notes[0]
    assert inputs_of(json.dumps({"prompt": data})) == [WANTED]


def test_a_node_without_a_class_is_no_comment() -> None:
    (found,) = read_source(json.dumps({**API, "3": {"inputs": {"x": 1}}}))
    with pytest.raises(WorkflowError, match="node 3 has no class_type"):
        found.graph()


TEXTS = {
    "cp932": "赤い花", "gb18030": "一只红玫瑰", "cp1252": "une fleur fanée", "euc_kr": "빨간 장미",
    "cp1251": "красная роза",
}  # fmt: skip


@pytest.mark.parametrize("encoding", TEXTS)
def test_text_that_is_not_utf_8_is_refused(encoding: str) -> None:
    prompt = {**API, "3": {"class_type": "CLIPTextEncode", "inputs": {"text": TEXTS[encoding]}}}
    data = json.dumps(prompt, ensure_ascii=False).encode(encoding)
    with pytest.raises(InputError, match="not UTF-8 text: byte 0x.*Save it as UTF-8") as caught:
        read_source(data)
    if encoding in ("cp932", "gb18030"):
        assert f"'{TEXTS[encoding]}' in {encoding}" in str(caught.value)


def test_damaged_utf_16_is_refused() -> None:
    with pytest.raises(InputError, match="damaged UTF-16"):
        read_source(json.dumps(API).encode("utf-16") + b"\x00")


def test_a_page_may_say_its_encoding() -> None:
    prompt = {**API, "3": {"class_type": "CLIPTextEncode", "inputs": {"text": TEXTS["cp932"]}}}
    page = f'<html><meta charset="shift_jis"><pre>{json.dumps(prompt, ensure_ascii=False)}</pre>'
    assert inputs_of(page.encode("cp932"))[0]["3"]["text"] == TEXTS["cp932"]


def test_strange_bytes_beside_the_workflow_do_no_harm() -> None:
    assert inputs_of(f"caf\xe9\n{json.dumps(API)}".encode("cp1252")) == [WANTED]


def test_lone_surrogates_in_a_given_text() -> None:
    prompt = {"3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a\ud800b"}}}
    assert inputs_of(json.dumps(prompt, ensure_ascii=False)) == [{"3": {"text": "a\ufffdb"}}]
