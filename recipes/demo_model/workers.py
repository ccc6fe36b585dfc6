"""Training on several cores: one process with one thread for each, which average their gradients.

Two threads of one process wait for each other at every operation, and on a machine that others use too, each
wait lasts as long as the starved thread needs: forty times slower was measured. Processes meet once a step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from loraloom.jobs.worker import die_with_parent

LOG_FORMAT = "%(asctime)s %(message)s"


def run(count: int, task: Callable[..., None], *arguments: Any) -> None:
    """Call `task(*arguments)` in `count` processes, or here where that is one; the first failure ends all."""
    if count == 1:
        torch.set_num_threads(1)
        task(*arguments)
    else:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ["MASTER_PORT"] = str(_free_port())
        torch.multiprocessing.spawn(_begin, (count, task, arguments), nprocs=count)  # pyright: ignore[reportPrivateImportUsage]


def _free_port() -> int:
    import socket

    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def _begin(number: int, count: int, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    die_with_parent()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO if number == 0 else logging.WARNING, format=LOG_FORMAT)
    dist.init_process_group("gloo", rank=number, world_size=count)
    try:
        task(*arguments)
    finally:
        dist.destroy_process_group()


def number() -> int:
    """Which of the processes this is; the first one saves and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Every process gets the mean of all processes' gradients."""
    if count() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joined)
    joined /= count()
    parts: list[Tensor] = list(joined.split([gradient.numel() for gradient in gradients]))
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
