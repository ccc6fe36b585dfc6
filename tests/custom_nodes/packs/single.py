"""A pack of one file, which calls a node of Loraloom's."""
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

import comfy.sd  # noqa: F401

import nodes


class Combined:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"a": ("CONDITIONING",), "b": ("CONDITIONING",)}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "give"

    def give(self, a, b):
        import comfy.utils  # packs import within functions, too

        assert comfy.utils.PROGRESS_BAR_ENABLED
        return nodes.ConditioningCombine().combine(a, b)


class NoInputs:
    FUNCTION = "give"

    def give(self):
        return ()


NODE_CLASS_MAPPINGS = {"TpCombined": Combined, "TpNoInputs": NoInputs}
