"""What a function's signature says about its node class."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeAlias

import pytest

from loraloom.engine.node import (
    Blocked,
    Choice,
    Files,
    Lazy,
    NodeResult,
    NodeRun,
    Number,
    Optional_,
    Options,
    Socket,
    Text,
    collect,
    node,
    node_types,
)
from loraloom.workflow.schema import Input, NodeSchema

if TYPE_CHECKING:
    Network = object

Model: TypeAlias = Annotated["Network", Socket("MODEL")]
Clip: TypeAlias = Annotated["Network", Socket("CLIP")]


def schema(function: Callable[..., object]) -> NodeSchema:
    return node_types(function)[0].schema


@node("All", category="test", outputs=("model", "clip"))
def everything(
    *,
    model: Model,
    seed: Annotated[int, Number(min=0, max=9, control_after_generate=True)] = 0,
    cfg: Annotated[float, Number(min=0.0, max=1.0, step=0.1, round=0.01)] = 8.0,
    name: Annotated[str, Files("loras", "extra", extra=("none",))],
    way: Annotated[str, Choice(lambda: ("a", "b"))] = "a",
    text: Annotated[str, Text(multiline=True, dynamic_prompts=True)],
    flag: bool = True,
    mask: Model | None = None,
    device: Annotated[str, Choice(("default", "cpu")), Options({"advanced": True}), Optional_()] = "default",
    late: Annotated[int | None, Number(), Lazy()] = None,
    run: NodeRun,
) -> tuple[Model, Clip]:
    """One line.

    More."""
    raise NotImplementedError


def test_inputs_in_the_order_of_the_signature() -> None:
    found = schema(everything)
    assert found.inputs == (
        Input("model", "MODEL"),
        Input("seed", "INT", options={"default": 0, "min": 0, "max": 9, "control_after_generate": True}),
        Input("cfg", "FLOAT", options={"default": 8.0, "min": 0.0, "max": 1.0, "step": 0.1, "round": 0.01}),
        Input("name", "COMBO", choices=("none",), folders=("loras", "extra")),
        Input("way", "COMBO", choices=("a", "b"), options={"default": "a"}),
        Input("text", "STRING", options={"multiline": True, "dynamicPrompts": True}),
        Input("flag", "BOOLEAN", options={"default": True}),
        Input("mask", "MODEL", required=False),
        Input(
            "device",
            "COMBO",
            choices=("default", "cpu"),
            options={"default": "default", "advanced": True},
            required=False,
        ),
        Input("late", "INT", required=False, lazy=True),
    )
    assert [(o.name, o.type) for o in found.outputs] == [("model", "MODEL"), ("clip", "CLIP")]
    assert found.description == "One line."
    assert node_types(everything)[0].takes_run


def test_lists_results_and_the_second_generation() -> None:
    @node("List", category="test", input_is_list=True, output_is_list=(True,), v3=True)
    def lists(*, models: list[Model], way: list[Annotated[str, Choice(("a",))]]) -> tuple[list[Model]]:
        raise NotImplementedError

    found = schema(lists)
    assert [(i.type, dict(i.options)) for i in found.inputs] == [
        ("MODEL", {}),
        ("COMBO", {"multiselect": False}),
    ]
    assert (found.outputs[0].type, found.outputs[0].is_list, found.api_node) == ("MODEL", True, False)

    @node("Result", category="test")
    def result(value: int) -> NodeResult:
        raise NotImplementedError

    @node("Maybe", category="test")
    def maybe(value: int) -> Model | Blocked:
        raise NotImplementedError

    @node("Said", category="test", output_types=("INT", "MASK"))
    async def said(value: int) -> NodeResult:
        raise NotImplementedError

    assert schema(result).outputs == ()
    assert [o.type for o in schema(maybe).outputs] == ["MODEL"]
    assert [o.type for o in schema(said).outputs] == ["INT", "MASK"]


def test_annotations_that_say_no_type_are_refused() -> None:
    with pytest.raises(TypeError, match="parameter 'x' needs a Socket"):

        @node("Bad", category="test")
        def bad(x: dict[str, int]) -> int:  # pyright: ignore[reportUnusedFunction]
            raise NotImplementedError

    with pytest.raises(TypeError, match="return annotation"):

        @node("Bad", category="test")
        def worse(x: int) -> int | str:  # pyright: ignore[reportUnusedFunction]
            raise NotImplementedError

    with pytest.raises(TypeError, match="1 outputs are returned, but 2 are named"):

        @node("Bad", category="test", outputs=("a", "b"))
        def worst(x: int) -> int:  # pyright: ignore[reportUnusedFunction]
            raise NotImplementedError


def test_collect_refuses_a_name_that_two_functions_claim() -> None:
    module = types.ModuleType("two_nodes")

    def make() -> Callable[..., object]:
        @node("Same", category="test")
        def same(x: int) -> int:
            return x

        same.__module__ = "two_nodes"
        return same

    vars(module).update(first=make())
    assert [*collect(module)] == ["Same"]
    vars(module).update(second=make())
    with pytest.raises(ValueError, match="two nodes are called 'Same'"):
        collect(module)


def test_a_node_of_one_output_may_return_a_tuple_as_its_value() -> None:
    from loraloom.engine.calls import returned
    from loraloom.engine.node import node, node_types

    @node("Pair", category="t")
    def pair() -> Annotated[tuple[int, ...], Socket("PAIR")]:
        return (1, 2)

    (kind,) = node_types(pair)
    assert returned(pair(), kind).outputs == ((1, 2),)
