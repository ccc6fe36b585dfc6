"""What a training kind is: all about one sort of adapter, as one object in one file of `training/kinds`.

The files are imported to check settings, where torch is not loaded: they import peft inside their functions.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from loraloom.models.library_class import library_class

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor

    from loraloom.training.settings import AdapterSettings

KINDS = "loraloom.training.kinds"


class Kind:
    """One training kind. A file of `training/kinds` extends this and ends in `KIND = ItsKind()`.

    name: the file's name, and the setting `adapter.kind`.
    algebra, wrapper: those of `lora/algorithms` by which what is trained is written, and read again.
    in_diffusers: whether diffusers' loader reads it.
    module, algorithm: kohya's network module, and the algorithm that it is told.
    settings: those of `AdapterSettings` that only some kinds take, and that this one does.
    """

    name: ClassVar[str]
    algebra: ClassVar[str]
    wrapper: ClassVar[str | None] = None
    in_diffusers: ClassVar[bool] = False
    module: ClassVar[str] = "lycoris.kohya"
    algorithm: ClassVar[str] = ""
    settings: ClassVar[tuple[str, ...]] = ()

    def conv_rank(self, settings: AdapterSettings) -> int:
        """Rank of convolutions; 0: they are left alone."""
        return settings.conv_rank

    def arguments(self) -> dict[str, str]:
        """What kohya's network module is told besides ranks."""
        return {"algo": self.algorithm} if self.algorithm else {}

    def config(self, given: Mapping[str, Any], alpha: Any, settings: AdapterSettings) -> PeftConfig:
        """How peft wraps the layers. given: rank, layers, and patterns of ranks and alphas. alpha: a number;
        peft's annotations want an int, its code does not."""
        raise NotImplementedError

    def can_train(self, weight: Tensor) -> bool:
        """Whether the layer of a weight can have such an adapter."""
        return True

    def tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A layer's trained parameters, by peft's names, as the tensors of its algebra by role."""
        return dict(trained)


class LowRankKind(Kind):
    """The kinds that are peft's LoRA."""

    algebra = "lora"
    module = "networks.lora"
    in_diffusers = True
    decomposed: ClassVar[bool] = False

    def config(self, given: Mapping[str, Any], alpha: Any, settings: AdapterSettings) -> PeftConfig:
        return library_class("peft:LoraConfig")(**given, lora_alpha=alpha, use_dora=self.decomposed)

    def tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"down": trained["lora_A"], "up": trained["lora_B"]}


@lru_cache(maxsize=1)
def kinds() -> Mapping[str, Kind]:
    """Every kind by name: what the files of `training/kinds` define. ValueError where two share a name."""
    package = importlib.import_module(KINDS)
    found: dict[str, Kind] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        kind: Kind = importlib.import_module(f"{KINDS}.{name}").KIND
        if (other := found.setdefault(kind.name, kind)) is not kind:
            raise ValueError(f"two training kinds are called {kind.name!r}: {type(other)} and {type(kind)}")
    return found
