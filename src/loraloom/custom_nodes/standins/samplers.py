"""Stands in for `comfy.samplers`: the names of samplers and schedulers."""

from __future__ import annotations

from loraloom.sampling.samplers.registry import sampler_names
from loraloom.sampling.schedules import schedule_names

__all__ = ["SAMPLER_NAMES", "SCHEDULER_NAMES", "KSampler"]

SAMPLER_NAMES = list(sampler_names())
SCHEDULER_NAMES = list(schedule_names())


class KSampler:
    """The choices of the node KSampler. It cannot be made: sampling goes through nodes."""

    SAMPLERS = SAMPLER_NAMES
    SCHEDULERS = SCHEDULER_NAMES

    def __init__(self, *_: object, **__: object) -> None:
        raise NotImplementedError("Loraloom does not sample through comfy.samplers; use the node KSampler")
