"""Pictures: made, mixed lazily, shown on the way, and progress said through comfy_api."""
# pyright: basic, reportMissingImports=false

import asyncio

import torch
from comfy_api.v0_0_2 import ComfyAPI, ComfyAPISync
from comfy_execution.graph_utils import GraphBuilder
from PIL import Image

api, api_sync = ComfyAPI(), ComfyAPISync()


class Flat:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("FLOAT", {"default": 0.0}), "side": ("INT", {"default": 8})}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "give"

    def give(self, value, side):
        return (torch.full((1, side, side, 3), value),)


class MixPictures:
    """a where share is 0, b where it is 1."""

    @classmethod
    def INPUT_TYPES(cls):
        lazy = ("IMAGE", {"lazy": True})
        return {"required": {"a": lazy, "b": lazy, "share": ("FLOAT", {"default": 0.5})}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "mix"

    def check_lazy_status(self, share, a=None, b=None):
        return [
            name for name, value, used in (("a", a, share < 1), ("b", b, share > 0)) if used and value is None
        ]

    def mix(self, share, a=None, b=None):
        if share in (0, 1):
            return (b if share else a,)
        return (a * (1 - share) + b * share,)


class Brighter:
    """An output node whose output others may use."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"picture": ("IMAGE",), "by": ("FLOAT", {"default": 2.0})}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "give"
    OUTPUT_NODE = True

    def give(self, picture, by):
        return {"ui": {"by": [by]}, "result": (picture * by,)}


class ChangedByValue:
    """Sees of its inputs what stands in the graph; what is linked is None."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"picture": ("IMAGE",), "value": ("FLOAT",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "give"

    @classmethod
    def IS_CHANGED(cls, picture, value):
        return value if picture is None else float("nan")

    def give(self, picture, value):
        return (picture * value,)


class Ring:
    """Is replaced by two nodes that wait for each other."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"picture": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "expand"

    def expand(self, picture):
        graph = GraphBuilder()
        one = graph.node("TpBrighter", picture=picture)
        two = graph.node("TpBrighter", picture=one.out(0))
        one.set_input("picture", two.out(0))
        return {"result": (two.out(0),), "expand": graph.finalize()}


class Late:
    """Does not wait as long as it would take."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"picture": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "give"

    async def give(self, picture):
        async with asyncio.timeout(0.05):
            await asyncio.sleep(30)
        return (picture,)


class SaysProgress:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"picture": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "give"

    def give(self, picture):
        api_sync.execution.set_progress(1, 2, preview_image=picture)
        api_sync.execution.set_progress(2, 2, preview_image=Image.new("RGB", (4, 4)))
        return (picture,)


class SaysProgressLater(SaysProgress):
    async def give(self, picture):
        await api.execution.set_progress(1, 2)
        await asyncio.sleep(0.2)  # previews are sent a few times a second
        await api.execution.set_progress(2, 2, preview_image=picture)
        return (picture,)


class WithDefault:
    """An older graph may lack `scale`."""

    @classmethod
    def INPUT_TYPES(cls):
        optional = {"scale": ("FLOAT", {"default": 0.5}), "mask": ("MASK",)}
        return {"required": {"picture": ("IMAGE",)}, "optional": optional}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "give"

    def give(self, picture, scale=0.5, mask=None):
        return (picture * scale if mask is None else picture * scale * mask.unsqueeze(-1),)


NODE_CLASS_MAPPINGS = {
    "TpFlat": Flat,
    "TpMixPictures": MixPictures,
    "TpBrighter": Brighter,
    "TpChangedByValue": ChangedByValue,
    "TpRing": Ring,
    "TpLate": Late,
    "TpSaysProgress": SaysProgress,
    "TpSaysProgressLater": SaysProgressLater,
    "TpWithDefault": WithDefault,
}
