"""Literals, wildcards, lists, conditioning, what is shown."""
# pyright: basic, reportMissingImports=false

import os

import folder_paths
import torch
from comfy.comfy_types import IO, ComfyNodeABC, InputTypeDict
from comfy.samplers import KSampler


class Any_(str):
    """Unequal to nothing, and so of any type."""

    def __ne__(self, other):
        return False


ANY = Any_("whatever")


class Number(ComfyNodeABC):
    @classmethod
    def INPUT_TYPES(cls) -> InputTypeDict:
        return {"required": {"value": (IO.INT, {"default": 1, "min": 0, "max": 99, "tooltip": "how many"})}}

    RETURN_TYPES = (IO.INT,)
    FUNCTION = "give"
    CATEGORY = "testing"
    DESCRIPTION = "A number."

    def give(self, value):
        return (value,)


class Show:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY, {"forceInput": True, "made_by": Show})}}

    RETURN_TYPES = ()
    FUNCTION = "show"
    OUTPUT_NODE = True

    def show(self, value):
        return {"ui": {"shown": (value,)}}


class Listed:
    """Lists a folder by itself, as classes do that are made after LoadImage."""

    @classmethod
    def INPUT_TYPES(cls):
        folder = folder_paths.get_input_directory()
        return {"required": {"file": (["none", *(os.listdir(folder) if os.path.isdir(folder) else ())],)}}

    RETURN_TYPES = ()
    FUNCTION = "show"
    OUTPUT_NODE = True

    def show(self, file):
        return {"ui": {"shown": (file,)}}


class Passthrough:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY,)}}

    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("same",)
    FUNCTION = "give"

    def give(self, value):
        return [value]


class Numbers:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT", {"default": 3})}}

    RETURN_TYPES = ("INT",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "give"

    def give(self, count):
        return (list(range(count)),)


class Total:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"values": ("INT", {"forceInput": True})}, "hidden": {"me": "UNIQUE_ID"}}

    RETURN_TYPES = ("INT", "STRING")
    INPUT_IS_LIST = True
    FUNCTION = "give"

    def give(self, values, me):
        return (sum(values), me[0])


class Average:
    """Takes more inputs than it declares."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("INT",)}}

    RETURN_TYPES = ("FLOAT",)
    FUNCTION = "give"

    def give(self, first, **more):
        numbers = [first, *more.values()]
        return (sum(numbers) / len(numbers),)


class EveryName(dict):
    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return (ANY,)


class Switches:
    """Declares that any input whatever is one of its own."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": EveryName()}

    RETURN_TYPES = ("STRING",)
    FUNCTION = "give"

    def give(self, **switches):
        return (", ".join(f"{k}={v}" for k, v in sorted(switches.items())),)


class Choose:
    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "size": (["small", "large"],),
                "lora": (["none"] + folder_paths.get_filename_list("loras"),),
                "sampler": (KSampler.SAMPLERS,),
                "mode": ("COMBO", {"options": ["a", "b"]}),
            },
            "optional": {"note": ("STRING", {"multiline": True})},
        }

    RETURN_TYPES = ("STRING", ["small", "large"])
    FUNCTION = "give"

    def give(self, size, lora, sampler, mode, note=""):
        return (f"{size} {lora} {folder_paths.get_full_path('loras', lora)}", size)


class MakeConditioning:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"tokens": ("INT",)}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "give"

    def give(self, tokens):
        return ([[torch.zeros(1, tokens, 4), {"pooled_output": torch.ones(1, 2), "strength": 0.5}]],)


class SetStrength:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "strength": ("FLOAT",)}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "give"

    def give(self, conditioning, strength):
        for _, options in conditioning:
            options["strength"] = strength
        return (conditioning,)


class TooMuch:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT",)}}

    RETURN_TYPES = ("INT", "INT")
    FUNCTION = "give"

    def give(self, count):
        return tuple(range(count))


NODE_CLASS_MAPPINGS = {
    "TpListed": Listed,
    "TpNumber": Number,
    "TpShow": Show,
    "TpPassthrough": Passthrough,
    "TpNumbers": Numbers,
    "TpTotal": Total,
    "TpAverage": Average,
    "TpSwitches": Switches,
    "TpChoose": Choose,
    "TpMakeConditioning": MakeConditioning,
    "TpSetStrength": SetStrength,
    "TpTooMuch": TooMuch,
}
