"""Nodes that other nodes take the place of."""
# pyright: basic, reportMissingImports=false

from comfy_execution.graph_utils import GraphBuilder, is_link

from .values import ANY


class Twice:
    """2 · value, by two further nodes; odd numbers directly."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("INT",)}}

    RETURN_TYPES = ("FLOAT", "INT")
    FUNCTION = "expand"

    def expand(self, value):
        if value % 2:
            return (2.0 * value, value)
        graph = GraphBuilder()
        number = graph.node("TpNumber", value=value)
        mean = graph.node("TpAverage", first=number.out(0), more=number.out(0))
        sum_ = graph.node("TpScale", "scale", value=mean.out(0), factor=2)
        return {"result": (sum_.out(0), value), "expand": graph.finalize()}


class Scale:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("FLOAT",), "factor": ("INT",)}}

    RETURN_TYPES = ("FLOAT",)
    FUNCTION = "give"

    def give(self, value, factor):
        return (value * factor,)


class SleepBoth:
    """Two sleeping nodes, of two graphs that are put together."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seconds": ("FLOAT",)}}

    RETURN_TYPES = ("INT", "INT")
    FUNCTION = "expand"

    async def expand(self, seconds):
        first, second = GraphBuilder(), GraphBuilder()
        a = first.node("TpSleep", "sleep", value=[1], seconds=seconds)
        b = second.node("TpSleep", "sleep", value=[2], seconds=seconds)
        return {"result": (a.out(0), b.out(0)), "expand": {**first.finalize(), **second.finalize()}}


class ReuseInput:
    """Gives what it was linked to, and shows it by a node of its own."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY, {"rawLink": True})}}

    RETURN_TYPES = (ANY,)
    FUNCTION = "expand"

    def expand(self, value):
        graph = GraphBuilder()
        graph.node("TpShow", value=value)
        return {"result": (value,), "expand": graph.finalize()}


class RepeatBegin:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"times": ("INT",), "value": (ANY,)}}

    RETURN_TYPES = ("FLOW", "INT", ANY)
    RETURN_NAMES = ("flow", "times", "value")
    FUNCTION = "begin"

    def begin(self, times, value):
        return ("flow", times, value)


class RepeatEnd:
    """Repeats the nodes between begin and end, by putting copies of them into its own place."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"flow": ("FLOW", {"rawLink": True}), "times": ("INT",), "value": (ANY,)},
            "hidden": {"prompt": "DYNPROMPT", "me": "UNIQUE_ID"},
        }

    RETURN_TYPES = (ANY,)
    FUNCTION = "end"

    def end(self, flow, times, value, prompt, me):
        if times <= 1:
            return (value,)
        begin = flow[0]
        inside = self._between(prompt, begin, me)
        graph = GraphBuilder()
        for node_id in inside:
            graph.node(prompt.get_node(node_id)["class_type"], "end" if node_id == me else node_id)
        for node_id in inside:
            copy = graph.lookup_node("end" if node_id == me else node_id)
            for name, given in prompt.get_node(node_id)["inputs"].items():
                if is_link(given) and given[0] in inside:
                    given = graph.lookup_node(given[0]).out(given[1])
                copy.set_input(name, given)
        start = graph.lookup_node(begin)
        start.set_input("times", times - 1)
        start.set_input("value", value)
        return {"result": (graph.lookup_node("end").out(0),), "expand": graph.finalize()}

    def _between(self, prompt, begin, end):
        """The nodes that need `begin` and that `end` needs."""

        def needs_begin(node_id):
            if node_id == begin:
                return True
            links = [v[0] for v in prompt.get_node(node_id)["inputs"].values() if is_link(v)]
            return any(needs_begin(producer) for producer in links)

        found, todo = {}, [end]
        while todo:
            node_id = todo.pop()
            if node_id in found or not needs_begin(node_id):
                continue
            found[node_id] = None
            if node_id != begin:
                todo += [v[0] for v in prompt.get_node(node_id)["inputs"].values() if is_link(v)]
        return list(found)


class Countdown:
    """Counts a hidden input down to nothing, by putting itself into its own place, and the turns up."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"turns": ("INT",)}, "hidden": {"left": (ANY,), "me": "UNIQUE_ID"}}

    RETURN_TYPES = ("INT",)
    FUNCTION = "count"

    def count(self, turns, me, left=None):
        if left is not None and left <= 0:
            return (turns,)
        graph = GraphBuilder()
        again = graph.node("TpCountdown", turns=turns + 1, left=None if left is None else left - 1)
        return {"result": (again.out(0),), "expand": graph.finalize()}


NODE_CLASS_MAPPINGS = {
    "TpCountdown": Countdown,
    "TpTwice": Twice,
    "TpScale": Scale,
    "TpSleepBoth": SleepBoth,
    "TpReuseInput": ReuseInput,
    "TpRepeatBegin": RepeatBegin,
    "TpRepeatEnd": RepeatEnd,
}
