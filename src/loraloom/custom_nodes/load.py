"""Loads node packs from folders such as ComfyUI's `custom_nodes`.

A pack is a Python file, or a folder with an `__init__.py`, that has NODE_CLASS_MAPPINGS. It is code of its
author's and runs with all rights of this process: nothing is loaded unless the user names its folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from loraloom.custom_nodes.adapter import node_type
from loraloom.custom_nodes.standins.table import StandIns
from loraloom.engine.node import NodeType
from loraloom.errors import InputError
from loraloom.folders import ModelFolders
from loraloom.workflow.implemented import implemented_schemas
from loraloom.workflow.schema import NodeSchema


@dataclass(frozen=True, slots=True)
class PackFailure:
    """A pack, or one class of a pack ("pack: Class"), that could not be loaded, and why."""

    name: str
    cause: str

    def __str__(self) -> str:
        return f"node pack {self.name} was skipped: {self.cause}"


@dataclass(frozen=True, slots=True)
class Packs:
    """Loaded packs. nodes: their classes by name; failed: what was skipped.

    Their modules stay importable, for imports within functions, until `close`.
    """

    nodes: dict[str, NodeType]
    failed: tuple[PackFailure, ...]
    standins: StandIns
    modules: tuple[str, ...] = ()

    @property
    def schemas(self) -> dict[str, NodeSchema]:
        """What the classes declare, by name."""
        return {name: found.schema for name, found in self.nodes.items()}

    def close(self) -> None:
        """Take the packs and the stand-ins out of the interpreter's modules."""
        self.standins.remove()
        for name in self.modules:
            _forget(name)


def load_packs(
    directories: Sequence[Path], *, folders: ModelFolders, output_dir: Path = Path("output")
) -> Packs:
    """Every pack in these directories; a directory that is a pack itself is loaded as one.

    folders, output_dir: what `folder_paths` tells packs while no node runs. Loraloom's own classes are not
    replaced; of two packs' classes of one name the later one counts. What a pack prints while it is imported
    goes to standard error.
    Raises InputError when a directory is not there; whatever is wrong with a pack is in `failed`.
    """
    standins = StandIns(folders, output_dir)
    if directories:
        standins.install()
    nodes: dict[str, NodeType] = {}
    failed: list[PackFailure] = []
    modules: list[str] = []
    for path in (pack for directory in directories for pack in _packs_in(directory)):
        name = _module_name(path)
        try:
            with redirect_stdout(sys.stderr):
                module = _import(name, path)
                classes = _mapping(module, "NODE_CLASS_MAPPINGS")
                titles = _mapping(module, "NODE_DISPLAY_NAME_MAPPINGS", required=False)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a pack may fail in any way; it is skipped
            _forget(name)
            failed.append(PackFailure(path.name, _cause(error)))
            continue
        modules.append(name)
        standins.classes.add(cast("Mapping[str, type]", classes))
        for class_name, found in classes.items():
            if class_name in implemented_schemas():
                failed.append(PackFailure(f"{path.name}: {class_name}", "Loraloom has this class itself"))
                continue
            try:
                nodes[class_name] = node_type(
                    class_name,
                    cast("type", found),
                    display_name=str(titles.get(class_name, "")),
                    python_module=f"custom_nodes.{path.stem if path.is_file() else path.name}",
                )
            except Exception as error:  # noqa: BLE001 - the class's own code; the others may be fine
                failed.append(PackFailure(f"{path.name}: {class_name}", _cause(error)))
    return Packs(nodes, tuple(failed), standins, tuple(modules))


def _packs_in(directory: Path) -> Iterator[Path]:
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder; expected one that holds node packs")
    if (directory / "__init__.py").is_file():
        yield directory
        return
    for path in sorted(directory.iterdir()):
        if path.name.startswith((".", "__")) or path.name.endswith(".disabled"):
            continue
        if (path.is_file() and path.suffix == ".py") or (path / "__init__.py").is_file():
            yield path


def _module_name(path: Path) -> str:
    """A name that could be imported, whatever the folder is called, and that no other pack has."""
    digest = hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()
    return f"custom_nodes_{digest}_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"


def _import(name: str, path: Path) -> ModuleType:
    _forget(name)
    file = path / "__init__.py" if path.is_dir() else path
    places = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _mapping(module: ModuleType, name: str, *, required: bool = True) -> Mapping[str, object]:
    found: object = getattr(module, name, None)
    if isinstance(found, Mapping):
        return cast("Mapping[str, object]", found)
    if found is None and not required:
        return {}
    if found is None and hasattr(module, "comfy_entrypoint"):
        raise TypeError("it has comfy_entrypoint, ComfyUI's second node contract, which is not supported")
    raise TypeError(f"{name} is {type(found).__name__}, expected a dictionary of node classes")


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _forget(name: str) -> None:
    for known in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[known]
