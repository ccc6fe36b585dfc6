"""Async and lazy functions, blockers, failures, progress, hidden inputs."""
# pyright: basic, reportMissingImports=false

import asyncio
import time

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_execution.graph import ExecutionBlocker

from .values import ANY


class LazyMix:
    """a where share is 0, b where it is 1; evaluates only what it needs."""

    @classmethod
    def INPUT_TYPES(cls):
        lazy = ("INT", {"lazy": True, "forceInput": True})
        return {"required": {"a": lazy, "b": lazy, "share": ("FLOAT",)}}

    RETURN_TYPES = ("FLOAT",)
    FUNCTION = "mix"

    def check_lazy_status(self, share, a=None, b=None):
        return [n for n, v, used in (("a", a, share < 1), ("b", b, share > 0)) if used and v is None]

    def mix(self, share, a=None, b=None):
        return ((0 if a is None else a * (1 - share)) + (0 if b is None else b * share),)


class AsyncLazyMix(LazyMix):
    async def check_lazy_status(self, share, a=None, b=None):
        await asyncio.sleep(0)
        return super().check_lazy_status(share, a, b)


class Sleep:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "seconds": ("FLOAT",)}}

    RETURN_TYPES = (ANY,)
    FUNCTION = "sleep"

    async def sleep(self, value, seconds):
        bar = ProgressBar(2)
        bar.update(1)
        await asyncio.sleep(seconds)
        bar.update_absolute(2)
        return (value,)


class Block:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("INT",), "message": ("STRING", {"default": ""})}}

    RETURN_TYPES = ("INT",)
    FUNCTION = "give"

    def give(self, value, message):
        return (ExecutionBlocker(message or None) if value % 2 else value,)


class Fail:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,), "later": ("BOOLEAN", {"default": False})}}

    RETURN_TYPES = (ANY,)
    FUNCTION = "fail"

    async def fail(self, value, later):
        if later:
            await asyncio.sleep(0.01)
        raise ValueError(f"cannot use {value}")


class Patient:
    """Works until it is stopped."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    RETURN_TYPES = ()
    FUNCTION = "wait"
    OUTPUT_NODE = True

    def wait(self):
        bar = ProgressBar(1000)
        for _ in range(1000):
            bar.update(1)
            throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        return {}


class Hidden:
    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {},
            "hidden": {"graph": "PROMPT", "extra": "EXTRA_PNGINFO", "me": "UNIQUE_ID", "now": "DYNPROMPT"},
        }

    RETURN_TYPES = ("STRING",)
    FUNCTION = "give"
    OUTPUT_NODE = True

    def give(self, graph, extra, me, now):
        assert now.get_node(me) == graph[me]
        assert now.get_display_node_id(me) == me
        assert now.get_parent_node_id(me) is None
        return {"ui": {"said": [me, *sorted(graph), extra["workflow"]["id"]]}, "result": ("fine",)}


NODE_CLASS_MAPPINGS = {
    "TpLazyMix": LazyMix,
    "TpAsyncLazyMix": AsyncLazyMix,
    "TpSleep": Sleep,
    "TpBlock": Block,
    "TpFail": Fail,
    "TpPatient": Patient,
    "TpHidden": Hidden,
}
