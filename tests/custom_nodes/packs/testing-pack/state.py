"""What is kept between runs, and what makes a node run again."""
# pyright: basic, reportMissingImports=false

import itertools

_TICKS = itertools.count()


class Counter:
    """Counts its own calls: the instance outlives the run."""

    def __init__(self):
        self.calls = 0

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("INT",)}}

    RETURN_TYPES = ("INT",)
    FUNCTION = "count"

    def count(self, value):
        self.calls += 1
        return (self.calls,)


class Always(Counter):
    @classmethod
    def IS_CHANGED(cls, value):
        return float("nan")


class AsyncAlways(Counter):
    @classmethod
    async def IS_CHANGED(cls, value):
        return next(_TICKS)


class Constant(Counter):
    @staticmethod
    def IS_CHANGED(**inputs):
        return "the same"


class CannotTell(Counter):
    @classmethod
    def IS_CHANGED(cls, value):
        raise RuntimeError("cannot tell")


class PerNode(Counter):
    """Two nodes with the same inputs are not the same."""

    NOT_IDEMPOTENT = True


NODE_CLASS_MAPPINGS = {
    "TpCounter": Counter,
    "TpAlways": Always,
    "TpAsyncAlways": AsyncAlways,
    "TpConstant": Constant,
    "TpCannotTell": CannotTell,
    "TpPerNode": PerNode,
}
