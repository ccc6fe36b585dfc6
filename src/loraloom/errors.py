"""The errors a user may meet, each with the exit code of the command line.

LoraloomError                 1  the run failed
├── InputError                2  the source, an option or a file is not what it should be
│   ├── WorkflowError         2  the workflow cannot be read or does not validate
│   ├── ModelFileError        2  a model file is cut short, of another kind, or unsafe
│   └── FileWriteError        2  a file cannot be written where it should be
│       ├── PathTaken         2  a file stands where a folder is needed, or the other way round
│       └── DiskFull          2  there is no space left for a file
├── MissingModelsError        3  model files that the workflow names were not found
├── OutOfMemory               1  the run needs more memory than there is
└── Cancelled               130  the user stopped the run

A message says what was found, what was expected and what to do. Bugs are not in this tree: they
propagate as what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class LoraloomError(Exception):
    """Anything that Loraloom reports to its user instead of a traceback."""

    exit_code = 1


class InputError(LoraloomError):
    """What the user gave cannot be used as it is."""

    exit_code = 2


class WorkflowError(InputError):
    """A workflow that cannot be read, or that does not validate."""


class ModelFileError(InputError):
    """A model file that is not what it should be."""


class FileWriteError(InputError):
    """A file that cannot be written where it should be."""


class PathTaken(FileWriteError):
    """A file stands where a folder is needed, or the other way round."""


class DiskFull(FileWriteError):
    """There is no space left where a file should be written."""


@dataclass(frozen=True, slots=True)
class MissingModel:
    """One model file that a workflow names and that no model folder holds."""

    node_id: str
    node_title: str
    folder: str
    name: str
    nearest: tuple[str, ...] = field(default=())
    url: str | None = None


class MissingModelsError(LoraloomError):
    """Model files that the workflow names were not found."""

    exit_code = 3

    def __init__(self, missing: tuple[MissingModel, ...]) -> None:
        self.missing = missing
        names = ", ".join(f"{m.folder}/{m.name} (node {m.node_id} {m.node_title!r})" for m in missing)
        super().__init__(f"{len(missing)} model file(s) not found: {names}")


class OutOfMemory(LoraloomError):
    """The run needs more memory than there is."""


class Cancelled(LoraloomError):
    """The user stopped the run."""

    exit_code = 130
