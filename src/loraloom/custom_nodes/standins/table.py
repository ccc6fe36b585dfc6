"""Which module stands in for which, and putting them where `import` finds them.

A name that is really installed is never taken: then packs get the real one.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from loraloom.custom_nodes.standins.node_classes import ClassMappings, NodesModule
from loraloom.folders import ModelFolders

_HERE = "loraloom.custom_nodes.standins"
_PACKAGES = ("comfy", "comfy.comfy_types", "comfy_api", "comfy_execution")
_MODULES = {
    "comfy.comfy_types": "node_typing",
    "comfy.comfy_types.node_typing": "node_typing",
    "comfy.model_management": "model_management",
    "comfy.samplers": "samplers",
    "comfy.utils": "progress",
    "comfy_api.v0_0_2": "api",
    "comfy_execution.graph": "graph",
    "comfy_execution.graph_utils": "graph_utils",
}
"""ComfyUI's module → the module here whose names it gets; imported when a pack asks for it."""
_EMPTY = ("comfy.sd",)
"""Modules that packs import at their head for rare uses: there, with nothing in them."""


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stand-ins, last of all finders, from `install` until `remove`."""

    def __init__(self, folders: ModelFolders, output_dir: Path) -> None:
        self._folders, self._output_dir = folders, output_dir
        self._made: dict[str, ModuleType] = {}
        self.classes = ClassMappings()

    def install(self) -> None:
        """Let `import` find them; those of another session that are there give way."""
        for name, module in [*sys.modules.items()]:
            if isinstance(getattr(getattr(module, "__spec__", None), "loader", None), StandIns):
                del sys.modules[name]
        others = [i for i, finder in enumerate(sys.meta_path) if isinstance(finder, StandIns)]
        sys.meta_path.insert(others[0] if others else len(sys.meta_path), self)

    def remove(self) -> None:
        """Take the stand-ins, and only them, out of the interpreter's modules."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name, module in self._made.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        self._made.clear()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        known = (*_PACKAGES, *_MODULES, *_EMPTY, "folder_paths", "nodes")
        if fullname not in known:
            return None
        parent = fullname.rpartition(".")[0]
        if parent and parent not in self._made:
            return None  # below a package that is really installed
        return importlib.util.spec_from_loader(fullname, self, is_package=fullname in _PACKAGES)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = self._module(spec.name)
        self._made[spec.name] = module
        return module

    def exec_module(self, module: ModuleType) -> None:
        source = _MODULES.get(module.__name__)
        if source is not None:
            found = importlib.import_module(f"{_HERE}.{source}")
            for name in found.__all__:
                setattr(module, name, getattr(found, name))

    def _module(self, name: str) -> ModuleType:
        if name == "folder_paths":
            from loraloom.custom_nodes.standins.folder_paths import FolderPaths

            return FolderPaths(self._folders, self._output_dir)
        if name == "nodes":
            return NodesModule(self.classes)
        return ModuleType(name, "Stands in for ComfyUI's module of this name.")
