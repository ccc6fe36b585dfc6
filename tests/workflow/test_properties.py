"""What holds for every workflow, not only for those that a test lists."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.workflow.drawing import DrawSettings, LoraUse, graph_of, settings_of
from loraloom.workflow.edit import Assignment, read_assignment
from loraloom.workflow.implemented import implemented_schemas
from loraloom.workflow.insert_lora import LoraChoice, insert_loras, read_lora_choice
from loraloom.workflow.json_text import nesting
from loraloom.workflow.pictures import picture_texts
from loraloom.workflow.prompt_text import choose, date_text, fill
from loraloom.workflow.ui_format import parse_ui
from tests.workflow.pictures_samples import png
from tests.workflow.ui_samples import Ui, host, link, node, subgraph, workflow

# ---- Editor workflows ----

Pairs = list[tuple[int, int]]
PAIRS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=8)
SOCKETS = ("conditioning_1", "conditioning_2")


def edges(pairs: Pairs) -> dict[int, tuple[int, int]]:
    """Node → the two that it joins: nodes are numbered from 1, and each joins nodes before it."""
    return {at: (a % (at - 1) + 1, b % (at - 1) + 1) for at, (a, b) in enumerate(pairs, 2)}


def api_of(joined: dict[int, tuple[int, int]], name: dict[int, str]) -> dict[str, Any]:
    first = {name[1]: ("CLIPTextEncode", {"text": "a"})}
    return first | {
        name[at]: ("ConditioningCombine", {s: [name[o], 0] for s, o in zip(SOCKETS, of, strict=True)})
        for at, of in joined.items()
    }


def read(ui: Ui) -> dict[str, Any]:
    api = parse_ui(ui).to_api()
    return {key: (entry["class_type"], entry["inputs"]) for key, entry in cast("dict[str, Any]", api).items()}


def joining(at: int, links: list[int | None]) -> Ui:
    sockets = [(s, "CONDITIONING", number) for s, number in zip(SOCKETS, links, strict=True)]
    return node(at, "ConditioningCombine", inputs=sockets, outputs=["CONDITIONING"])


def text_node() -> Ui:
    return node(1, "CLIPTextEncode", values=["a"], outputs=["CONDITIONING"])


@settings(max_examples=60)
@given(PAIRS, st.sets(st.integers(0, 15)))
def test_reroutes_on_any_links_change_nothing(pairs: Pairs, rerouted: set[int]) -> None:
    joined, numbers = edges(pairs), itertools.count(1)
    nodes, links = [text_node()], list[Any]()
    for at, of in joined.items():
        into: list[int | None] = []
        for slot, origin in enumerate(of):
            place = len(links)
            into.append(next(numbers))
            if place in rerouted:
                first = next(numbers)
                nodes.append(node(1000 + place, "Reroute", inputs=[("", "*", first)], outputs=["*"]))
                links.append(link(first, origin, 0, 1000 + place, 0))
                origin = 1000 + place
            links.append(link(cast(int, into[-1]), origin, 0, at, slot))
        nodes.append(joining(at, into))
    names = {at: str(at) for at in (1, *joined)}
    assert read(workflow(*nodes, links=links)) == api_of(joined, names)


@settings(max_examples=60)
@given(PAIRS.filter(bool), st.integers(0, 99), st.integers(0, 99))
def test_nodes_that_are_put_into_a_subgraph_mean_the_same(pairs: Pairs, low: int, high: int) -> None:
    """Those from `low` to `high` go into a subgraph; each link that crosses its border gets a socket."""
    joined = edges(pairs)
    low = low % len(joined) + 2
    inside = range(low, low + high % (len(joined) + 2 - low) + 1)
    numbers = itertools.count(1)
    outer_nodes, outer_links, inner_nodes, inner_links = [text_node()], list[Any](), list[Ui](), list[Any]()
    entering: list[tuple[str, str, int]] = []
    leaving: dict[int, int] = {}
    for at, of in joined.items():
        into: list[int | None] = []
        for slot, origin in enumerate(of):
            number = next(numbers)
            into.append(number)
            if at not in inside and origin in inside:
                place = leaving.setdefault(origin, len(leaving))
                outer_links.append(link(number, 500, place, at, slot))
            elif at in inside and origin not in inside:
                inner_links.append(link(number, -10, len(entering), at, slot))
                outside = next(numbers)
                outer_links.append(link(outside, origin, 0, 500, len(entering)))
                entering.append((f"in{len(entering)}", "CONDITIONING", outside))
            else:
                (inner_links if at in inside else outer_links).append(link(number, origin, 0, at, slot))
        (inner_nodes if at in inside else outer_nodes).append(joining(at, into))
    for origin, place in leaving.items():
        inner_links.append(link(next(numbers), origin, 0, -20, place))
    definition = subgraph(
        "sub", *inner_nodes, inputs=[(name, kind) for name, kind, _ in entering],
        outputs=[(f"out{place}", "CONDITIONING") for place in leaving.values()], links=inner_links,
    )  # fmt: skip
    stand_in = host(500, "sub", inputs=entering, outputs=["CONDITIONING"] * len(leaving))
    ui = workflow(*outer_nodes, stand_in, links=outer_links, definitions=[definition])
    names = {at: f"500:{at}" if at in inside else str(at) for at in (1, *joined)}
    assert read(ui) == api_of(joined, names)


# ---- Drawings and LoRAs ----

FILES = st.text(st.characters(codec="utf-8", exclude_characters=":\\"), min_size=1, max_size=9)
STRENGTHS = st.floats(-100, 100).map(lambda x: x + 0.0)  # no negative zero
LORAS = st.lists(st.builds(LoraUse, FILES, STRENGTHS, st.none() | STRENGTHS, st.booleans()), max_size=4)
DRAWINGS = st.builds(
    DrawSettings, base=FILES, prompt=st.text(), negative=st.text(), vae=st.just("") | FILES,
    width=st.integers(1, 9999), height=st.integers(1, 9999), count=st.integers(1, 9),
    steps=st.integers(1, 99), cfg=st.floats(0, 100), seed=st.integers(0, 2**64 - 1), sampler=FILES,
    scheduler=FILES,
    denoise=st.floats(0, 1), loras=LORAS.map(tuple),
)  # fmt: skip


def in_use(loras: tuple[LoraUse, ...]) -> list[tuple[str, float, float]]:
    return [(one.name, one.model, one.model if one.clip is None else one.clip) for one in loras if one.on]


@settings(max_examples=60)
@given(DRAWINGS)
def test_a_drawing_comes_back_from_its_workflow(drawn: DrawSettings) -> None:
    again = settings_of(graph_of(drawn))
    assert again is not None and in_use(again.loras) == in_use(drawn.loras)
    assert replace(again, loras=()) == replace(drawn, loras=())


@settings(max_examples=40)
@given(DRAWINGS, st.lists(st.builds(LoraChoice, FILES, STRENGTHS, st.none() | STRENGTHS), max_size=4))
def test_loras_from_outside_come_before_those_of_the_workflow(
    drawn: DrawSettings, choices: list[LoraChoice]
) -> None:
    before = graph_of(drawn)
    after = insert_loras(before, implemented_schemas(), choices)
    found = settings_of(after)
    added = tuple(LoraUse(one.name, one.model, one.clip) for one in choices)
    assert found is not None and in_use(found.loras) == in_use(added) + in_use(drawn.loras)
    assert all(after.nodes[key].class_type == entry.class_type for key, entry in before.nodes.items())
    links = [link for entry in after.nodes.values() for link in entry.links().values()]
    assert all(link.node in after.nodes for link in links)


@given(FILES.filter(str.strip), STRENGTHS, STRENGTHS)
def test_a_lora_is_written_as_file_and_strengths(name: str, model: float, clip: float) -> None:
    assert read_lora_choice(f"{name}:{model!r}:{clip!r}") == LoraChoice(name, model, clip)
    assert read_lora_choice(f"{name}:{model!r}") == LoraChoice(name, model)
    assert read_lora_choice(name) == LoraChoice(name)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="=."), min_size=1).filter(str.strip)


@given(WORDS, WORDS, st.text())
def test_an_assignment_is_its_three_parts(name: str, socket: str, value: str) -> None:
    wanted = Assignment(name.strip(), socket.strip(), value)
    assert read_assignment(f"{name}.{socket}={value}") == wanted
    assert read_assignment(f"a.{name}.{socket}={value}").node == f"a.{name}".strip()


# ---- Texts ----

Choice = tuple[str, frozenset[str]]
"""A text with choices, and all that it may become."""
LETTERS = st.text("ab ,", max_size=3).map(lambda text: (text, frozenset([text])))
SIGNS = st.sampled_from("{|}").map(lambda sign: (f"\\{sign}", frozenset([sign])))


def _one_of(options: list[Choice]) -> Choice:
    return f"{{{'|'.join(text for text, _ in options)}}}", frozenset().union(*(o for _, o in options))


def _joined(parts: list[Choice]) -> Choice:
    shown = [(text, outcomes) if len(outcomes) <= 4 else ("", frozenset([""])) for text, outcomes in parts]
    ways = itertools.product(*(sorted(outcomes) for _, outcomes in shown))
    return "".join(text for text, _ in shown), frozenset("".join(way) for way in ways)


CHOICES = st.recursive(
    LETTERS | SIGNS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(_one_of)
        | st.lists(inner, min_size=1, max_size=3).map(_joined)
    ),
    max_leaves=8,
)


@settings(max_examples=100)
@given(CHOICES, st.integers())
def test_of_every_choice_one_option_is_taken(choice: Choice, seed: int) -> None:
    text, outcomes = choice
    assert choose(text, random.Random(seed)) in outcomes
    assert choose(text, random.Random(seed)) == choose(text, random.Random(seed))


@given(st.text(), st.integers())
def test_a_text_without_choices_stays_as_it_is(text: str, seed: int) -> None:
    chosen = choose(text, random.Random(seed))
    if not set(text) & set("{}|\\/"):
        assert chosen == text
    assert fill(text, lambda node, widget: None, datetime(2026, 1, 2)) == text or "%date:" in text


@given(st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31)), st.text() | st.floats() | st.integers())
def test_names_of_files_are_filled_in_with_what_a_name_may_hold(now: datetime, value: object) -> None:
    now = now.replace(microsecond=0)
    assert datetime.strptime(date_text("yyyy-MM-dd hh-mm-ss", now), "%Y-%m-%d %H-%M-%S") == now
    name = fill("a_%Some node.widget%_%date:d%_%kept%", lambda node, widget: value, now)
    assert name.startswith("a_") and name.endswith(f"_{now.day}_%kept%")
    assert not set(name) & set('/?<>\\:*|"\n\r\t\0\x7f')


Nested = Any
NESTED: st.SearchStrategy[Nested] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('[]{}"\\a', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[{"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


def depth(value: Nested) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max((depth(one) for one in cast("list[Nested]", [*inner])), default=0)


@settings(max_examples=100)
@given(NESTED)
def test_how_deep_json_is_nested_is_told_by_its_text(value: Nested) -> None:
    assert nesting(json.dumps(value)) == depth(value)
    assert nesting(json.dumps(value, indent=2, ensure_ascii=False)) == depth(value)


KEYWORDS = st.text("abcdefghijklmnopqrstuvwxyz_ ", min_size=1, max_size=20).filter(lambda t: t == t.strip())
KINDS = ("tEXt", "zTXt", "iTXt", "iTXt packed")


@settings(max_examples=60)
@given(
    st.dictionaries(KEYWORDS, st.text(st.characters(codec="utf-8"), max_size=60), max_size=4),
    st.sampled_from(KINDS),
)
def test_texts_in_a_png_come_back_from_every_kind_of_chunk(texts: dict[str, str], kind: str) -> None:
    assert picture_texts(png(texts, kind)) == texts
