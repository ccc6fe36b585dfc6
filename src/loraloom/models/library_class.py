"""One class of diffusers, transformers or PEFT, without the rest of the libraries.

The files of a model import little, but their packages' `__init__` import every other model, and what trains,
shards or quantises them (PEFT, Accelerate, SciPy, TorchDynamo): seconds until the first picture, for nothing.
PEFT imports a language model of transformers, and with it all of that, for one kind of adapter: seconds until
the first step of a training. So while `library_class` imports a file,

- a package of these libraries stays bare: there, but without its `__init__`. The first name that is asked of
  it runs that, whenever this is: what a node pack imports later is whole, and of the same classes;
- what files of these libraries import of `DEFERRED` is imported when it is first used, and so is what they
  take from Hugging Face's hub, which brings its whole interface along;
- which package comes of which distribution, for which all that is installed is read, is found out when it is
  asked for.

Only the thread that imports sees any of this.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from importlib.util import resolve_name
from types import ModuleType
from typing import Any

LIBRARIES = frozenset({"diffusers", "peft", "transformers"})

DEFERRED = (
    *("accelerate", "bitsandbytes", "gguf", "requests", "scipy", "sklearn", "torchvision"),
    *(
        "diffusers.hooks",
        "diffusers.quantizers",
        "diffusers.schedulers",
        "diffusers.loaders.single_file_utils",
    ),
    *("transformers.conversion_mapping", "transformers.core_model_loading", "transformers.distributed"),
    *("transformers.generation", "transformers.integrations", "transformers.processing_utils"),
    "transformers.quantizers",
    "torch._dynamo",
)
"""What running a network needs nothing of; the libraries themselves are it for each other's files."""

HUB = "huggingface_hub"

DYNAMO = "torch._dynamo"
"""Compiles networks. Functions are marked for it where it is there already, else they do without."""

_Import = Callable[..., Any]


def library_class(path: str) -> Any:
    """The class, or function, "package.module:Class". ImportError or AttributeError where there is none.

    A library that cannot be imported piecemeal (of another version, say) is imported as a whole."""
    where, _, name = path.partition(":")
    if where.partition(".")[0] not in LIBRARIES:
        return getattr(importlib.import_module(where), name)
    try:
        with _piecemeal():
            module = importlib.import_module(where)
        _spare_peft()
    except ImportError:
        module = importlib.import_module(where)
    return getattr(module, name)


def import_ahead(paths: Iterable[str]) -> threading.Thread:
    """Begin to import classes, in order, in a thread. What goes wrong is said where one is asked for.

    The libraries' own beginnings come first, in this thread: they replace themselves in `sys.modules`, so
    that another thread that imports them at that moment would get half of one."""

    def work() -> None:
        for path in wanted:
            with suppress(ImportError, AttributeError):
                library_class(path)

    wanted = tuple(paths)
    for library in dict.fromkeys(path.partition(".")[0] for path in wanted):
        if library in LIBRARIES:
            with suppress(ImportError), _piecemeal():
                importlib.import_module(library)
    thread = threading.Thread(target=work, name="loraloom-imports")
    thread.start()
    return thread


def _spare_peft() -> None:
    """Networks of diffusers import PEFT at every call, to scale its layers by 1: that is left out."""
    module = sys.modules.get("diffusers.utils.peft_utils")
    for name in ("scale_lora_layers", "unscale_lora_layers"):
        scale: Callable[..., None] | None = getattr(module, name, None)
        if scale is not None and not hasattr(scale, "__wrapped__"):
            setattr(module, name, _but_by_one(scale))


def _but_by_one(scale: Callable[..., None]) -> Callable[..., None]:
    @wraps(scale)
    def scaled(model: object, weight: float | None = None) -> None:
        if weight != 1.0:
            scale(model, weight)

    return scaled


class _State(threading.local):
    """Whether this thread imports piecemeal."""

    active = False


_state = _State()
_lock = threading.RLock()
_whole: set[str] = set()  # packages that were asked for a name: never bare again


@contextmanager
def _piecemeal() -> Generator[None]:
    """In this thread, packages of the libraries stay bare and imports of theirs are deferred."""
    import torch

    with _lock:  # one thread at a time: the import statement is the interpreter's, not a thread's
        if _state.active:
            yield
            return
        plain, mark = builtins.__import__, torch.compiler.allow_in_graph
        finder, deferring, marking = _Finder(), _deferring(plain), _marking(mark)
        distributions = importlib.metadata.packages_distributions
        importlib.metadata.packages_distributions = _looked_up_later(distributions)
        sys.meta_path.insert(0, finder)
        builtins.__import__ = deferring
        torch.compiler.allow_in_graph = marking
        _state.active = True
        try:
            yield
        finally:
            _state.active = False
            if builtins.__import__ is deferring:
                builtins.__import__ = plain
            torch.compiler.allow_in_graph = mark
            importlib.metadata.packages_distributions = distributions
            sys.meta_path.remove(finder)


def _marking(mark: Callable[..., Any]) -> Callable[..., Any]:
    """A mark for TorchDynamo, which this thread leaves out where it would import that."""
    return lambda function: function if _state.active and DYNAMO not in sys.modules else mark(function)


_Distributions = Mapping[str, list[str]]


