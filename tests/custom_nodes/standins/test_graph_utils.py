from __future__ import annotations

from loraloom.custom_nodes.standins.graph_utils import GraphBuilder, add_graph_prefix, is_link


def test_links() -> None:
    assert is_link(["1", 0]) and is_link(["1", 0.0])
    assert not any(is_link(value) for value in (["1", True], [1, 0], ("1", 0), ["1"], "10", None, [["1"], 0]))


def test_a_graph_is_built_under_its_prefix() -> None:
    graph = GraphBuilder(prefix="p.")
    first = graph.node("Number", value=1)
    named = graph.node("Add", "sum", a=first.out(0), b=2)
    assert graph.node("Other", "sum") is named is graph.lookup_node("sum")
    named.set_input("c", 3)
    named.set_input("b", None)
    assert named.get_input("c") == 3 and named.get_input("b") is None
    named.set_override_display_id("7")
    assert graph.finalize() == {
        "p.1": {"class_type": "Number", "inputs": {"value": 1}},
        "p.sum": {"class_type": "Add", "inputs": {"a": ["p.1", 0], "c": 3}, "override_display_id": "7"},
    }
    graph.replace_node_output("1", 0, ["outside", 4])
    graph.remove_node("1")
    assert graph.lookup_node("1") is None and named.inputs == {"a": ["outside", 4], "c": 3}


def test_a_finished_graph_under_another_prefix() -> None:
    nodes = {"a": {"class_type": "Number", "inputs": {"value": 1, "other": ["a", 0]}}}
    assert add_graph_prefix(nodes, (["a", 0], 5), "x.") == (
        {"x.a": {"class_type": "Number", "inputs": {"value": 1, "other": ["x.a", 0]}}},
        (["x.a", 0], 5),
    )
