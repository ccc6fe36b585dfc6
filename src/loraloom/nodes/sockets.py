"""The socket types of the node library: ComfyUI's names tied to the Python types behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Required, TypedDict

from torch import Tensor

from loraloom.engine.node import Choice, Files, Number, Socket, Text
from loraloom.sampling.types import Conditioning as ConditioningValue

if TYPE_CHECKING:
    from loraloom.models.handles import Autoencoder, DiffusionModel, TextEncoders


class LatentValue(TypedDict, total=False):
    """samples: (B, C, H/8, W/8) float32; other families have other pixels than 8, and some frames before the
    height. noise_mask: (B, H, W) or (H, W), 1 where new content is wanted. batch_index: the index in its
    original batch of each latent, which decides its noise. downscale_ratio_spacial: of empty latents, the
    pixels of the picture that a latent pixel is wide. decoders: of sampled latents, the kinds of
    autoencoder that decode them. encoder: of encoded pictures, the kind that encoded them."""

    samples: Required[Tensor]
    noise_mask: Tensor
    batch_index: list[int]
    downscale_ratio_spacial: int
    decoders: tuple[str, ...]
    encoder: str


Model = Annotated["DiffusionModel", Socket("MODEL")]
Clip = Annotated["TextEncoders", Socket("CLIP")]
Vae = Annotated["Autoencoder", Socket("VAE")]
Conditioning = Annotated[ConditioningValue, Socket("CONDITIONING")]
Latent = Annotated[LatentValue, Socket("LATENT")]
Image = Annotated[Tensor, Socket("IMAGE")]
"""(B, H, W, 3 or 4), float32, 0 … 1."""
Mask = Annotated[Tensor, Socket("MASK")]
"""(B, H, W), float32, 0 … 1."""
Sigmas = Annotated[Tensor, Socket("SIGMAS")]

CheckpointFile = Annotated[str, Files("checkpoints")]
LoraFile = Annotated[str, Files("loras")]
Strength = Annotated[float, Number(min=-100.0, max=100.0, step=0.01)]
Seed = Annotated[int, Number(min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True)]
Steps = Annotated[int, Number(min=1, max=10000)]
Cfg = Annotated[float, Number(min=0.0, max=100.0, step=0.1, round=0.01)]
Prompt = Annotated[str, Text(multiline=True, dynamic_prompts=True)]
BatchSize = Annotated[int, Number(min=1, max=4096)]
EnableDisable = Choice(("enable", "disable"))
