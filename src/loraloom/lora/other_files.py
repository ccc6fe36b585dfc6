"""Files that people put among LoRAs and that are none: told by the names of their tensors. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

_CHECKPOINT = "a whole checkpoint, not a LoRA; put it into the checkpoints folder"
_EMBEDDING = "a textual-inversion embedding, not a LoRA; put it into the embeddings folder"
_CONTROLNET = "a ControlNet, not a LoRA; put it into the controlnet folder and use a ControlNet loader"
_NETWORK = "a whole diffusion model, not a LoRA; put it into the diffusion_models folder"
_AUTOENCODER = "an autoencoder (VAE), not a LoRA; put it into the vae folder"
_ENCODER = "a text encoder, not a LoRA; put it into the text_encoders folder"
_VISION = "an image encoder, not a LoRA; put it into the clip_vision folder"
_IP_ADAPTER = "an IP-Adapter, not a LoRA; its own nodes read it, from the folder ipadapter"
_CONTROL_LORA = "a Control-LoRA (a ControlNet in low ranks), not a LoRA; put it into the controlnet folder"
_SVDQUANT = (
    "in SVDQuant's form (nunchaku), whose low-rank factors are packed for its own kernels;"
    " get the original file in 16 or 8 bits"
)
_REDUX = "an image encoder's projection (Flux Redux), not a LoRA; put it into the style_models folder"

_SURE: Mapping[str, str] = MappingProxyType(
    {
        r"lora_controlnet$": _CONTROL_LORA,
        r"(?:^|\.)ip_adapter\.|^image_proj\.|\.to_[kv]_ip\.|^ip_adapter_": _IP_ADAPTER,
        r"\.(?:wscales|wtscale|wcscales|smooth_orig|smooth_factor_orig|smooth_factor)$": _SVDQUANT,
    }
)
"""Pattern of a tensor name → what the file is, even where other tensors are named like a LoRA's."""

_NO_LORA: Mapping[str, str] = MappingProxyType(
    {
        r"^(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.": _CHECKPOINT,
        r"^(?:emb_params|string_to_param)$": _EMBEDDING,
        r"\.lora_(?:up|down)$": _SVDQUANT,
        r"(?:^|\.)(?:control_model\.|input_hint_block\.|controlnet_\w+\.|zero_convs\.)": _CONTROLNET,
        r"^redux_(?:up|down)\.": _REDUX,
        r"^(?:input_blocks|double_blocks|joint_blocks|down_blocks|transformer_blocks|blocks|layers)\.\d"
        r".*\.weight$": _NETWORK,
        r"^(?:encoder|decoder)\.(?:conv_in|down|up|mid|down_blocks|up_blocks)\b": _AUTOENCODER,
        r"^(?:text_model\.encoder|transformer\.resblocks|encoder\.block|model\.layers)\.": _ENCODER,
        r"^(?:vision_model|visual)\.": _VISION,
    }
)
"""The same, for files that hold no tensor of a LoRA at all."""


def other_kind(names: Iterable[str], *, sure: bool) -> str | None:
    """What a file is by the names of its tensors; None where they do not tell.

    sure: only by names that no LoRA has beside its own. Without: by those of files without a LoRA's tensors.
    """
    found = list(names)
    if not sure and sorted(found) == ["clip_g", "clip_l"]:
        return _EMBEDDING
    for pattern, kind in (_SURE if sure else _NO_LORA).items():
        seek = re.compile(pattern)
        if any(seek.search(name) for name in found):
            return kind
    return None
