"""How deep networks begin, so that they learn early.

Residual branches begin at zero: a network starts as a short chain of convolutions. Stable Diffusion's own
code begins so; diffusers' classes, made to be loaded, do not.

In a narrow autoencoder a norm's group is two channels, and its statistics are the picture's: of a thing on
white they take away how far its colour is from white, which then has to be found out by detours. So channels
begin with offsets, up and down by turns, larger than what they carry: the statistics are those of the
offsets, and the norms begin as the identity.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

OFFSET = 2.0
GAIN = 3.0**0.5
"""From the deviation of PyTorch's fresh weights to the one that keeps the deviation of what goes through: no
norm does it now."""


@torch.no_grad()
def begin_as_identity(network: nn.Module) -> None:
    """Set the last layer of every residual branch to zero: of resnets, transformers and lone attention."""
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            last = module.conv2
        elif isinstance(module, Transformer2DModel):
            last = module.proj_out
        elif isinstance(module, Attention) and module.residual_connection:
            last = module.to_out[0]
        else:
            continue
        last.weight.zero_()
        last.bias.zero_()


@torch.no_grad()
def carry_offsets(vae: AutoencoderKL) -> None:
    """Give all channels between the first and the last norm of each half their offsets, and take them away
    behind every norm. Layers that read offsets begin blind to them, so that edges show no frame."""
    for half in (vae.encoder, vae.decoder):
        half.conv_in.weight *= GAIN
        half.conv_in.bias.copy_(_offsets(half.conv_in.out_channels))
        _undo_offsets(half.conv_norm_out)
        half.conv_out.weight *= 2.0 * GAIN  # SiLU halves what is near zero
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            _undo_offsets(module.norm1)
            _undo_offsets(module.norm2)
            module.conv1.bias.copy_(_offsets(module.conv1.out_channels))
            if module.conv_shortcut is not None:
                _pass_offsets(module.conv_shortcut)
        elif isinstance(module, Downsample2D | Upsample2D):
            _pass_offsets(module.conv)
        elif isinstance(module, Attention):
            _undo_offsets(module.group_norm)


def _offsets(channels: int) -> Tensor:
    signs = torch.ones(channels)
    signs[1::2] = -1.0
    return OFFSET * signs


def _undo_offsets(norm: nn.GroupNorm) -> None:
    norm.weight.fill_(OFFSET)
    norm.bias.copy_(-_offsets(norm.num_channels))


def _pass_offsets(convolution: nn.Conv2d) -> None:
    """Offsets in, offsets out, and no weight along those that come in."""
    along = _offsets(convolution.in_channels) / (OFFSET * convolution.in_channels**0.5)
    weight = convolution.weight
    weight *= GAIN
    weight -= torch.einsum("oihw,i->ohw", weight, along)[:, None] * along[None, :, None, None]
    convolution.bias.copy_(_offsets(convolution.out_channels))
