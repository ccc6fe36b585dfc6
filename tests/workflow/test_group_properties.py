"""Nodes of any workflow that are folded into a group node mean the same. They are folded here by the editor's
rules, as its frontend's `groupNode` states them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.workflow.ui_format import parse_ui
from tests.workflow.ui_samples import Ui, link, workflow

HOST = 500
Sockets = tuple[tuple[str, str], ...]
End = tuple[int, int]
"""A node by its place in the workflow, and one of its outputs."""


@dataclass(frozen=True)
class Kind:
    """A node class. seed: of its widgets the one behind which the editor puts a control."""

    sockets: Sockets = ()
    widgets: Sockets = ()
    outputs: tuple[str, ...] = ()
    seed: str = ""


KINDS = {
    "CheckpointLoaderSimple": Kind((), (("ckpt_name", "COMBO"),), ("MODEL", "CLIP", "VAE")),
    "LoraLoader": Kind(
        (("model", "MODEL"), ("clip", "CLIP")),
        (("lora_name", "COMBO"), ("strength_model", "FLOAT"), ("strength_clip", "FLOAT")),
        ("MODEL", "CLIP"),
    ),
    "CLIPTextEncode": Kind((("clip", "CLIP"),), (("text", "STRING"),), ("CONDITIONING",)),
    "ConditioningCombine": Kind(
        (("conditioning_1", "CONDITIONING"), ("conditioning_2", "CONDITIONING")), (), ("CONDITIONING",)
    ),
    "EmptyLatentImage": Kind(
        (), (("width", "INT"), ("height", "INT"), ("batch_size", "INT")), ("LATENT",)
    ),
    "KSampler": Kind(
        (("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"),
         ("latent_image", "LATENT")),
        (("seed", "INT"), ("steps", "INT"), ("cfg", "FLOAT"), ("sampler_name", "COMBO"),
         ("scheduler", "COMBO"), ("denoise", "FLOAT")),
        ("LATENT",), "seed",
    ),
    "VAEDecode": Kind((("samples", "LATENT"), ("vae", "VAE")), (), ("IMAGE",)),
    "PrimitiveInt": Kind((), (("value", "INT"),), ("INT",), "value"),
    "NobodyKnowsIt": Kind((("latent", "LATENT"),), (("kind", "COMBO"), ("count", "INT")), ("LATENT",)),
    "Reroute": Kind(),
    "PrimitiveNode": Kind(),
}  # fmt: skip
KINDS_WITH_SCHEMA = KINDS.keys() - {"NobodyKnowsIt", "Reroute", "PrimitiveNode"}
VALUES = {
    "INT": st.integers(0, 99),
    "FLOAT": st.integers(0, 9).map(lambda n: n / 2),
    "STRING": st.sampled_from(["", "a", "fixed", "7"]),
    "COMBO": st.sampled_from(["a", "b", "randomize"]),
}
OFTEN = [*KINDS, "KSampler", "KSampler", "PrimitiveNode", "PrimitiveNode", "Reroute", "Reroute", "LoraLoader"]
CONTROLS = st.sampled_from(["fixed", "increment", "decrement", "randomize"])


@dataclass
class Made:
    """A node. values: of its widgets, by name, with the control behind a seed. turned: widgets that are
    sockets; into: what comes into its sockets."""

    kind: str
    title: str
    widgets: Sockets
    values: dict[str, Any]
    turned: list[str]
    sockets: Sockets
    outputs: tuple[str, ...]
    into: dict[str, End] = field(default_factory=lambda: dict[str, End]())

    @property
    def names(self) -> list[str]:
        """Of its sockets, in their order."""
        return [*(name for name, _ in self.sockets), *self.turned]

    def saved(self, names: list[str]) -> list[Any]:
        return [value for name in names for value in self.values[name]]

    def serialised(self, values: list[Any], number: Callable[[str], int | None]) -> Ui:
        types = dict((*self.sockets, *self.widgets))
        sockets = [
            {"name": name, "type": types[name], "link": number(name)}
            | ({"widget": {"name": name}} if name in self.turned else {})
            for name in self.names
        ]
        outputs = [{"name": name, "type": name, "links": []} for name in self.outputs]
        title = {"title": self.title} if self.title else {}
        return {"type": self.kind, "mode": 0, "inputs": sockets, "outputs": outputs,
                "properties": {}, "widgets_values": values, **title}  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn) -> list[Made]:
    made: list[Made] = []
    kinds = draw(st.lists(st.sampled_from(OFTEN), min_size=6, max_size=12))
    if draw(st.booleans()):
        kinds.sort(key=lambda kind: kind != "PrimitiveNode")  # so that all others may take their values
    for kind in kinds:
        ends = [(at, slot, t) for at, one in enumerate(made) for slot, t in enumerate(one.outputs)]
        if kind == "Reroute":
            if known := [end for end in ends if made[end[0]].kind != "PrimitiveNode"]:
                at, slot, type_ = draw(st.sampled_from(known))
                made.append(Made(kind, "", (), {}, [], (("", "*"),), (type_,), {"": (at, slot)}))
            continue
        if kind == "PrimitiveNode":
            type_ = draw(st.sampled_from([*VALUES]))
            control = {"INT": [draw(CONTROLS)], "COMBO": [draw(CONTROLS), ""]}.get(type_, [])
            values = {"value": [draw(VALUES[type_]), *control]}
            title = draw(st.sampled_from(["", "My value"]))
            made.append(Made(kind, title, (("value", type_),), values, [], (), (type_,)))
            continue
        facts = KINDS[kind]
        values = {
            name: [draw(VALUES[type_]), *([draw(CONTROLS)] if name == facts.seed else [])]
            for name, type_ in facts.widgets
        }
        turnable = () if kind == "NobodyKnowsIt" else facts.widgets
        turned = [name for name, _ in turnable if draw(st.booleans())]
        one = Made(kind, draw(st.sampled_from(["", "A name"])), facts.widgets, values, turned, facts.sockets,
                   facts.outputs)  # fmt: skip
        for name, type_ in (*facts.sockets, *(w for w in facts.widgets if w[0] in turned)):
            fitting = [(at, slot) for at, slot, t in ends if t == type_]
            if fitting and draw(st.integers(0, 3)):
                one.into[name] = draw(st.sampled_from(fitting))
        made.append(one)
    return made


def plain(made: list[Made]) -> Ui:
    numbers, links, nodes = itertools.count(1), list[Any](), list[Ui]()
    for at, one in enumerate(made):
        into = {name: next(numbers) for name in one.into}
        nodes.append({"id": at, **one.serialised(one.saved([w for w, _ in one.widgets]), into.get)})
        for name, number in into.items():
            origin, slot = one.into[name]
            links.append(link(number, origin, slot, at, one.names.index(name), "*"))
    return workflow(*nodes, links=links)


class Folded:
    """The nodes at these places of a workflow as one group node."""

    def __init__(self, made: list[Made], inside: list[int], hidden: set[int]) -> None:
        """hidden: the author hides the inputs at these places that nothing comes into (and widgets, which
        keep their place among the values), and outputs that nobody uses."""
        self.made, self.inside, self.hidden = made, inside, hidden
        self.within = {at: index for index, at in enumerate(inside)}
        uses = [(end, at) for at, one in enumerate(made) for end in one.into.values()]
        self.used_inside = {end for end, at in uses if at in self.within}
        self.used_outside = {end for end, at in uses if at not in self.within}

    def is_fed(self, at: int, name: str) -> bool:
        """By a node of the group."""
        return name in self.made[at].into and self.made[at].into[name][0] in self.within

    def sockets(self) -> list[tuple[int, str]]:
        """(node, input): what no node of the group feeds; turned widgets behind all others."""
        own = [(at, name) for at in self.inside for name, _ in self.made[at].sockets]
        turned = [(at, name) for at in self.inside for name in self.made[at].turned]
        free = [(at, name) for at, name in (*own, *turned) if not self.is_fed(at, name)]
        return [one for one in free if not self._is_hidden(*one)]

    def values(self) -> list[Any]:
        """The widgets node by node; those that were turned and that no node of the group feeds at the end."""
        found: list[Any] = []
        for at in self.inside:
            one = self.made[at]
            if one.kind != "PrimitiveNode" or (at, 0) in self.used_inside:
                found += one.saved([name for name, _ in one.widgets if name not in one.turned])
        for at in self.inside:
            one = self.made[at]
            found += one.saved([name for name in one.turned if not self.is_fed(at, name)])
        return found

    def outputs(self) -> list[End]:
        """Those that no node of the group uses up; a Primitive has none."""
        ends = [(at, slot) for at in self.inside for slot, _ in enumerate(self.made[at].outputs)]
        shown = [
            (at, slot)
            for at, slot in ends
            if (at, slot) in self.used_outside
            or ((at, slot) not in self.used_inside and not self._is_hidden(at, str(slot)))
        ]
        return [(at, slot) for at, slot in shown if self.made[at].kind != "PrimitiveNode"]

    def _is_hidden(self, at: int, name: str) -> bool:
        one = self.made[at]
        own = name.isdigit() or name in dict(one.sockets)
        return own and one.kind in KINDS_WITH_SCHEMA and at in self.hidden and name not in one.into

    def _config(self) -> Ui:
        config: Ui = {}
        for at in self.hidden & {*self.inside}:
            one = self.made[at]
            if one.kind in KINDS_WITH_SCHEMA:
                names = [*dict(one.sockets), *(name for name, _ in one.widgets if name not in one.turned)]
                ends = [slot for slot, _ in enumerate(one.outputs) if (at, slot) not in self.used_outside]
                config[str(self.within[at])] = {
                    "input": {name: {"visible": False} for name in names if name not in one.into},
                    "output": {str(slot): {"visible": False} for slot in ends},
                }
        return config

    def definition(self, former: Callable[[int], list[Any]]) -> Ui:
        """former: the values that a node had when the group was made."""
        nodes, links = list[Ui](), list[Any]()
        for index, at in enumerate(self.inside):
            one = self.made[at]
            nodes.append({**one.serialised(former(at), lambda name: None), "index": index})
            for name, (origin, slot) in one.into.items():
                place = one.names.index(name)
                type_ = self.made[origin].outputs[slot]
                links.append([self.within.get(origin), slot, index, place, origin, type_])
        both = self.used_outside & {(at, slot) for at, slot in self.used_outside if at in self.within}
        external = [[self.within[at], slot, self.made[at].outputs[slot]] for at, slot in sorted(both)]
        return {"nodes": nodes, "links": links, "external": external, "config": self._config()}

    def workflow(
        self, name: str, called: list[str], order: list[int], former: Callable[[int], list[Any]]
    ) -> Ui:
        """called: what the group node calls its sockets. order: in which they stand there."""
        numbers, links, nodes = itertools.count(1), list[Any](), list[Ui]()
        outputs = self.outputs()

        def joined(end: End, target: int, place: int) -> int:
            at, slot = end
            origin, slot = (HOST, outputs.index(end)) if at in self.within else (at, slot)
            links.append(link(next(numbers), origin, slot, target, place, "*"))
            return links[-1][0]

        for at, one in enumerate(self.made):
            if at not in self.within:
                into = {n: joined(end, at, one.names.index(n)) for n, end in one.into.items()}
                nodes.append({"id": at, **one.serialised(one.saved([w for w, _ in one.widgets]), into.get)})
        inputs = list[Ui]()
        for place, which in enumerate(order):
            at, socket = self.sockets()[which]
            end = self.made[at].into.get(socket)
            number = None if end is None else joined(end, HOST, place)
            inputs.append({"name": called[which], "type": "*", "link": number})
        shown = [{"name": str(place), "type": "*", "links": []} for place, _ in enumerate(outputs)]
        nodes.append({"id": HOST, "type": f"workflow>{name}", "mode": 0, "inputs": inputs, "outputs": shown,
                      "properties": {}, "widgets_values": self.values()})  # fmt: skip
        ui = workflow(*nodes, links=links)
        ui["extra"] = {"groupNodes": {name: self.definition(former)}}
        return ui

    def names(self) -> list[str]:
        """What the editor calls the sockets: as their inputs, with the node in front where that is taken."""
        taken: dict[str, int] = {}

        def called(at: int, name: str) -> str:
            one, own = self.made[at], name
            kind = one.title or one.kind
            if name in taken or (one.kind == "PrimitiveNode" and one.title):
                own = f"{kind} {name}"
                taken[own] = taken.get(own, 0) + 1
                return own if taken[own] == 1 else f"{kind} {taken[own]} {name}"
            taken[own] = 1
            return own

        found: dict[tuple[int, str], str] = {}
        for at in self.inside:
            one = self.made[at]
            if one.kind == "PrimitiveNode" and (at, 0) not in self.used_inside:
                continue
            for name, _ in one.widgets:
                if name not in one.turned:
                    called(at, name)
            for name, _ in one.sockets:
                if not self.is_fed(at, name) and not self._is_passed_over(at):
                    found[at, name] = called(at, name)
        for at in self.inside:
            for name in self.made[at].turned:
                if not self.is_fed(at, name):
                    found[at, name] = called(at, name)
        return [found.get(socket, "?") for socket in self.sockets()]

    def _is_passed_over(self, at: int) -> bool:
        return self.made[at].kind == "Reroute" and self.is_fed(at, "") and (at, 0) in self.used_inside


def may_be_inside(made: list[Made], chosen: set[int]) -> list[int]:
    """A Primitive goes along with what it feeds: its value is nobody's outside."""
    inside = [at for at in range(len(made)) if at in chosen]
    fed = {at: [other for other, one in enumerate(made) if (at, 0) in one.into.values()] for at in inside}
    return [at for at in inside if made[at].kind != "PrimitiveNode" or {*fed[at]} <= chosen]


