"""The demo's text encoder, before the diffusion: it learns which picture a caption speaks of.

From scratch, cross-attention is slow to find words of which it knows nothing: after a thousand steps of
diffusion alone the prompt hardly matters. So every position behind the words first learns to tell concept,
style and the picture's coarse latent; the diffusion then starts with a context that says something.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from captions import Captioner
from diffusion import DiffusionRecipe, Latents, build_text, context
from pictures import STYLES
from state import read_tensors, write_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from loraloom.models.text.clip import ClipText

log = logging.getLogger(__name__)

STEPS, BATCH, RATE = 600, 48, 2e-3
COARSE = 4
"""Cells a side of the latent that is asked for."""
FILE = "text.safetensors"


class _Questions(nn.Module):
    """What a state is asked: concept, style, coarse latent. Thrown away afterwards."""

    def __init__(self, width: int, concepts: int) -> None:
        super().__init__()
        self.concept = nn.Linear(width, concepts)
        self.style = nn.Linear(width, len(STYLES))
        self.latent = nn.Linear(width, 4 * COARSE**2)


def _loss(states: Tensor, questions: _Questions, targets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """states (B, D) against the concept, the style and the coarse latent of B pictures."""
    concept, style, latent = targets
    return (
        F.cross_entropy(questions.concept(states), concept)
        + F.cross_entropy(questions.style(states), style)
        + F.mse_loss(questions.latent(states), latent)
    )


def train(
    latents: Latents, captioner: Captioner, work: Path, recipe: DiffusionRecipe, device: torch.device
) -> None:
    """Write `work/text.safetensors`; a minute, so it is not resumed but begun anew."""
    if (work / FILE).exists():
        return
    torch.manual_seed(recipe.seed)
    text = build_text(recipe).to(device)
    questions = _Questions(recipe.text.width, len(captioner.concepts)).to(device)
    parameters = [*text.parameters(), *questions.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    coarse = F.adaptive_avg_pool2d(latents.mean, COARSE).flatten(1)
    coarse = ((coarse - coarse.mean(0)) / coarse.std()).to(device)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(recipe.seed * 3_000_017 + step)
        chosen = torch.randint(len(latents.concept), (BATCH,), generator=generator).tolist()
        rows = [captioner.draw(latents.concept[i], STYLES[latents.style[i]], generator) for i in chosen]
        tokens = torch.tensor(rows, device=device)
        said = tokens[:, 1] != tokens[:, -1]  # an empty caption says nothing
        states = context(text, tokens)[said]
        targets = (
            torch.tensor([latents.concept[i] for i in chosen], device=device)[said],
            torch.tensor([latents.style[i] for i in chosen], device=device)[said],
            coarse[chosen][said],
        )
        position = torch.randint(24, tokens.shape[1], (len(states),), generator=generator)
        at_one = states[torch.arange(len(states)), position]
        loss = _loss(at_one, questions, targets) + _loss(states.mean(1), questions, targets)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50, 2 * (STEPS - step) / STEPS)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            known = (questions.concept(at_one).argmax(1) == targets[0]).float().mean()
            log.info("text %d/%d loss %.3f concepts named %.2f", step, STEPS, loss.item(), known.item())
    write_tensors(work / FILE, {key: value.cpu() for key, value in text.state_dict().items()}, {})


def trained(work: Path, recipe: DiffusionRecipe) -> ClipText:
    """The text encoder as `train` left it."""
    text = build_text(recipe)
    text.load_state_dict(read_tensors(work / FILE)[0])
    return text
