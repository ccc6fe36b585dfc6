"""The order in which nodes run, on random graphs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.engine.plan import CycleError, Plan, order
from loraloom.workflow.graph import GraphNode, Link

Edges = dict[int, list[int]]


@st.composite
def acyclic(draw: st.DrawFn) -> Edges:
    count = draw(st.integers(1, 25))
    return {i: draw(st.lists(st.integers(0, i - 1), max_size=3)) if i else [] for i in range(count)}


def _nodes(edges: Edges) -> dict[str, GraphNode]:
    return {
        str(i): GraphNode(str(i), "X", {f"in{k}": Link(str(p), 0) for k, p in enumerate(producers)})
        for i, producers in edges.items()
    }


def _plan(edges: Edges, done: set[str], released: list[str], lazy: frozenset[str] = frozenset()) -> Plan:
    def links(node: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(p) for p in edges[int(node)]))

    return Plan(
        links=links,
        needs=lambda n: () if n in lazy else links(n),
        available=lambda n: n in done,
        urgent=lambda n: int(n) == max(edges),
        release=released.append,
    )


@given(acyclic())
def test_producers_run_first_and_everything_needed_runs_once(edges: Edges) -> None:
    target = str(max(edges))
    needed = order(_nodes(edges), [target])
    done: set[str] = set()
    released: list[str] = []
    ran: list[str] = []
    plan = _plan(edges, done, released)
    plan.add(target)
    while len(plan):
        node = plan.next()
        assert node is not None
        assert all(str(p) in done for p in edges[int(node)])
        assert not any(str(p) in released for p in edges[int(node)])
        ran.append(node)
        done.add(node)
        plan.finish(node)
    assert sorted(ran) == sorted(needed)
    assert sorted(released) == sorted(needed)
    places = {node: place for place, node in enumerate(needed)}
    assert all(places[str(p)] < places[n] for n in needed for p in edges[int(n)])


@given(acyclic(), st.data())
def test_a_cycle_is_found_and_is_one(edges: Edges, data: st.DataObject) -> None:
    nodes = _nodes(edges)
    needed = order(nodes, [str(max(edges))])
    low = data.draw(st.sampled_from(needed))
    high = str(max(edges))
    looped = {**nodes, low: GraphNode(low, "X", {**nodes[low].inputs, "back": Link(high, 0)})}
    with pytest.raises(CycleError) as caught:
        order(looped, [high])
    cycle = caught.value.nodes
    assert cycle[0] == cycle[-1]
    for producer, consumer in zip(cycle, cycle[1:], strict=False):
        assert producer in {link.node for link in looped[consumer].links().values()}


def test_a_lazy_producer_is_added_when_required() -> None:
    edges: Edges = {0: [], 1: [0]}
    done: set[str] = set()
    plan = _plan(edges, done, [], lazy=frozenset({"1"}))
    plan.add("1")
    assert plan.next() == "1"
    plan.require("0", "1")
    plan.postpone("1")
    assert plan.next() == "0"
    assert plan.next() is None
    done.add("0")
    plan.finish("0")
    assert plan.next() == "1"


def test_nodes_that_wait_for_each_other_are_named() -> None:
    edges: Edges = {0: [], 1: [0], 2: [1]}
    done: set[str] = set()
    plan = _plan(edges, done, [])
    plan.add("2")
    assert plan.next() == "0"
    plan.require("2", "0")
    plan.postpone("0")
    assert plan.next() is None
    assert set(plan.cycle()) == {"0", "1", "2"}