def read(ui: Ui, names: Callable[[str], str] = str) -> dict[str, Any]:
    graph = parse_ui(ui)
    assert not any("read in order" in note for note in graph.notes), "its values add up"
    found: dict[str, Any] = {}
    for key, entry in cast("dict[str, Any]", graph.to_api()).items():
        inputs = {n: [names(v[0]), v[1]] if isinstance(v, list) else v for n, v in entry["inputs"].items()}
        found[names(key)] = (entry["class_type"], inputs)
    return found


def former_values(made: list[Made], data: st.DataObject) -> Iterator[list[Any]]:
    for one in made:
        fresh = {n: [data.draw(VALUES[t]), *one.values[n][1:]] for n, t in one.widgets}
        yield [value for name, _ in one.widgets for value in fresh[name]]


@settings(max_examples=200, deadline=None)
@given(
    graphs(),
    st.lists(st.sampled_from([True, True, False]), min_size=12, max_size=12),
    st.sets(st.integers(0, 11), max_size=3),
    st.booleans(),
    st.data(),
)
def test_nodes_that_are_folded_into_a_group_node_mean_the_same(
    made: list[Made], inside: list[bool], hidden: set[int], renamed: bool, data: st.DataObject
) -> None:
    """The author may have given the group node's sockets other names, else they are known by them in any
    order; its values were changed since."""
    folded = Folded(made, may_be_inside(made, {at for at, is_in in enumerate(inside) if is_in}), hidden)
    former = [*former_values(made, data)]
    names = [f"?{place}" for place in range(len(folded.sockets()))] if renamed else folded.names()
    order = [*range(len(names))] if renamed else data.draw(st.permutations(range(len(names))))
    ui = folded.workflow("Group", names, order, former.__getitem__)
    assert read(ui) == read(plain(made), lambda key: (
        f"{HOST}:{folded.within[int(key)]}" if int(key) in folded.within else key
    ))  # fmt: skip
