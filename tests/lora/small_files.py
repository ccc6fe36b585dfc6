"""LoRA files of a few hundred bytes, written without torch: many of them for tests of the library."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

WIDTHS = {"sd15": 768, "sdxl": 2048}


def write_small_lora(
    path: Path, family: str = "sd15", rank: int = 4, metadata: Mapping[str, str] | None = None, fill: int = 0
) -> Path:
    """One attention module in kohya's names. fill: the two bytes that its data consists of."""
    width = WIDTHS[family]
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {
        f"{name}.lora_down.weight": (rank, width),
        f"{name}.lora_up.weight": (8, rank),
        f"{name}.alpha": (),
    }
    header: dict[str, object] = {"__metadata__": dict(metadata or {})}
    offset = 0
    for key, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + 2 * count]}
        offset += 2 * count
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + fill.to_bytes(2, "little") * (offset // 2))
    return path
