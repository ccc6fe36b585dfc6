"""Stands in for `nodes`: the node classes by name, those of packs and Loraloom's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from functools import cached_property
from types import ModuleType
from typing import Any, cast

from loraloom.custom_nodes.current import current_run
from loraloom.engine.node import NodeType, collect
from loraloom.engine.result import NodeResult
from loraloom.workflow.implemented import implemented_schemas

METHODS = {
    "CLIPSetLastLayer": "set_last_layer",
    "CLIPTextEncode": "encode",
    "CheckpointLoaderSimple": "load_checkpoint",
    "ConditioningCombine": "combine",
    "EmptyLatentImage": "generate",
    "ImageScale": "upscale",
    "KSampler": "sample",
    "KSamplerAdvanced": "sample",
    "LoadImage": "load_image",
    "LoraLoader": "load_lora",
    "LoraLoaderModelOnly": "load_lora_model_only",
    "PreviewImage": "save_images",
    "SaveImage": "save_images",
    "UNETLoader": "load_unet",
    "VAEDecode": "decode",
    "VAEEncode": "encode",
    "VAELoader": "load_vae",
}
"""The method by which packs call a class of ComfyUI's; other classes have "run"."""


class NodesModule(ModuleType):
    """The module: classes are its attributes too."""

    MAX_RESOLUTION = 16384

    def __init__(self, classes: ClassMappings) -> None:
        super().__init__("nodes", __doc__)
        self.NODE_CLASS_MAPPINGS = classes
        self.NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

    def __getattr__(self, name: str) -> type:
        if name.startswith("__") or name not in self.NODE_CLASS_MAPPINGS:
            raise AttributeError(f"nodes has no {name!r} in Loraloom")
        return self.NODE_CLASS_MAPPINGS[name]


class ClassMappings(MutableMapping[str, type]):
    """Class by name: what packs put in, and Loraloom's nodes as classes, made when asked for."""

    def __init__(self) -> None:
        self._packs: dict[str, type] = {}
        self._own: dict[str, type] = {}

    def add(self, classes: Mapping[str, type]) -> None:
        """Put a pack's classes in; Loraloom's own are not replaced."""
        own = implemented_schemas()
        self._packs.update({name: found for name, found in classes.items() if name not in own})

    def __getitem__(self, name: str) -> type:
        if name in self._packs:
            return self._packs[name]
        if name not in implemented_schemas():
            raise KeyError(name)
        if name not in self._own:
            self._own[name] = _as_class(self._library[name])
        return self._own[name]

    def __setitem__(self, name: str, value: type) -> None:
        self._packs[name] = value

    def __delitem__(self, name: str) -> None:
        del self._packs[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**implemented_schemas(), **self._packs})

    def __len__(self) -> int:
        return len({**implemented_schemas(), **self._packs})

    def __contains__(self, name: object) -> bool:
        return name in self._packs or name in implemented_schemas()

    @cached_property
    def _library(self) -> dict[str, NodeType]:
        return collect("loraloom.nodes")


def _as_class(kind: NodeType) -> type:
    """A node of Loraloom's as a class of ComfyUI's contract, for packs that call nodes from their own."""
    names = [i.name for i in kind.schema.inputs]

    def call(self: object, *args: object, **values: object) -> object:
        from loraloom.custom_nodes.conditioning import from_pack, to_pack

        given: dict[str, object] = {**dict(zip(names, args, strict=False)), **values}
        known = {name: from_pack(value) for name, value in given.items() if name in names}
        if kind.takes_run:
            run = current_run()
            if run is None:
                raise RuntimeError(f"{kind.name} can be called only while a node runs")
            known["run"] = run
        returned = kind.function(**known)
        if isinstance(returned, NodeResult):
            result = tuple(to_pack(value) for value in returned.outputs)
            return {"ui": dict(returned.ui), "result": result} if returned.ui else result
        values_ = (returned,) if kind.single or not isinstance(returned, tuple) else returned
        return tuple(to_pack(value) for value in cast("tuple[object, ...]", values_))

    method = METHODS.get(kind.name, "run")
    schema = kind.schema
    attributes: dict[str, Any] = {
        method: call,
        "FUNCTION": method,
        "CATEGORY": schema.category,
        "RETURN_TYPES": tuple(o.type for o in schema.outputs),
        "RETURN_NAMES": tuple(o.name for o in schema.outputs),
        "OUTPUT_IS_LIST": tuple(o.is_list for o in schema.outputs),
        "OUTPUT_NODE": schema.output_node,
        "INPUT_IS_LIST": schema.input_is_list,
        "INPUT_TYPES": classmethod(lambda _: _input_types(kind)),
        "__doc__": schema.description,
    }
    return type(kind.name, (), attributes)


def _input_types(kind: NodeType) -> dict[str, Any]:
    sections: dict[str, Any] = {"required": {}, "optional": {}, "hidden": dict(kind.schema.hidden)}
    for entry in kind.schema.inputs:
        said = list(entry.choices) if entry.type == "COMBO" else entry.type
        sections["required" if entry.required else "optional"][entry.name] = (said, dict(entry.options))
    return sections
