"""What a run does with small nodes: the semantics that ComfyUI's node packs rely on."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import threading
import time
import weakref
from collections.abc import Generator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast

import pytest

from loraloom.engine.cache import Cache
from loraloom.engine.events import (
    Event,
    NodeBlocked,
    NodeFailed,
    NodeFinished,
    NodeNote,
    NodeProgress,
    NodesCached,
    NodeStarted,
    NodeWarning,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
)
from loraloom.engine.node import (
    Blocked,
    Files,
    Lazy,
    NodeResult,
    NodeRun,
    NodeType,
    Socket,
    node,
    node_types,
)
from loraloom.engine.run import run
from loraloom.errors import WorkflowError
from loraloom.folders import ModelFolders
from loraloom.workflow.graph import Graph, GraphNode, Link, Value

Any_ = Annotated[object, Socket("*")]
Thing = Annotated["object", Socket("THING")]


LATER: dict[int, Future[int]] = {}
"""What `ReportsLater` waits for."""


class Value_:
    """Something whose life can be watched."""

    def __init__(self, text: str) -> None:
        self.text = text


@node("Constant", category="test")
def constant(value: int = 0) -> int:
    return value


@node("Add", category="test")
def add(a: Any_, b: Any_ = 0) -> Thing:
    assert isinstance(a, int)
    assert isinstance(b, int)
    return a + b


@node("Show", category="test", output_node=True)
def show(value: Any_) -> NodeResult:
    return NodeResult(ui={"shown": [value]})  # pyright: ignore[reportArgumentType]


@node("Numbers", category="test", output_is_list=(True,))
def numbers(count: int) -> list[int]:
    return list(range(count))


@node("Total", category="test", input_is_list=True)
def total(values: list[int]) -> int:
    return sum(values)


def _check_switch(which: bool, on_true: object = None, on_false: object = None) -> list[str]:
    return ["on_true"] if which else ["on_false"]


@node("Switch", category="test", check_lazy=_check_switch)
def switch(
    which: bool,
    on_true: Annotated[object, Socket("*"), Lazy()],
    on_false: Annotated[object, Socket("*"), Lazy()],
) -> Thing:
    return on_true if which else on_false


@node("Fail", category="test")
def fail(value: Any_) -> Thing:
    raise RuntimeError(f"cannot use {value}")


@node("Block", category="test")
def block(value: Any_, blocked: bool, message: str = "") -> Thing:
    return Blocked(message or None) if blocked else value


@node("BlockOdd", category="test")
def block_odd(value: int) -> int | Blocked:
    return Blocked() if value % 2 else value


@node("Sleep", category="test")
async def sleep(value: Any_, seconds: float = 0.2) -> Thing:
    await asyncio.sleep(seconds)
    return value


def _nan() -> float:
    return math.nan


@node("Fresh", category="test", is_changed=_nan)
def fresh() -> int:
    return 1


_state = {"value": 0}


@node("Watched", category="test", is_changed=lambda: _state["value"])
def watched() -> int:
    return _state["value"]


@node("Loop", category="test")
def loop(count: int, value: Any_, *, run: NodeRun) -> Thing:
    """Adds 1 `count` times, one expansion per round."""
    if count == 0:
        return value
    source: Value = run.node.inputs["value"]
    nodes = {
        "add": GraphNode("add", "Add", {"a": source, "b": 1}),
        "loop": GraphNode("loop", "Loop", {"count": count - 1, "value": Link("add", 0)}),
    }
    return NodeResult((Link("loop", 0),), expand=Graph(nodes))


@node("Mixed", category="test", output_is_list=(True,))
def mixed(value: int) -> list[int]:
    """Even values are given as they are, odd ones through an expansion."""
    if value % 2 == 0:
        return NodeResult(([value],))  # pyright: ignore[reportReturnType]
    nodes = {"n": GraphNode("n", "Numbers", {"count": value})}
    return NodeResult((Link("n", 0),), expand=Graph(nodes))  # pyright: ignore[reportReturnType]


@node("Tangle", category="test")
def tangle() -> Thing:
    nodes = {
        "a": GraphNode("a", "Add", {"a": Link("b", 0)}),
        "b": GraphNode("b", "Add", {"a": Link("a", 0)}),
    }
    return NodeResult((Link("a", 0),), expand=Graph(nodes))


@node("OuterTangle", category="test")
def outer_tangle(*, run: NodeRun) -> Thing:
    """Its inner node needs a node that needs this one."""
    nodes = {"a": GraphNode("a", "Add", {"a": Link("after", 0)})}
    return NodeResult((Link("a", 0),), expand=Graph(nodes))


@node("ShowInside", category="test")
def show_inside(value: Any_, *, run: NodeRun) -> Thing:
    nodes = {"show": GraphNode("show", "Show", {"value": run.node.inputs["value"]})}
    return NodeResult((value,), expand=Graph(nodes))


@node("Reports", category="test")
def reports(*, run: NodeRun) -> int:
    run.progress(1, 2)
    run.warn("careful")
    run.note("receipt", {"matched": 3})
    run.progress(2, 2, preview="picture")
    return 5


@node("ReportsLater", category="test")
def reports_later(value: int, *, run: NodeRun) -> int:
    """Notes what `LATER` computes, and what it knows already."""
    run.note_later("receipt", LATER[value], lambda found: {"matched": found})
    run.note("receipt", {"matched": 0})
    return value


@node("Make", category="test")
def make(name: str) -> Thing:
    return Value_(name)


@node("Use", category="test")
def use(value: Any_) -> Thing:
    assert isinstance(value, Value_)
    return Value_(value.text + "'")


@node("Endless", category="test", output_node=True)
def endless(value: Any_, *, run: NodeRun) -> NodeResult:
    for step in itertools.count():
        run.progress(step % 10, 10)
        time.sleep(0.005)
    raise AssertionError


@node("AsyncEndless", category="test", output_node=True)
async def async_endless() -> NodeResult:
    await asyncio.sleep(3600)
    raise AssertionError


@node("LoadText", category="test")
def load_text(name: Annotated[str, Files("loras")], *, run: NodeRun) -> str:
    assert isinstance(run.services, ModelFolders)
    return run.services.resolve("loras", name).read_text()


@node("Counter", category="test", hidden={"unique_id": "UNIQUE_ID"}, is_changed=_nan)
def counter(*, run: NodeRun) -> int:
    kept = run.cached("count", lambda: [0])
    counts = cast("list[int]", kept)
    counts[0] += 1
    return counts[0]


@node("Pair", category="test", outputs=("first", "second"))
def pair(value: int) -> tuple[int, int]:
    return value, value + 1


@node("WrongCount", category="test", outputs=("first", "second"))
def wrong_count() -> tuple[int, int]:
    return (1,)  # pyright: ignore[reportReturnType]


NODES: dict[str, NodeType] = {
    t.name: t for value in [*globals().values()] if callable(value) for t in node_types(value)
}


def graph(**nodes: tuple[str, Mapping[str, Value]]) -> Graph:
    """A graph of nodes by id; a text like "a.0" as an input is a link."""

    def value(given: Value) -> Value:
        if isinstance(given, str) and given.count(".") == 1 and given.split(".")[1].isdigit():
            return Link(given.split(".")[0], int(given.split(".")[1]))
        return given

    return Graph(
        {
            name: GraphNode(name, kind, {k: value(v) for k, v in inputs.items()}, title=f"my {name}")
            for name, (kind, inputs) in nodes.items()
        }
    )


def events_of(of: Graph, **options: object) -> list[Event]:
    return [*run(of, NODES, **options)]  # pyright: ignore[reportArgumentType]


def shown(events: list[Event]) -> dict[str, object]:
    return {e.node_id: e.ui["shown"] for e in events if isinstance(e, NodeFinished) and e.ui}


def started(events: list[Event]) -> list[str]:
    return [e.node_id for e in events if isinstance(e, NodeStarted)]


def cached(events: list[Event]) -> set[str]:
    return {i for e in events if isinstance(e, NodesCached) for i in e.nodes}


def only(events: list[Event], kind: type[Event]) -> Event:
    found = [e for e in events if isinstance(e, kind)]
    assert len(found) == 1, events
    return found[0]


def test_a_chain_gives_its_result_and_its_events() -> None:
    events = events_of(
        graph(a=("Constant", {"value": 4}), b=("Add", {"a": "a.0", "b": 3}), s=("Show", {"value": "b.0"}))
    )
    assert shown(events) == {"s": [7]}
    assert [type(e) for e in events] == [RunStarted, *[NodeStarted, NodeFinished] * 3, RunFinished]
    assert started(events) == ["a", "b", "s"]


def test_ten_thousand_nodes_in_a_row() -> None:
    nodes: dict[str, tuple[str, Mapping[str, Value]]] = {"n0": ("Constant", {"value": 0})}
    for i in range(1, 10_000):
        nodes[f"n{i}"] = ("Add", {"a": f"n{i - 1}.0", "b": 1})
    begin = time.monotonic()
    events = events_of(graph(**nodes, s=("Show", {"value": "n9999.0"})), cache=Cache("classic"))
    assert shown(events) == {"s": [9999]}
    assert time.monotonic() - begin < 10


def test_nodes_that_no_output_needs_are_ignored() -> None:
    events = events_of(
        graph(a=("Constant", {"value": 1}), s=("Show", {"value": "a.0"}), x=("NoSuchClass", {"y": "gone.0"}))
    )
    assert shown(events) == {"s": [1]}


def test_a_needed_node_of_an_unknown_class_is_named() -> None:
    with pytest.raises(WorkflowError, match="node a “my a” .NoSuchClass.: no node class"):
        events_of(graph(a=("NoSuchClass", {}), s=("Show", {"value": "a.0"})))


def test_a_link_to_nowhere_is_named() -> None:
    with pytest.raises(WorkflowError, match="node s .* takes an input from node a, which is not there"):
        events_of(graph(s=("Show", {"value": "a.0"})))


def test_a_graph_without_outputs_is_refused() -> None:
    with pytest.raises(WorkflowError, match="SaveImage"):
        events_of(graph(a=("Constant", {})))


def test_a_cycle_is_reported_before_anything_runs() -> None:
    of = graph(a=("Add", {"a": "b.0"}), b=("Add", {"a": "a.0"}), s=("Show", {"value": "a.0"}))
    with pytest.raises(WorkflowError, match="cycle detected: node a .* → node b .* → node a"):
        events_of(of)


def test_targets_run_only_what_they_need() -> None:
    of = graph(
        a=("Constant", {"value": 1}),
        b=("Constant", {"value": 2}),
        s=("Show", {"value": "a.0"}),
        t=("Show", {"value": "b.0"}),
    )
    events = events_of(of, targets=["t", "a"])
    assert started(events) == ["b", "t"]
    with pytest.raises(WorkflowError, match="none of the wanted"):
        events_of(of, targets=["a"])


def test_an_output_number_that_does_not_exist() -> None:
    failed = only(events_of(graph(a=("Constant", {}), s=("Show", {"value": "a.3"}))), NodeFailed)
    assert isinstance(failed, NodeFailed)
    assert "takes output 3 of node a" in failed.message


@pytest.mark.parametrize(("which", "ran"), [(True, "a"), (False, "b")])
def test_lazy_inputs_are_computed_only_when_asked_for(which: bool, ran: str) -> None:
    of = graph(
        a=("Constant", {"value": 1}),
        b=("Constant", {"value": 2}),
        w=("Switch", {"which": which, "on_true": "a.0", "on_false": "b.0"}),
        s=("Show", {"value": "w.0"}),
    )
    events = events_of(of)
    assert started(events) == [ran, "w", "s"]


def test_a_failing_lazy_input_that_is_not_needed_does_no_harm() -> None:
    of = graph(
        a=("Constant", {"value": 1}),
        b=("Fail", {"value": 2}),
        w=("Switch", {"which": True, "on_true": "a.0", "on_false": "b.0"}),
        s=("Show", {"value": "w.0"}),
    )
    assert shown(events_of(of)) == {"s": [1]}


def test_lists_are_mapped_and_the_shorter_one_repeats_its_last() -> None:
    of = graph(
        a=("Numbers", {"count": 4}),
        b=("Numbers", {"count": 2}),
        c=("Add", {"a": "a.0", "b": "b.0"}),
        s=("Show", {"value": "c.0"}),
        t=("Total", {"values": "c.0"}),
        u=("Show", {"value": "t.0"}),
    )
    assert shown(events_of(of)) == {"s": [0, 2, 3, 4], "u": [9]}


def test_an_empty_list_runs_nothing_and_stays_empty() -> None:
    of = graph(
        a=("Numbers", {"count": 0}),
        c=("Add", {"a": "a.0", "b": 1}),
        t=("Total", {"values": "c.0"}),
        u=("Show", {"value": "t.0"}),
    )
    assert shown(events_of(of)) == {"u": [0]}


def test_several_outputs() -> None:
    assert shown(events_of(graph(a=("Pair", {"value": 3}), s=("Show", {"value": "a.1"})))) == {"s": [4]}


def test_a_wrong_number_of_outputs_fails_the_node() -> None:
    failed = only(events_of(graph(a=("WrongCount", {}), s=("Show", {"value": "a.0"}))), NodeFailed)
    assert isinstance(failed, NodeFailed)
    assert "returned 1 outputs, expected 2" in failed.message


def test_a_failure_says_where_and_why_and_ends_the_run() -> None:
    of = graph(a=("Constant", {"value": 3}), f=("Fail", {"value": "a.0"}), s=("Show", {"value": "f.0"}))
    events = events_of(of)
    failed = events[-2]
    assert isinstance(failed, NodeFailed)
    assert (failed.node_id, failed.class_type, failed.title) == ("f", "Fail", "my f")
    assert failed.message == "node f “my f” (Fail): cannot use 3"
    assert failed.inputs == {"value": [3]}
    assert failed.executed == ("a",)
    last = events[-1]
    assert isinstance(last, RunFailed)
    assert last.failure is failed


def test_a_run_after_a_failure_uses_what_had_finished() -> None:
    cache = Cache()
    events_of(
        graph(a=("Constant", {"value": 3}), f=("Fail", {"value": "a.0"}), s=("Show", {"value": "f.0"})),
        cache=cache,
    )
    events = events_of(
        graph(a=("Constant", {"value": 3}), f=("Add", {"a": "a.0"}), s=("Show", {"value": "f.0"})),
        cache=cache,
    )
    assert cached(events) == {"a"}
    assert started(events) == ["f", "s"]


def test_a_silent_block_stops_what_follows_and_nothing_else() -> None:
    of = graph(
        a=("Constant", {"value": 1}),
        b=("Block", {"value": "a.0", "blocked": True}),
        c=("Add", {"a": "b.0"}),
        s=("Show", {"value": "c.0"}),
        t=("Show", {"value": "a.0"}),
    )
    events = events_of(of)
    assert shown(events) == {"t": [1]}
    assert isinstance(events[-1], RunFinished)
    assert [(e.node_id, e.message) for e in events if isinstance(e, NodeBlocked)] == [
        ("c", None),
        ("s", None),
    ]


def test_a_block_with_a_message_says_it_once() -> None:
    of = graph(
        a=("Constant", {"value": 1}),
        b=("Block", {"value": "a.0", "blocked": True, "message": "no face found"}),
        c=("Add", {"a": "b.0"}),
        s=("Show", {"value": "c.0"}),
    )
    blocked = [e for e in events_of(of) if isinstance(e, NodeBlocked) and e.message]
    assert [(e.node_id, e.message) for e in blocked] == [("c", "no face found")]


def test_blocked_items_of_a_list_are_left_out() -> None:
    of = graph(a=("Numbers", {"count": 5}), b=("BlockOdd", {"value": "a.0"}), s=("Show", {"value": "b.0"}))
    assert shown(events_of(of)) == {"s": [0, 2, 4]}


def test_async_nodes_wait_at_the_same_time() -> None:
    of = graph(
        a=("Sleep", {"value": 1, "seconds": 0.4}),
        b=("Sleep", {"value": 2, "seconds": 0.4}),
        c=("Add", {"a": "a.0", "b": "b.0"}),
        s=("Show", {"value": "c.0"}),
    )
    begin = time.monotonic()
    assert shown(events_of(of)) == {"s": [3]}
    assert time.monotonic() - begin < 0.75


def test_async_calls_over_a_list_overlap_and_keep_their_order() -> None:
    of = graph(
        n=("Numbers", {"count": 5}),
        a=("Sleep", {"value": "n.0", "seconds": 0.2}),
        s=("Show", {"value": "a.0"}),
    )
    begin = time.monotonic()
    assert shown(events_of(of)) == {"s": [0, 1, 2, 3, 4]}
    assert time.monotonic() - begin < 0.7


def test_a_failure_stops_waiting_async_nodes() -> None:
    of = graph(
        a=("AsyncEndless", {}),
        f=("Fail", {"value": 3}),
        s=("Show", {"value": "f.0"}),
    )
    begin = time.monotonic()
    assert isinstance(events_of(of)[-1], RunFailed)
    assert time.monotonic() - begin < 2


def test_unchanged_nodes_do_not_run_again() -> None:
    cache = Cache()
    of = graph(a=("Constant", {"value": 1}), b=("Add", {"a": "a.0", "b": 2}), s=("Show", {"value": "b.0"}))
    events_of(of, cache=cache)
    again = events_of(of, cache=cache)
    assert started(again) == []
    assert cached(again) == {"a", "b", "s"}
    assert shown(again) == {"s": [3]}
    changed = events_of(of.with_inputs("b", {"b": 5}), cache=cache)
    assert started(changed) == ["b", "s"]
    assert shown(changed) == {"s": [6]}


def test_titles_and_ids_do_not_matter_to_the_cache() -> None:
    cache = Cache()
    events_of(graph(a=("Constant", {"value": 1}), s=("Show", {"value": "a.0"})), cache=cache)
    assert (
        started(events_of(graph(x=("Constant", {"value": 1}), y=("Show", {"value": "x.0"})), cache=cache))
        == []
    )


def test_the_classic_cache_forgets_what_the_last_run_did_not_have() -> None:
    cache = Cache()
    one = graph(a=("Constant", {"value": 1}), s=("Show", {"value": "a.0"}))
    two = graph(a=("Constant", {"value": 2}), s=("Show", {"value": "a.0"}))
    for of in (one, two):
        events_of(of, cache=cache)
    assert started(events_of(one, cache=cache)) == ["a", "s"]


def test_the_lru_cache_remembers_older_runs_up_to_its_limit() -> None:
    cache = Cache("lru", 4)
    graphs = [graph(a=("Constant", {"value": i}), s=("Show", {"value": "a.0"})) for i in range(3)]
    for of in graphs[:2]:
        events_of(of, cache=cache)
    assert started(events_of(graphs[0], cache=cache)) == []
    events_of(graphs[2], cache=cache)
    assert started(events_of(graphs[1], cache=cache)) == ["a", "s"]


def test_no_cache_frees_values_as_soon_as_nothing_needs_them() -> None:
    living: list[weakref.ref[object]] = []
    most = 0

    @node("Track", category="test")
    def track(value: Annotated[object, Socket("*")]) -> Annotated[object, Socket("*")]:
        nonlocal most
        result = Value_("x")
        living.append(weakref.ref(result))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in living))
        return result

    nodes = {**NODES, **{t.name: t for t in node_types(track)}}
    names: dict[str, tuple[str, Mapping[str, Value]]] = {"n0": ("Track", {"value": 1})}
    for i in range(1, 30):
        names[f"n{i}"] = ("Track", {"value": f"n{i - 1}.0"})
    of = graph(**names, e=("Block", {"value": "n29.0", "blocked": True}), s=("Show", {"value": "e.0"}))
    assert isinstance([*run(of, nodes, cache=Cache("none"))][-1], RunFinished)
    assert most <= 2
    del of
    gc.collect()
    assert not any(ref() for ref in living)


def test_is_changed_decides() -> None:
    cache = Cache()
    always = graph(
        a=("Fresh", {}),
        b=("Constant", {"value": 1}),
        c=("Add", {"a": "a.0", "b": "b.0"}),
        s=("Show", {"value": "c.0"}),
    )
    events_of(always, cache=cache)
    again = events_of(always, cache=cache)
    assert cached(again) == {"b"}
    assert started(again) == ["a", "c", "s"]
    of = graph(a=("Watched", {}), s=("Show", {"value": "a.0"}))
    events_of(of, cache=cache)
    assert started(events_of(of, cache=cache)) == []
    _state["value"] += 1
    assert started(events_of(of, cache=cache)) == ["a", "s"]


def test_an_overwritten_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    file = tmp_path / "loras" / "x.safetensors"
    file.write_text("one")
    folders, cache = ModelFolders([tmp_path]), Cache()
    of = graph(a=("LoadText", {"name": "x.safetensors"}), s=("Show", {"value": "a.0"}))
    first = events_of(of, cache=cache, services=folders, find_file=folders.find)
    assert shown(first) == {"s": ["one"]}
    assert started(events_of(of, cache=cache, services=folders, find_file=folders.find)) == []
    file.write_text("three")
    assert shown(events_of(of, cache=cache, services=folders, find_file=folders.find)) == {"s": ["three"]}


def test_notes_and_warnings_are_said_again_for_cached_nodes() -> None:
    cache = Cache()
    of = graph(a=("Reports", {}), s=("Show", {"value": "a.0"}))
    for events in (events_of(of, cache=cache), events_of(of, cache=cache)):
        note, warning = only(events, NodeNote), only(events, NodeWarning)
        assert isinstance(note, NodeNote)
        assert isinstance(warning, NodeWarning)
        assert (note.node_id, note.kind, note.payload) == ("a", "receipt", {"matched": 3})
        assert warning.message == "careful"


def test_a_note_may_come_after_its_node() -> None:
    """Only who asks for notes waits for it; then notes come in their order, also when they are kept."""
    LATER[1] = Future[int]()
    cache = Cache()
    stream = run(graph(a=("ReportsLater", {"value": 1}), s=("Show", {"value": "a.0"})), NODES, cache=cache)
    seen: list[Event] = []
    for event in stream:
        seen.append(event)
        if isinstance(event, NodeFinished) and event.node_id == "s":
            assert not [e for e in seen if isinstance(e, NodeNote)]
            LATER[1].set_result(7)
    assert [e.payload for e in seen if isinstance(e, NodeNote)] == [{"matched": 7}, {"matched": 0}]
    again = events_of(graph(a=("ReportsLater", {"value": 1}), s=("Show", {"value": "a.0"})), cache=cache)
    assert [e.payload for e in again if isinstance(e, NodeNote)] == [{"matched": 7}, {"matched": 0}]


def test_who_asks_for_notes_waits_for_them() -> None:
    LATER[2] = Future[int]()
    threading.Timer(0.2, lambda: LATER[2].set_result(7)).start()
    nodes = {**NODES, **{t.name: t for t in node_types(notes_so_far)}}
    events = [*run(graph(a=("ReportsLater", {"value": 2}), n=("Notes", {"value": "a.0"})), nodes)]
    assert shown(events)["n"] == [{"matched": 7}, {"matched": 0}]
    kinds = [type(event) for event in events]
    assert kinds.index(NodeNote) < len(kinds) - 1 - kinds[::-1].index(NodeFinished)


def test_a_run_that_is_stopped_waits_for_no_note() -> None:
    LATER[3] = Future[int]()
    cancel = threading.Event()
    of = graph(a=("ReportsLater", {"value": 3}), s=("Show", {"value": "a.0"}))
    last = None
    for last in run(of, NODES, cancel=cancel):
        if isinstance(last, NodeFinished):
            cancel.set()
    assert isinstance(last, RunCancelled)


def test_progress_carries_previews() -> None:
    events = events_of(graph(a=("Reports", {}), s=("Show", {"value": "a.0"})))
    found = [(e.value, e.total, e.preview) for e in events if isinstance(e, NodeProgress)]
    assert found == [(1, 2, None), (2, 2, "picture")]


def test_a_node_keeps_things_between_runs_as_long_as_it_is_in_the_graph() -> None:
    cache = Cache()
    of = graph(a=("Counter", {}), s=("Show", {"value": "a.0"}))
    assert [shown(events_of(of, cache=cache))["s"] for _ in range(3)] == [[1], [2], [3]]
    events_of(graph(b=("Constant", {}), s=("Show", {"value": "b.0"})), cache=cache)
    assert shown(events_of(of, cache=cache)) == {"s": [1]}


def test_expansion_takes_the_place_of_a_node() -> None:
    of = graph(
        c=("Constant", {"value": 10}), a=("Loop", {"count": 4, "value": "c.0"}), s=("Show", {"value": "a.0"})
    )
    events = events_of(of)
    assert shown(events) == {"s": [14]}
    inner = [e for e in events if isinstance(e, NodeFinished) and e.node_id.startswith("a.")]
    assert len(inner) == 8
    assert {e.display_id for e in inner} == {"a"}
    assert inner[0].parent_id is not None


def test_a_long_loop_by_expansion() -> None:
    of = graph(
        c=("Constant", {"value": 0}), a=("Loop", {"count": 300, "value": "c.0"}), s=("Show", {"value": "a.0"})
    )
    assert shown(events_of(of)) == {"s": [300]}


def test_expanded_nodes_are_cached_too() -> None:
    cache = Cache()
    of = graph(
        c=("Constant", {"value": 1}), a=("Loop", {"count": 3, "value": "c.0"}), s=("Show", {"value": "a.0"})
    )
    events_of(of, cache=cache)
    assert started(events_of(of, cache=cache)) == []


def test_some_calls_may_expand_and_others_not() -> None:
    of = graph(n=("Numbers", {"count": 5}), m=("Mixed", {"value": "n.0"}), s=("Show", {"value": "m.0"}))
    assert shown(events_of(of)) == {"s": [0, 0, 2, 0, 1, 2, 4]}


def test_outputs_inside_an_expansion_run() -> None:
    of = graph(a=("Constant", {"value": 9}), e=("ShowInside", {"value": "a.0"}), s=("Show", {"value": "e.0"}))
    assert shown(events_of(of)) == {"e.0.show": [9], "s": [9]}


@pytest.mark.parametrize("kind", ["Tangle", "OuterTangle"])
def test_a_cycle_made_by_expansion_is_reported(kind: str) -> None:
    of = graph(t=(kind, {}), after=("Add", {"a": "t.0"}), s=("Show", {"value": "after.0"}))
    events = events_of(of)
    last = events[-1]
    assert isinstance(last, RunFailed)
    assert "cycle detected" in str(last.error)
    assert isinstance(events[-2], NodeFailed)


def test_cancel_inside_a_node() -> None:
    cancel = threading.Event()
    seen: list[Event] = []
    for event in run(graph(e=("Endless", {"value": 1})), NODES, cancel=cancel):
        seen.append(event)
        if isinstance(event, NodeProgress):
            cancel.set()
    last = seen[-1]
    assert isinstance(last, RunCancelled)
    assert last.node_id == "e"


def test_cancel_while_an_async_node_waits() -> None:
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    begin = time.monotonic()
    events = [*run(graph(e=("AsyncEndless", {})), NODES, cancel=cancel)]
    assert isinstance(events[-1], RunCancelled)
    assert time.monotonic() - begin < 2


def test_cancel_before_the_start() -> None:
    cancel = threading.Event()
    cancel.set()
    events = [*run(graph(a=("Constant", {}), s=("Show", {"value": "a.0"})), NODES, cancel=cancel)]
    assert started(events) == []
    assert isinstance(events[-1], RunCancelled)


def test_closing_the_events_stops_the_run() -> None:
    running = cast("Generator[Event, None, None]", run(graph(e=("Endless", {"value": 1})), NODES))
    next(running)
    running.close()
    assert not any(t.name == "loraloom-run" for t in threading.enumerate())


@node("Notes", category="test", output_node=True)
def notes_so_far(value: Any_, *, run: NodeRun) -> NodeResult:
    return NodeResult(ui={"shown": [*run.notes("receipt")]})


def test_a_node_reads_the_notes_of_those_it_depends_on() -> None:
    cache = Cache()
    nodes = {**NODES, **{t.name: t for t in node_types(notes_so_far)}}
    of = graph(
        a=("Reports", {}), b=("Constant", {}), n=("Notes", {"value": "a.0"}), m=("Notes", {"value": "b.0"})
    )
    for changed in (of, of.with_inputs("n", {"value": Link("a", 0), "again": 1})):
        assert shown([*run(changed, nodes, cache=cache)]) == {"n": [{"matched": 3}], "m": []}


def test_nodes_run_inside_the_given_context() -> None:
    entered: list[str] = []

    @contextmanager
    def inside() -> Generator[None, None, None]:
        entered.append(threading.current_thread().name)
        yield
        entered.append("left")

    of = graph(a=("Constant", {}), s=("Show", {"value": "a.0"}))
    assert isinstance([*run(of, NODES, inside=inside)][-1], RunFinished)
    assert entered == ["loraloom-run", "left"]