def _looked_up_later(find: Callable[[], _Distributions]) -> Callable[[], _Distributions]:
    """`packages_distributions`, in this thread without looking before somebody asks."""
    return lambda: _LaterFound(find) if _state.active else find()


class _LaterFound(Mapping[str, list[str]]):
    """A mapping that is made when something is asked of it."""

    def __init__(self, find: Callable[[], _Distributions]) -> None:
        self._find = cache(find)

    def __getitem__(self, key: str) -> list[str]:
        return self._find()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._find())

    def __len__(self) -> int:
        return len(self._find())


class _Finder(MetaPathFinder):
    """Finds packages below the libraries' top, to be left bare."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _state.active or path is None or fullname in _whole:
            return None
        if fullname.partition(".")[0] not in LIBRARIES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.submodule_search_locations is not None and spec.has_location:
            spec.loader = _BareLoader()
            return spec
        return None


class _BareLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return BarePackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leaves the package as it is."""


class BarePackage(ModuleType):
    """A package whose modules can be imported, and whose `__init__` has not run.

    The first name that it lacks makes the import system import the package anew; from then on this object
    only points there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        whole = self._filled()
        if name == "__all__" and not hasattr(whole, name):  # what "import *" takes
            return [public for public in vars(whole) if not public.startswith("_")]
        return getattr(whole, name)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if not name.startswith("__") and not isinstance(value, ModuleType):
            setattr(self._filled(), name, value)

    def __dir__(self) -> list[str]:
        return dir(self._filled())

    def _filled(self) -> ModuleType:
        """The package as its `__init__` makes it, which may be running."""
        package = self.__name__
        _whole.add(package)
        if sys.modules.get(package) is self:
            sys.modules.pop(package, None)
        importlib.import_module(package)
        whole = sys.modules[package]  # which may have replaced itself
        for name, module in list(vars(self).items()):
            if isinstance(module, ModuleType) and module.__name__ == f"{package}.{name}":
                vars(whole).setdefault(name, module)
        return whole


def _deferring(plain: _Import) -> _Import:
    """The import statement, for files of the libraries without what is deferred."""

    def statement(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        importer = str((globals or {}).get("__name__", ""))
        library = importer.partition(".")[0]
        if not _state.active or library not in LIBRARIES:
            return plain(name, globals, locals, fromlist, level)
        package = str((globals or {}).get("__package__") or "")
        wanted = resolve_name("." * level + name, package) if level else name
        top = wanted.partition(".")[0]
        if wanted == DYNAMO and DYNAMO not in sys.modules:
            raise ImportError(f"{DYNAMO} is not imported to run a network", name=wanted)
        if wanted == HUB and fromlist:
            return _Hub(wanted, importer)
        if wanted in sys.modules or not _is_deferred(wanted, importer):
            return plain(name, globals, locals, fromlist, level)
        return _DeferredModule(wanted, importer) if fromlist else Deferred(top, None, importer)

    return statement


def _is_deferred(wanted: str, importer: str) -> bool:
    """Whether a file's import of a module is put off."""
    top, library = wanted.partition(".")[0], importer.partition(".")[0]
    if top in LIBRARIES and top != library:
        return True
    return any(f"{wanted}.".startswith(f"{part}.") for part in DEFERRED)


class _DeferredModule:
    """What `from module import name` takes its names of."""

    def __init__(self, module: str, importer: str) -> None:
        self._module, self._importer = module, importer

    def __getattr__(self, name: str) -> Deferred:
        return Deferred(self._module, name, self._importer)


class _Hub(_DeferredModule):
    """The hub's functions and classes; constants are compared and errors caught, so they come at once."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name.isupper() or name.endswith("Error"):
            return getattr(importlib.import_module(self._module), name)
        return super().__getattr__(name)


class Deferred:
    """A name that a file imported: stands for it until it is used, then the real one takes its place.

    Can be called, be the base of a class, stand in annotations, and asked for attributes. Nothing is an
    instance of a class whose module nobody has imported."""

    def __init__(self, module: str, name: str | None, importer: str) -> None:
        self._module, self._name, self._importer = module, name, importer

    def _real(self) -> Any:
        module = importlib.import_module(self._module)
        real = module if self._name is None else self._named(module, self._name)
        if isinstance(real, Deferred):  # handed on by a file that had it deferred
            real = real._real()
        held = vars(sys.modules.get(self._importer, module))
        for key in [key for key, value in held.items() if value is self]:
            held[key] = real
        return real

    def _named(self, module: ModuleType, name: str) -> Any:
        if not hasattr(module, name):
            return importlib.import_module(f"{self._module}.{name}")
        return getattr(module, name)

    def __getattr__(self, name: str) -> Any:
        if name == "__version__" and self._name is None:
            return version(self._module)
        return getattr(self._real(), name)

    def __getitem__(self, key: Any) -> Any:
        return self._real()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._real()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._real())

    def __call__(self, *args: Any, **given: Any) -> Any:
        return self._real()(*args, **given)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __instancecheck__(self, instance: object) -> bool:
        return self._module in sys.modules and isinstance(instance, self._real())

    def __subclasscheck__(self, other: type) -> bool:
        return self._module in sys.modules and issubclass(other, self._real())

    def __or__(self, other: object) -> object:
        return Any

    __ror__ = __or__
