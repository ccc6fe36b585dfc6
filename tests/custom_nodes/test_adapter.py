"""Runs of pack nodes: the semantics of ComfyUI's contract."""

from __future__ import annotations

import threading
from typing import Annotated

import pytest
import torch

from loraloom.custom_nodes.load import Packs
from loraloom.engine.cache import Cache
from loraloom.engine.events import (
    NodeBlocked,
    NodeFailed,
    NodeProgress,
    NodesCached,
    RunCancelled,
    RunFailed,
    RunFinished,
)
from loraloom.engine.node import NodeResult, NodeType, Socket, node, node_types
from loraloom.engine.run import run
from loraloom.sampling.types import Cond
from tests.custom_nodes.graphs import Nodes, events, graph, shown, started


@pytest.mark.parametrize("mix", ["TpLazyMix", "TpAsyncLazyMix"])
@pytest.mark.parametrize(("share", "result", "ran"), [(0.0, 4, {"a"}), (1.0, 8, {"b"}), (0.5, 6, {"a", "b"})])
def test_lazy_inputs_run_only_when_asked_for(
    nodes: Nodes, mix: str, share: float, result: float, ran: set[str]
) -> None:
    said = events(
        nodes,
        graph(
            a=("TpNumber", {"value": 4}),
            b=("TpNumber", {"value": 8}),
            mix=(mix, {"a": ("a", 0), "b": ("b", 0), "share": share}),
            show=("TpShow", {"value": ("mix", 0)}),
        ),
    )
    assert shown(said) == {"show": [result]}
    assert started(said) & {"a", "b"} == ran


def test_wildcards_and_lists(nodes: Nodes) -> None:
    said = events(
        nodes,
        graph(
            many=("TpNumbers", {"count": 4}),
            same=("TpPassthrough", {"value": ("many", 0)}),
            total=("TpTotal", {"values": ("same", 0)}),
            each=("TpShow", {"value": ("same", 0)}),
            sum=("TpShow", {"value": ("total", 0)}),
            who=("TpShow", {"value": ("total", 1)}),
        ),
    )
    assert shown(said) == {"each": [0, 1, 2, 3], "sum": [6], "who": ["total"]}


def test_undeclared_inputs_are_passed_when_linked(nodes: Nodes) -> None:
    said = events(
        nodes,
        graph(
            n=("TpNumber", {"value": 4}),
            mean=("TpAverage", {"first": 1, "second": ("n", 0), "third": ("n", 0), "literal": 100}),
            # The function does not take it: it is left out.
            scale=("TpScale", {"value": ("mean", 0), "factor": 1, "more": ("n", 0)}),
            open=("TpSwitches", {"lora_1": {"on": True}, "second": ("n", 0)}),
            show=("TpShow", {"value": ("scale", 0)}),
            texts=("TpShow", {"value": ("open", 0)}),
        ),
    )
    assert shown(said) == {"show": [3.0], "texts": ["lora_1={'on': True}, second=4"]}


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_loop_by_expansion(nodes: Nodes, times: int) -> None:
    said = events(
        nodes,
        graph(
            begin=("TpRepeatBegin", {"times": times, "value": 3}),
            double=("TpScale", {"value": ("begin", 2), "factor": ("begin", 1)}),
            end=("TpRepeatEnd", {"flow": ("begin", 0), "times": ("begin", 1), "value": ("double", 0)}),
            show=("TpShow", {"value": ("end", 0)}),
        ),
    )
    # The factor counts down from `times` to 1.
    factorial = {1: 1, 2: 2, 5: 120}[times]
    assert shown(said) == {"show": [3 * factorial]}


def test_hidden_inputs_get_the_values_that_they_are_given(nodes: Nodes) -> None:
    said = events(
        nodes,
        graph(
            five=("TpNumber", {"value": 5}),
            literal=("TpCountdown", {"turns": 0, "left": 3, "me": "not me"}),
            linked=("TpCountdown", {"turns": 0, "left": ("five", 0)}),
            a=("TpShow", {"value": ("literal", 0)}),
            b=("TpShow", {"value": ("linked", 0)}),
        ),
    )
    assert shown(said) == {"a": [3], "b": [5]}


