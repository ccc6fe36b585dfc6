"""The loop that the trainings share: steps, averaged weights, saved states, what the log says.

On a CUDA device the passes of a step, forward and backward, are recorded once as a graph and played again: in
networks this narrow, launching the kernels one by one takes longer than the kernels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import workers
from state import Training, follow, resume, save
from torch import Tensor, nn

log = logging.getLogger(__name__)

WARM = 3
"""Passes before one is recorded: they choose algorithms and compile."""
PACED = 200
"""Steps after which it is reckoned anew how many the given time allows."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how a training runs.

    recorded: play the passes as a graph, on CUDA. minutes: how long this call may train, its rate falling all
    the while; None: the recipe's steps."""

    device: torch.device = torch.device("cpu")
    save_every: float = 120.0
    judge_every: float = 600.0
    compiled: bool = False
    recorded: bool = True
    minutes: float | None = None

    def autocast(self) -> torch.autocast:
        """bfloat16 where it does no harm."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def compile(self, network: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
        """The network, compiled if wished."""
        return torch.compile(network, dynamic=False) if self.compiled else network


@dataclass(frozen=True, slots=True)
class Task:
    """One training.

    numbers(step, total) gives the step's numbers by name; "rate" is the optimizer's. passes(numbers) draws a
    batch with torch's own generator, leaves gradients and returns what to log; it gets the numbers as tensors
    of the device and reads nothing else that changes. settle() is called after every step."""

    name: str
    training: Training
    path: Path
    steps: int
    seed: int
    decay: float
    numbers: Callable[[int, int], Mapping[str, float]]
    passes: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    settle: Callable[[], None] | None = None
    judge: Callable[[], str] | None = None


def run(task: Task, machine: Machine) -> None:
    """Train to the end, resuming from and saving to the task's file."""
    training, total = task.training, task.steps
    first = resume(task.path, training)
    began = saved = judged = time.monotonic()
    held = {name: torch.zeros((), device=machine.device) for name in task.numbers(first, total)}
    recorded = machine.recorded and machine.device.type == "cuda"
    passes = _recorded(task, held) if recorded else lambda: task.passes(held)
    told: dict[str, Tensor] = {}
    step, paced = first, _finished_now(machine.device)
    while step < total:
        numbers = task.numbers(step, total)
        for name, number in held.items():
            number.fill_(numbers[name])
        seed_step(task.seed, step)
        for name, value in passes().items():
            share = max(0.01, 1 / (step - first + 1))
            told[name] = (
                value.detach().clone() if name not in told else told[name].lerp_(value.detach(), share)
            )
        _update(training, numbers["rate"], recorded)
        if task.settle is not None:
            task.settle()
        for name, average in training.averages.items():
            follow(average, training.networks[name], min(task.decay, (step + 1) / (step + 10)))
        step += 1
        if machine.minutes is not None and (step - first) % PACED == 0:
            now = _finished_now(machine.device)
            left = began + 60.0 * machine.minutes - now
            total, paced = step + max(0, round(left / (now - paced) * PACED)), now
        if workers.number():
            continue
        now = time.monotonic()
        if step % 50 == 1:
            means = " ".join(f"{name} {value.item():.4f}" for name, value in told.items())
            log.info("%s %d/%d %s %.3f s/step", task.name, step, total, means, (now - began) / (step - first))
        if now - saved > machine.save_every or step >= total:
            save(task.path, training, step)
            saved = now
        if task.judge is not None and (now - judged > machine.judge_every or step >= total):
            log.info("%s %d/%d %s", task.name, step, total, task.judge())
            judged = now


def seed_step(seed: int, step: int) -> None:
    """Random numbers of one step in one process, so that a resumed run draws the same."""
    torch.manual_seed((seed * 1_000_003 + step) * 64 + workers.number())


def _update(training: Training, rate: float, recorded: bool) -> None:
    """One step of the optimizer, the gradients of each network limited to a norm of 1."""
    training.optimizer.param_groups[0]["lr"] = rate
    workers.average_gradients(training.optimizer.param_groups[0]["params"])
    networks = training.networks.values()
    norms = torch.stack([torch.nn.utils.clip_grad_norm_(n.parameters(), 1.0) for n in networks])
    training.optimizer.grad_scale = None
    training.optimizer.found_inf = 1.0 - norms.isfinite().all().float()  # a step without sense is left out
    training.optimizer.step()
    if not recorded:  # a graph writes them anew in their place
        training.optimizer.zero_grad()


def _finished_now(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _recorded(task: Task, held: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
    """The passes of a step as a CUDA graph; every play of it writes the same gradients and results anew."""
    parameters: Iterable[nn.Parameter] = task.training.optimizer.param_groups[0]["params"]
    torch.backends.cudnn.benchmark = True
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            task.passes(held)
            for parameter in parameters:
                parameter.grad = None
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = task.passes(held)

    def play() -> Mapping[str, Tensor]:
        graph.replay()
        return results

    return play
