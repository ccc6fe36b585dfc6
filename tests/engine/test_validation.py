from __future__ import annotations

from collections.abc import Mapping

from loraloom.engine.node import NodeType, node, node_types
from loraloom.engine.validation import checked_by_node, own_checks
from loraloom.workflow.graph import Graph, GraphNode, Link


def _even(size: int) -> bool | str:
    return True if size % 2 == 0 else f"size {size} is odd"


async def _typed(input_types: Mapping[str, str]) -> bool | str:
    return True if input_types.get("value") == "INT" else f"value is {input_types.get('value')}"


def _broken(**_: object) -> bool:
    raise ValueError("cannot tell")


@node("Even", category="test", validate=_even)
def even(size: int) -> int:
    return size


@node("Typed", category="test", validate=_typed)
def typed(value: str) -> str:
    return value


@node("Broken", category="test", validate=_broken)
def broken(value: int) -> int:
    return value


NODES: dict[str, NodeType] = {t.name: t for f in (even, typed, broken) for t in node_types(f)}


def test_a_node_sees_the_literals_it_names_and_the_types_of_its_links() -> None:
    graph = Graph(
        {
            "1": GraphNode("1", "Even", {"size": 4}),
            "2": GraphNode("2", "Even", {"size": 3}, title="second"),
            "3": GraphNode("3", "Typed", {"value": Link("1", 0)}),
            "4": GraphNode("4", "Typed", {"value": Link("3", 0)}),
            "5": GraphNode("5", "Broken", {"value": 1}),
        }
    )
    problems = own_checks(graph, NODES, graph.nodes)
    assert [(p.node_id, p.details) for p in problems] == [
        ("2", "size 3 is odd"),
        ("4", "value is STRING"),
        ("5", "ValueError: cannot tell"),
    ]
    assert {p.type for p in problems} == {"custom_validation_failed"}
    assert "“second”" in problems[0].line()


def test_inputs_that_a_node_checks_itself() -> None:
    assert checked_by_node(NODES["Even"]) == {"size"}
    assert checked_by_node(NODES["Broken"]) == {"value"}


def test_a_check_gets_none_for_what_is_linked() -> None:
    given: list[dict[str, object]] = []

    def check(size: object, name: object, **rest: object) -> bool:
        given.append({"size": size, "name": name, **rest})
        return True

    @node("Asks", category="test", validate=check)
    def asks(size: int, name: str, more: int = 0) -> int:
        return size

    nodes = {**NODES, **{t.name: t for t in node_types(asks)}}
    graph = Graph(
        {
            "1": GraphNode("1", "Even", {"size": 4}),
            "2": GraphNode("2", "Asks", {"size": Link("1", 0), "name": "x", "more": Link("1", 0)}),
        }
    )
    assert own_checks(graph, nodes, graph.nodes) == []
    assert given == [{"size": None, "name": "x", "more": None, "input_types": {"size": "INT", "more": "INT"}}]
