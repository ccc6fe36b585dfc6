"""Stands in for `folder_paths`: where models, inputs and outputs are.

Made anew for every session, since it knows that session's folders. While a node runs, its output and temp
folders are those of the run.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from loraloom.custom_nodes.current import current_run
from loraloom.custom_nodes.file_list import FileList
from loraloom.errors import InputError
from loraloom.folders import MODEL_SUFFIXES, ModelFolders
from loraloom.runtime.services import Services

_ANNOTATED = re.compile(r"(?P<name>.*?)(?: \[(?P<kind>output|input|temp)\])?", re.DOTALL)


class FolderPaths(ModuleType):
    """The module, with its functions as methods."""

    def __init__(self, folders: ModelFolders, output_dir: Path) -> None:
        super().__init__("folder_paths", __doc__)
        root = folders.roots[0] if folders.roots else Path("models")
        self._folders, self._output = folders, output_dir.absolute()
        self._known = frozenset(folders.kinds())
        self.supported_pt_extensions = set(MODEL_SUFFIXES)
        self.models_dir = str(root.absolute())
        self.base_path = str(root.absolute().parent)
        self.folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {
            kind: ([str(d.absolute()) for d in folders.directories(kind)], set(MODEL_SUFFIXES))
            for kind in folders.kinds()
        }

    # ---- Folders ----

    def __getattr__(self, name: str) -> str:
        """ComfyUI's variables beside its functions."""
        kinds = {"output_directory": "output", "input_directory": "input", "temp_directory": "temp"}
        if name in kinds:
            return str(self.get_directory_by_type(kinds[name]))
        raise AttributeError(f"folder_paths has no {name!r} in Loraloom")

    def get_output_directory(self) -> str:
        run = current_run()
        if run is not None and isinstance(run.services, Services):
            return str(run.services.output.root.absolute())
        return str(self._output)

    def get_temp_directory(self) -> str:
        run = current_run()
        if run is not None and isinstance(run.services, Services):
            return str(run.services.temp.root.absolute())
        return str(Path(tempfile.gettempdir()) / "loraloom")

    def get_input_directory(self) -> str:
        return str((self._folders.input_dir or Path("input")).absolute())

    def get_user_directory(self) -> str:
        return str(Path(self.base_path) / "user")

    def get_directory_by_type(self, type_name: str) -> str | None:
        made: dict[str, Callable[[], str]] = {
            "output": self.get_output_directory,
            "input": self.get_input_directory,
            "temp": self.get_temp_directory,
        }
        return made[type_name]() if type_name in made else None

    # ---- Model files ----

    def add_model_folder_path(
        self, folder_name: str, full_folder_path: str, is_default: bool = False
    ) -> None:
        """Register a further directory of a kind, or a kind of the pack's own."""
        directories, _ = self.folder_names_and_paths.setdefault(folder_name, ([], set()))
        if full_folder_path not in directories:
            directories.insert(0 if is_default else len(directories), full_folder_path)

    def get_folder_paths(self, folder_name: str) -> list[str]:
        return list(self.folder_names_and_paths[folder_name][0])

    def get_filename_list(self, folder_name: str) -> list[str]:
        """The files of a kind; for ComfyUI's own kinds a list that keeps up with the folder."""
        own = self._listed(folder_name)
        if self._is_ours(folder_name):
            found = self._folders.list(folder_name)
            known = set(found)
            return FileList(found, (folder_name,), tuple(name for name in own if name not in known))
        return own

    def get_full_path(self, folder_name: str, filename: str) -> str | None:
        if self._is_ours(folder_name):
            found = self._folders.find(folder_name, filename)
            if found is not None:
                return str(found)
        for directory in self.folder_names_and_paths.get(folder_name, ([], set[str]()))[0]:
            path = os.path.normpath(os.path.join(directory, filename))
            if _is_inside(path, directory) and os.path.isfile(path):
                return path
        return None

    def get_full_path_or_raise(self, folder_name: str, filename: str) -> str:
        found = self.get_full_path(folder_name, filename)
        if found is None:
            raise FileNotFoundError(f"there is no file {filename!r} in the {folder_name} folders")
        return found

    def filter_files_extensions(self, files: Iterable[str], extensions: Iterable[str]) -> list[str]:
        wanted = tuple(extensions)
        return sorted(f for f in files if not wanted or os.path.splitext(f)[1].lower() in wanted)

    def _is_ours(self, kind: str) -> bool:
        return kind in self._known or kind in ("clip", "unet")

    def _listed(self, kind: str) -> list[str]:
        if kind not in self.folder_names_and_paths:
            if self._is_ours(kind):
                return []
            raise KeyError(kind)
        directories, suffixes = self.folder_names_and_paths[kind]
        found: dict[str, None] = {}
        for directory in directories:
            for current, _, files in os.walk(directory, followlinks=True):
                for name in self.filter_files_extensions(files, suffixes):
                    found[Path(current, name).relative_to(directory).as_posix()] = None
        return sorted(found)

    # ---- Pictures ----

    def annotated_filepath(self, name: str) -> tuple[str, str | None]:
        """ "name [output]" → the name, and the folder that it is in."""
        found = _ANNOTATED.fullmatch(name)
        kind = found.group("kind") if found else None
        bare = found.group("name") if found else name
        return (bare, self.get_directory_by_type(kind)) if kind else (name, None)

    def get_annotated_filepath(self, name: str, default_dir: str | None = None) -> str:
        """The path of an input picture; raises InputError for a name that leads out of its folder."""
        bare, directory = self.annotated_filepath(name)
        directory = directory or default_dir or self.get_input_directory()
        path = os.path.join(directory, bare)
        if not _is_inside(path, directory):
            raise InputError(f"{name!r} leads out of {directory}; expected a name inside of it")
        return path

    def exists_annotated_filepath(self, name: str) -> bool:
        try:
            return os.path.exists(self.get_annotated_filepath(name))
        except InputError:
            return False

    def get_save_image_path(
        self, filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
    ) -> tuple[str, str, int, str, str]:
        """(folder, file name, next free counter, subfolder, prefix) for `name_00001_.png`."""
        sizes = {"%width%": image_width, "%height%": image_height}
        for mark, size in sizes.items():
            filename_prefix = filename_prefix.replace(mark, str(size))
        subfolder, name = os.path.split(os.path.normpath(filename_prefix))
        folder = os.path.join(output_dir, subfolder)
        if not _is_inside(folder, output_dir):
            raise InputError(f"file name prefix {filename_prefix!r} leads out of {output_dir}")
        os.makedirs(folder, exist_ok=True)
        taken = re.compile(re.escape(name) + r"_(\d+)_?(\..*)?")
        numbers = (int(m.group(1)) for f in os.listdir(folder) if (m := taken.fullmatch(f)))
        return folder, name, max(numbers, default=0) + 1, subfolder, filename_prefix


def _is_inside(path: str, directory: str) -> bool:
    root = os.path.realpath(directory)
    return os.path.commonpath([root, os.path.realpath(path)]) == root
