"""What still runs when a node fails, where the run is asked to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.engine.cache import Cache
from loraloom.engine.events import (
    Event,
    NodeFailed,
    NodeFinished,
    Partial,
    RunCancelled,
    RunFailed,
    RunFinished,
)
from loraloom.engine.node import NodeResult, NodeRun, NodeType, Socket, node, node_types
from loraloom.engine.run import run
from loraloom.workflow.graph import Graph, GraphNode, Link, Value
from tests.engine.test_run import NODES, cached, graph, only, shown, started

Any_ = Annotated[object, Socket("*")]
Thing = Annotated["object", Socket("THING")]
_FAILED: list[str] = []


@node("Worse", category="test")
def worse(value: Any_, error: str = "RuntimeError", *, run: NodeRun) -> Thing:
    _FAILED.append(run.node_id)
    raise {"MemoryError": MemoryError, "RuntimeError": RuntimeError}[error]("it cannot be")


@node("Many", category="test")
def many(value: Any_ = 0, **more: object) -> Thing:
    return value


@node("Late", category="test")
async def late(value: Any_) -> Thing:
    await asyncio.sleep(0.05)
    return value


@node("Inside", category="test")
def inside(value: Any_, needed: bool, *, run: NodeRun) -> Thing:
    """One of the nodes in its place fails, which gives its value only where `needed`."""
    source = run.node.inputs["value"]
    nodes = {
        "bad": GraphNode("bad", "Worse", {"value": source}),
        "show": GraphNode("show", "Show", {"value": Link("bad", 0)}),
        "good": GraphNode("good", "Add", {"a": source, "b": 1}),
    }
    return NodeResult((Link("bad" if needed else "good", 0),), expand=Graph(nodes))


OWN: dict[str, NodeType] = {
    **NODES,
    **{t.name: t for value in [*globals().values()] if callable(value) for t in node_types(value)},
}


@pytest.fixture(autouse=True)
def _none_yet() -> Iterator[None]:
    _FAILED.clear()
    yield


def going_on(of: Graph, **options: object) -> list[Event]:
    return [*run(of, OWN, policy="continue_independent", **options)]  # pyright: ignore[reportArgumentType]


def partial(events: list[Event]) -> Partial | None:
    found = only(events, RunFinished)
    assert isinstance(found, RunFinished)
    return found.partial


BRANCHES = graph(
    seed=("Constant", {"value": 7}),
    bad=("Worse", {"value": "seed.0"}),
    after=("Add", {"a": "bad.0"}),
    lost=("Show", {"value": "after.0"}),
    kept=("Show", {"value": "seed.0"}),
)


def test_only_what_needs_the_failed_node_is_left_out() -> None:
    events = going_on(BRANCHES)
    assert shown(events) == {"kept": [7]}
    assert partial(events) == Partial(("bad",), ("after", "lost"), ("lost",), ("kept",))
    failed = only(events, NodeFailed)
    assert isinstance(failed, NodeFailed)
    assert failed.message == "node bad “my bad” (Worse): it cannot be"
    assert failed.blocked == ("after", "lost")


def test_a_run_ends_with_its_first_failure_unless_it_is_asked_to_go_on() -> None:
    events = [*run(BRANCHES, OWN)]
    found = only(events, RunFailed)
    assert isinstance(found, RunFailed)
    assert found.partial is None


def test_a_run_of_which_nothing_is_shown_has_failed() -> None:
    events = going_on(BRANCHES, targets=["lost"])
    found = only(events, RunFailed)
    assert isinstance(found, RunFailed)
    assert found.failure is not None
    assert found.failure.node_id == "bad"
    assert found.partial == Partial(("bad",), ("after", "lost"), ("lost",), ())
    assert len([e for e in events if isinstance(e, NodeFailed)]) == 1


def test_a_lack_of_memory_ends_the_run() -> None:
    nodes = {
        **BRANCHES.nodes,
        "bad": GraphNode("bad", "Worse", {"value": Link("seed", 0), "error": "MemoryError"}),
    }
    events = going_on(Graph(nodes))
    assert isinstance(events[-1], RunFailed)


def test_what_only_a_blocked_node_needed_does_not_run() -> None:
    events = going_on(
        graph(
            seed=("Constant", {"value": 1}),
            bad=("Worse", {"value": "seed.0"}),
            slow=("Late", {"value": "seed.0"}),
            costly=("Add", {"a": "slow.0"}),
            both=("Add", {"a": "bad.0", "b": "costly.0"}),
            lost=("Show", {"value": "both.0"}),
            kept=("Show", {"value": "seed.0"}),
        )
    )
    assert shown(events) == {"kept": [1]}
    assert "costly" not in started(events)


@pytest.mark.parametrize("policy", ["classic", "lru", "none"])
def test_a_node_that_asks_late_for_one_that_has_failed_is_left_out(policy: str) -> None:
    events = going_on(
        graph(
            seed=("Constant", {"value": 1}),
            yes=("Late", {"value": "seed.0"}),
            bad=("Worse", {"value": "seed.0"}),
            lost=("Show", {"value": "bad.0"}),
            pick=("Switch", {"which": "yes.0", "on_true": "bad.0", "on_false": "seed.0"}),
            late=("Show", {"value": "pick.0"}),
            kept=("Show", {"value": "yes.0"}),
        ),
        cache=Cache(policy),  # pyright: ignore[reportArgumentType]
    )
    assert _FAILED == ["bad"]
    assert shown(events) == {"kept": [1]}
    found = partial(events)
    assert found is not None
    assert set(found.blocked) == {"lost", "pick", "late"}


def test_a_failure_inside_an_expansion_is_that_of_the_node_expanded() -> None:
    events = going_on(
        graph(
            seed=("Constant", {"value": 1}),
            inner=("Inside", {"value": "seed.0", "needed": True}),
            lost=("Show", {"value": "inner.0"}),
            kept=("Show", {"value": "seed.0"}),
        )
    )
    assert shown(events) == {"kept": [1]}
    assert partial(events) == Partial(("inner",), ("inner", "lost"), ("lost",), ("kept",))


def test_a_side_branch_of_an_expansion_that_fails_runs_again_next_time() -> None:
    cache = Cache()
    of = graph(
        seed=("Constant", {"value": 1}),
        inner=("Inside", {"value": "seed.0", "needed": False}),
        kept=("Show", {"value": "inner.0"}),
    )
    for time in (1, 2):
        events = going_on(of, cache=cache)
        assert shown(events)["kept"] == [2]
        found = partial(events)
        assert found is not None
        assert (found.failed, found.outputs) == (("inner",), ("kept",))
        assert len(_FAILED) == time
    assert cached(events) >= {"seed"}


def test_a_run_that_is_stopped_after_a_failure_was_stopped() -> None:
    class Token:
        def is_set(self) -> bool:
            return bool(_FAILED)

    of = graph(
        seed=("Constant", {"value": 1}),
        bad=("Worse", {"value": "seed.0"}),
        lost=("Show", {"value": "bad.0"}),
        slow=("Late", {"value": "seed.0"}),
        kept=("Show", {"value": "slow.0"}),
    )
    events = going_on(of, cancel=Token())
    assert isinstance(events[-1], RunCancelled)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.lists(st.lists(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n),
            st.sets(st.integers(0, n - 1), max_size=3),
        )
    )
)
def test_of_any_graph_exactly_those_run_that_need_no_failed_node(
    given: tuple[list[list[int]], set[int]],
) -> None:
    links, bad = given
    needs = {i: sorted({p for p in producers if p < i}) for i, producers in enumerate(links)}
    hopeless: set[int] = set()
    for i, producers in needs.items():
        if hopeless & set(producers) or i in bad:
            hopeless.add(i)
    nodes: dict[str, GraphNode] = {}
    for i, producers in needs.items():
        kind = "Worse" if i in bad else "Many"
        inputs: dict[str, Value] = {"value": Link(f"n{producers[0]}", 0) if producers else 1}
        inputs |= {f"more{k}": Link(f"n{p}", 0) for k, p in enumerate(producers[1:])}
        nodes[f"n{i}"] = GraphNode(f"n{i}", kind, inputs)
        nodes[f"s{i}"] = GraphNode(f"s{i}", "Show", {"value": Link(f"n{i}", 0)})
    events = going_on(Graph(nodes))
    ran = {e.node_id for e in events if isinstance(e, NodeFinished) and e.node_id[0] == "s"}
    assert ran == {f"s{i}" for i in needs if i not in hopeless}
    last = events[-1]
    assert isinstance(last, RunFinished if ran else RunFailed)
    assert (last.partial is not None) == bool(bad)