def test_an_expansion_without_end_is_an_error(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraloom.engine.execution.MAX_EXPANSIONS", 200)
    endless = graph(n=("TpCountdown", {"turns": 0}), show=("TpShow", {"value": ("n", 0)}))
    failed = [e for e in events(nodes, endless) if isinstance(e, NodeFailed)]
    assert "does a loop not end?" in failed[0].message
    monkeypatch.setattr("loraloom.engine.execution.MAX_NODES", 50)
    failed = [e for e in events(nodes, endless) if isinstance(e, NodeFailed)]
    assert "at most 50" in failed[0].message


def test_some_items_expand_and_some_do_not(nodes: Nodes) -> None:
    said = events(
        nodes,
        graph(
            many=("TpNumbers", {"count": 4}),
            twice=("TpTwice", {"value": ("many", 0)}),
            results=("TpShow", {"value": ("twice", 0)}),
            literals=("TpShow", {"value": ("twice", 1)}),
        ),
    )
    assert shown(said) == {"results": [0.0, 2.0, 4.0, 6.0], "literals": [0, 1, 2, 3]}


def test_an_expansion_may_give_back_what_it_was_linked_to(nodes: Nodes) -> None:
    said = events(
        nodes,
        graph(
            n=("TpNumber", {"value": 4}),
            reuse=("TpReuseInput", {"value": ("n", 0)}),
            show=("TpShow", {"value": ("reuse", 0)}),
        ),
    )
    assert shown(said) == {"reuse": [4], "show": [4]}


def test_async_nodes_sleep_at_the_same_time(nodes: Nodes) -> None:
    said = events(
        nodes,
        graph(
            both=("TpSleepBoth", {"seconds": 0.3}),
            alone=("TpSleep", {"value": "x", "seconds": 0.3}),
            first=("TpShow", {"value": ("both", 0)}),
            second=("TpShow", {"value": ("both", 1)}),
            third=("TpShow", {"value": ("alone", 0)}),
        ),
    )
    assert shown(said) == {"first": [[1]], "second": [[2]], "third": ["x"]}
    progress = [(e.value, e.display_id) for e in said if isinstance(e, NodeProgress)]
    # All have begun before the first has slept.
    assert sorted(progress) == sorted((n, i) for n in (1, 2) for i in ("alone", "both", "both"))
    assert [value for value, _ in progress] == [1, 1, 1, 2, 2, 2]


def test_blocked_items_of_a_list_stop_only_themselves(nodes: Nodes) -> None:
    said = events(
        nodes,
        graph(
            many=("TpNumbers", {"count": 4}),
            block=("TpBlock", {"value": ("many", 0), "message": "odd"}),
            scale=("TpScale", {"value": ("block", 0), "factor": 10}),
            show=("TpShow", {"value": ("scale", 0)}),
        ),
    )
    assert shown(said) == {"show": [0, 20]}
    assert [e.message for e in said if isinstance(e, NodeBlocked) and e.message] == ["odd", "odd"]
    assert isinstance(said[-1], RunFinished)


@pytest.mark.parametrize("later", [False, True])
def test_a_failure_names_its_node_and_the_next_run_is_fine(nodes: Nodes, later: bool) -> None:
    cache = Cache()
    bad = graph(fail=("TpFail", {"value": 3, "later": later}), show=("TpShow", {"value": ("fail", 0)}))
    said = events(nodes, bad, cache)
    (failed,) = [e for e in said if isinstance(e, NodeFailed)]
    assert failed.node_id == "fail" and "cannot use 3" in failed.message
    assert isinstance(said[-1], RunFailed)
    assert shown(events(nodes, graph(show=("TpShow", {"value": 3})), cache)) == {"show": [3]}


def test_hidden_inputs(nodes: Nodes) -> None:
    said = events(nodes, graph(a=("TpHidden", {}), b=("TpHidden", {})))
    ui = {e.node_id: e.ui["said"] for e in said if hasattr(e, "ui")}  # type: ignore[attr-defined]
    assert ui == {"a": ["a", "a", "b", "page"], "b": ["b", "a", "b", "page"]}


def test_conditioning_crosses_the_border_both_ways(nodes: Nodes) -> None:
    seen: list[object] = []
    wanted = graph(
        one=("TpMakeConditioning", {"tokens": 2}),
        any=("TpPassthrough", {"value": ("one", 0)}),
        changed=("TpSetStrength", {"conditioning": ("any", 0), "strength": 0.25}),
        both=("TpCombined", {"a": ("changed", 0), "b": ("one", 0)}),
        show=("Keep", {"value": ("both", 0)}),
    )
    said = events({**nodes, "Keep": _keeper(seen)}, wanted)
    assert isinstance(said[-1], RunFinished)
    ((first, second),) = seen  # type: ignore[misc]
    assert isinstance(first, Cond) and isinstance(second, Cond)
    assert first.context.shape == (1, 2, 4) and torch.equal(first.pooled, torch.ones(1, 2))  # type: ignore[arg-type]
    # What a pack changes in its own copy changes nothing elsewhere.
    assert (first.options["strength"], second.options["strength"]) == (0.25, 0.5)
    assert "pooled_output" not in first.options


def test_outputs_that_a_function_leaves_out_block_what_needs_them(nodes: Nodes) -> None:
    wanted = {
        f"{name}{slot}": ("TpShow", {"value": (name, slot)}) for name in ("three", "one") for slot in (0, 1)
    }
    made = graph(three=("TpTooMuch", {"count": 3}), one=("TpTooMuch", {"count": 1}), **wanted)  # type: ignore[arg-type]
    said = events(nodes, made)
    assert shown(said) == {"three0": [0], "three1": [1], "one0": [0]}
    assert [(e.node_id, e.message) for e in said if isinstance(e, NodeBlocked)] == [
        ("one1", "TpTooMuch gave no value for its output INT")
    ]


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("TpCounter", [1, 1, 1]),
        ("TpConstant", [1, 1, 1]),
        ("TpAlways", [1, 2, 3]),
        ("TpAsyncAlways", [1, 2, 3]),
        ("TpCannotTell", [1, 2, 3]),
    ],
)
def test_what_makes_a_node_run_again(nodes: Nodes, kind: str, counts: list[int]) -> None:
    cache = Cache()
    wanted = graph(c=(kind, {"value": 0}), show=("TpShow", {"value": ("c", 0)}))
    assert [shown(events(nodes, wanted, cache))["show"] for _ in counts] == [[n] for n in counts]


