"""VALIDATE_INPUTS in its variants."""
# pyright: basic, reportMissingImports=false

import asyncio


class Checked:
    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"size": ("INT", {"max": 4}), "kind": (["a", "b"],), "other": ("INT", {"max": 4})}
        }

    RETURN_TYPES = ("INT",)
    OUTPUT_NODE = True
    FUNCTION = "give"

    def give(self, size, kind, other):
        return {"ui": {"size": [size]}, "result": (size,)}

    @classmethod
    def VALIDATE_INPUTS(cls, size, kind):
        return True if size < 10 else f"size {size} is too much"


class CheckedAll(Checked):
    @classmethod
    def VALIDATE_INPUTS(cls, **inputs):
        return inputs["size"] + inputs["other"] < 20


class CheckedLater(Checked):
    @classmethod
    async def VALIDATE_INPUTS(cls, size):
        await asyncio.sleep(0)
        return True if size < 10 else f"size {size} is too much, later"


class CheckedTypes(Checked):
    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True if input_types.get("size") == "FLOAT" else f"got {input_types}"


class CheckedGiven(Checked):
    @classmethod
    def VALIDATE_INPUTS(cls, size, other):
        return True if size is None and other == 1 else f"got {size!r}"


NODE_CLASS_MAPPINGS = {
    "TpChecked": Checked,
    "TpCheckedAll": CheckedAll,
    "TpCheckedLater": CheckedLater,
    "TpCheckedTypes": CheckedTypes,
    "TpCheckedGiven": CheckedGiven,
}
