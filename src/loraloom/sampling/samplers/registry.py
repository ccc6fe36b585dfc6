"""Samplers by name, with what a driver must know of each.

    @sampler("euler_ancestral", noise="reseeded")
    def euler_ancestral(denoise, x, sigmas, *, noise, eta=1.0, s_noise=1.0): ...

Every module of this folder is imported once, when a name is first asked for.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from loraloom.errors import InputError
from loraloom.sampling.types import Denoiser, Noise, NoiseKind, Sampler, Step

ORDER = [
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
]
"""The order in which editors list them; a name that is not here comes last."""


@dataclass(frozen=True, slots=True)
class Method:
    """A sampler with its knobs.

    needs_uncond: reads `Denoiser.uncond`, so the negative side is computed even where cfg does not need it.
    drops_penultimate: by convention runs on one step more than asked, without the last level above 0.
    own_mask_noise: inside a noise mask, the kept part is noised with noise of its own.
    adaptive: chooses its steps by what the network gives, so that rounding in the last digit leads elsewhere.
    knobs: keyword arguments for `function`, sorted by name.
    """

    name: str
    function: Sampler
    noise: NoiseKind = "continued"
    needs_uncond: bool = False
    drops_penultimate: bool = False
    own_mask_noise: bool = False
    adaptive: bool = False
    knobs: tuple[tuple[str, object], ...] = ()

    def with_knobs(self, **knobs: object) -> Method:
        """A copy with other knobs. Raises InputError for one that the sampler does not have."""
        known = [
            p.name
            for p in inspect.signature(self.function).parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "noise"
        ]
        unknown = sorted(set(knobs) - set(known))
        if unknown:
            raise InputError(
                f"Sampler {self.name!r} has no {', '.join(unknown)}; it has: {', '.join(known)}."
            )
        return replace(self, knobs=tuple(sorted({**dict(self.knobs), **knobs}.items())))

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Step]:
        return self.function(denoise, x, sigmas, noise=noise, **dict(self.knobs))


_METHODS: dict[str, Method] = {}


def sampler(
    name: str,
    *,
    noise: NoiseKind = "continued",
    needs_uncond: bool = False,
    drops_penultimate: bool = False,
    own_mask_noise: bool = False,
    adaptive: bool = False,
    **knobs: object,
) -> Callable[[Sampler], Sampler]:
    """Offer a sampler under a name, with knobs other than its own defaults where names share a function.

    Raises ValueError where the name is taken."""

    def register(function: Sampler) -> Sampler:
        if (other := _METHODS.get(name)) is not None:
            raise ValueError(f"two samplers are called {name!r}: {said(other.function)} and {said(function)}")
        _METHODS[name] = Method(
            name, function, noise, needs_uncond, drops_penultimate, own_mask_noise, adaptive
        ).with_knobs(**knobs)
        return function

    return register


def said(function: Callable[..., object]) -> str:
    """A function as a message names it: "module.function, line 12"."""
    return f"{function.__module__}.{function.__qualname__}, line {function.__code__.co_firstlineno}"


@lru_cache(maxsize=1)
def _methods() -> dict[str, Method]:
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    place = {name: i for i, name in enumerate(ORDER)}
    return dict(sorted(_METHODS.items(), key=lambda item: place.get(item[0], len(ORDER))))


def sampler_names() -> tuple[str, ...]:
    return tuple(_methods())


def method(name: str, **knobs: object) -> Method:
    """The sampler of that name. Raises InputError when there is none, or when it lacks a knob."""
    found = _methods().get(name)
    if found is None:
        raise InputError(f"Unknown sampler {name!r}; known are: {', '.join(_methods())}.")
    return found.with_knobs(**knobs) if knobs else found