def test_an_instance_lives_as_long_as_its_node(nodes: Nodes) -> None:
    cache = Cache()

    def count(node_id: str, value: int) -> object:
        entries = {node_id: ("TpCounter", {"value": value}), "show": ("TpShow", {"value": (node_id, 0)})}
        return shown(events(nodes, graph(**entries), cache))["show"]  # type: ignore[arg-type]

    assert [count("a", 1), count("a", 2), count("a", 3), count("b", 4)] == [[1], [2], [3], [1]]


def test_nodes_that_are_not_idempotent_share_no_result(nodes: Nodes) -> None:
    def ran(kind: str) -> set[str]:
        pair = graph(
            a=(kind, {"value": 0}),
            b=(kind, {"value": 0}),
            show_a=("TpShow", {"value": ("a", 0)}),
            show_b=("TpShow", {"value": ("b", 0)}),
        )
        return started(events(nodes, pair, Cache())) & {"a", "b"}

    assert len(ran("TpCounter")) == 1
    assert ran("TpPerNode") == {"a", "b"}


def test_an_expanded_graph_is_kept(nodes: Nodes) -> None:
    cache = Cache()
    wanted = graph(twice=("TpTwice", {"value": 4}), show=("TpShow", {"value": ("twice", 0)}))
    first, second = events(nodes, wanted, cache), events(nodes, wanted, cache)
    assert shown(first) == shown(second) == {"show": [8.0]}
    assert started(second) == set() and any(isinstance(e, NodesCached) for e in second)


def test_a_stopped_run_stops_a_pack_that_asks(packs: Packs) -> None:
    cancel = threading.Event()
    said = run(graph(p=("TpPatient", {})), packs.nodes, cancel=cancel)
    last = None
    for last in said:
        if isinstance(last, NodeProgress):
            cancel.set()
    assert isinstance(last, RunCancelled)


def _keeper(seen: list[object]) -> NodeType:
    @node("Keep", category="test", output_node=True)
    def keep(value: Annotated[object, Socket("CONDITIONING")]) -> NodeResult:
        seen.append(value)
        return NodeResult()

    (kind,) = node_types(keep)
    return kind
