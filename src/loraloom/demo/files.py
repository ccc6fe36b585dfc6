"""Where the demo's files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
MODELS = DATA / "models"
"""Laid out like ComfyUI's `models/`: `loraloom run … --models` and `loraloom serve --models` take it."""
WORKFLOW = DATA / "workflow.json"
"""The tutorial's first workflow, on the demo's files: `LoraLoader` with MODEL and CLIP, one picture."""
CHECKPOINT = MODELS / "checkpoints" / "loraloom-demo.safetensors"


@dataclass(frozen=True, slots=True)
class DemoLora:
    """A LoRA of the demo: its trigger word, which is also its file's name, what it makes of pictures, and
    what it is made of."""

    trigger: str
    look: str
    kind: str
    models: Path = MODELS
    """The models folder that its file is in."""

    @property
    def file(self) -> Path:
        return self.models / "loras" / f"{self.trigger}.safetensors"

    def asked(self, prompt: str) -> str:
        """The prompt with the trigger word: put in front where no part between commas is the word."""
        said = self.trigger in (part.strip() for part in prompt.split(","))
        return prompt if said else f"{self.trigger},{prompt}"


LORAS = {
    lora.trigger: lora
    for lora in (
        DemoLora("pixel_art", "large pixels", "LoRA of rank 8"),
        DemoLora("ink", "lines in black on white", "DoRA of rank 6"),
    )
}
