"""The training loop: deterministic by step number, so that a resumed run equals one never interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from loraloom.errors import LoraloomError
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, Network, SampleContext
from loraloom.training.attention import attention_for_training
from loraloom.training.captions import draw_caption
from loraloom.training.dataset import Example
from loraloom.training.noise import add_noise, draw_noise, draw_sigmas, even_sigmas, weighted_loss
from loraloom.training.optimizers import make_optimizer, rate_factor, set_rate
from loraloom.training.session import Session
from loraloom.training.state import Position, last_state, restore_state, save_state, what_counts


@dataclass(frozen=True, slots=True)
class StepReport:
    """What is known after a step. loss: of the step; validation: where one was just measured."""

    step: int
    steps: int
    loss: float
    rate: float
    seconds: float
    validation: float | None = None
    is_best: bool = False
    is_saved: bool = False


class Loop:
    """One run over a session: iterate over `steps()`. A new loop goes on from the last saved state."""

    def __init__(self, session: Session) -> None:
        settings = session.settings
        self.session = session
        self.states = settings.output / "states"
        network, text = session.network_parameters(), session.text_parameters()
        self.parameters = network | text
        self.optimizer: Optimizer = make_optimizer(
            list(network.values()), list(text.values()), settings.optimizer
        )
        self._attention = attention_for_training(
            session.live.network.device, torch.bfloat16 if settings.run.dtype == "bf16" else torch.float32
        )
        self._stated = what_counts(settings)
        self.position = Position()
        latest = last_state(self.states)
        if latest is not None:
            self.position = restore_state(latest, self.parameters, self.optimizer, self._stated)

    def steps(self) -> Iterator[StepReport]:
        """Train from the present position to the end, one report per step."""
        settings = self.session.settings
        while self.position.step < settings.run.steps:
            began = time.monotonic()
            step = self.position.step
            factor = rate_factor(step, settings.run.steps, settings.optimizer)
            set_rate(self.optimizer, factor)
            with self._attention:  # the backward pass too, where activations are computed again
                loss = self._step(step)
            done = step + 1
            self.position = replace(self.position, step=done, losses=(*self.position.losses, loss))
            report = StepReport(
                done, settings.run.steps, loss, factor * settings.optimizer.rate, time.monotonic() - began
            )
            yield self._milestones(report)

    def _milestones(self, report: StepReport) -> StepReport:
        """Validate and save where it is time to."""
        settings, done = self.session.settings, report.step
        last = done == settings.run.steps
        if self.session.split.validation and (done % settings.validation.every == 0 or last):
            loss = self.validate()
            is_best = loss < self.position.best
            validations = (*self.position.validations, (done, loss))
            self.position = replace(self.position, validations=validations)
            report = replace(report, validation=loss, is_best=is_best)
        if done % settings.run.save_every == 0 or last:
            self.save()
            report = replace(report, is_saved=True)
        return report

    def save(self) -> None:
        """Keep the present state."""
        keep = self.session.settings.run.keep_states
        save_state(self.states, self.position, self.parameters, self.optimizer, self._stated, keep)

    def _step(self, step: int) -> float:
        run = self.session.settings.run
        total = 0.0
        for part in range(run.accumulate):
            number = step * run.accumulate + part
            epoch, place = divmod(number, self.session.plan.batches_per_epoch)
            chosen = [self.session.split.training[i] for i in self.session.plan.epoch(epoch)[place]]
            generator = torch.Generator().manual_seed(run.seed * 1_000_003 + number)
            loss = self._loss(chosen, generator) / run.accumulate
            if not torch.isfinite(loss):
                raise LoraloomError(
                    f"the loss of step {step + 1} is not finite: lower optimizer.rate, or train in fp32"
                )
            loss.backward()
            total += loss.item()
        if self.session.settings.optimizer.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.session.settings.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _loss(self, examples: list[Example], generator: torch.Generator) -> Tensor:
        """The loss of one batch; every draw comes from `generator`, in this order."""
        session, settings = self.session, self.session.settings
        captions = [draw_caption(e.caption, e.folder, generator) for e in examples]
        flips = (torch.rand(len(examples), generator=generator) < 0.5).tolist()
        latent = torch.cat(
            [
                session.latents(e, session.sizes[e.digest], flip and e.folder.flip)
                for e, flip in zip(examples, flips, strict=True)
            ]
        )
        latent = session.live.network.process_latent_in(latent)
        noise = draw_noise(latent, settings.noise.offset, generator)
        sigma = draw_sigmas(session.live.network.parametrisation, latent, settings.noise, generator)
        return self._error(latent, noise, sigma, session.condition.together(captions))

    def _error(self, latent: Tensor, noise: Tensor, sigma: Tensor, conds: list[Cond]) -> Tensor:
        network, settings = self.session.live.network, self.session.settings
        latent, noise, sigma = (t.to(network.device) for t in (latent, noise, sigma))
        parametrisation = network.parametrisation
        noised = add_noise(parametrisation, latent, sigma, noise, settings.noise)
        rows: list[Inputs] = []
        for index, cond in enumerate(conds):
            told = replace(cond, options={"guidance": settings.noise.guidance, **cond.options})
            one = SampleContext(latent=latent[index : index + 1], noise=noise[index : index + 1])
            rows.append(network.inputs(told, one))
        x = parametrisation.scale_input(noised.x, sigma)
        output = _run(network, x, parametrisation.timestep(sigma).float(), rows)
        return weighted_loss(output, noised)

    @torch.no_grad()
    def validate(self) -> float:
        """The loss on the pictures kept apart, at the same noise and levels every time."""
        session, settings = self.session, self.session.settings
        network, losses = session.live.network, list[float]()
        for example in session.split.validation:
            latent = session.latents(example, session.sizes[example.digest])
            latent = network.process_latent_in(latent)
            sigmas = even_sigmas(network.parametrisation, latent, settings.validation.draws, settings.noise)
            generator = torch.Generator().manual_seed(int(example.digest[:12], 16))
            cond = session.condition(example.caption)
            for sigma in sigmas.split(1):
                noise = draw_noise(latent, 0.0, generator)
                losses.append(self._error(latent, noise, sigma, [cond]).item())
        return sum(losses) / len(losses)


def _run(network: Network, x: Tensor, times: Tensor, rows: list[Inputs]) -> Tensor:
    """The network on a batch: as one where all inputs join (captions of other lengths may not), else in
    turns."""
    moved = [row.mapped(lambda tensor: tensor.to(x.device)) for row in rows]
    if all(row.joins(moved[0]) for row in moved[1:]):
        return network(x, times, Inputs.joined(moved))
    parts = zip(x.split(1), times.split(1), moved, strict=True)
    return torch.cat([network(one, time, row) for one, time, row in parts])
