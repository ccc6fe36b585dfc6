"""`loraloom demo --train`: a LoRA trained in front of the user, on pictures that the demo's model draws."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from loraloom.atomic_file import write_file
from loraloom.cli.demo import Easel
from loraloom.cli.display import Display
from loraloom.cli.run_command import stop_on_interrupt
from loraloom.cli.train import run_training
from loraloom.demo.files import CHECKPOINT, LORAS, MODELS, DemoLora
from loraloom.demo.lesson import SAMPLES, THINGS, TRIGGER, as_delft
from loraloom.training.settings import Settings
from loraloom.training.toml import parse

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from loraloom.training.train import Trained

STEPS, BATCH, RANK = 100, 4, 8
SAMPLE_EVERY = 25
SEED = 21
"""Of the pictures and the training, so that a run that was stopped goes on with the same pictures."""


def train_lora(output_dir: Path, display: Display) -> DemoLora:
    """Draw the pictures, train below `output_dir/training`, and put the LoRA into `output_dir/models`."""
    kind = f"LoRA of rank {RANK}, trained just now"
    lora = DemoLora(TRIGGER, "blue on white", kind, output_dir / "models")
    folder = output_dir / "training"
    pictures = folder / "pictures"
    display.say(f"1 of 3: the base model draws {len(THINGS)} things to learn from, into {pictures}")
    side = draw_pictures(pictures, display)
    samples = folder / "run" / "samples"
    display.say(
        f"2 of 3: a LoRA learns the word {TRIGGER!r} in {STEPS} steps; watch its samples in {samples}"
    )
    trained = _train(folder, side, display)
    lora.file.parent.mkdir(parents=True, exist_ok=True)
    write_file(lora.file, trained.lora.read_bytes())
    display.say(f"3 of 3: pictures with the new LoRA, {lora.file}")
    return lora


def draw_pictures(folder: Path, display: Display) -> int:
    """Every thing that is not there yet, as the base draws it, turned blue, into `folder`; the side of the
    pictures."""
    from PIL import Image

    from loraloom.session import Session

    missing = [thing for thing in THINGS if not picture_of(folder, thing).exists()]
    if len(missing) < len(THINGS):
        display.say(f"{len(THINGS) - len(missing)} of {len(THINGS)} are there already")
    with (
        stop_on_interrupt() as cancel,
        Session(MODELS, output_dir=folder.parent / "drawn", dtype="fp32") as session,
    ):
        easel = Easel(session, LORAS["pixel_art"], SEED, display, cancel)
        for number, thing in enumerate(missing, len(THINGS) - len(missing) + 1):
            write_lesson(folder, thing, easel.base(thing, thing.replace(" ", "-")))
            display.say(f"{number} of {len(THINGS)}: {thing}")
    with Image.open(picture_of(folder, THINGS[0])) as picture:
        return picture.width


def picture_of(folder: Path, thing: str) -> Path:
    """Where the picture of `thing` lies, once it is there whole; its caption lies beside it."""
    return folder / f"{thing.replace(' ', '-')}.png"


def write_lesson(folder: Path, thing: str, picture: Picture) -> None:
    """The caption of `thing`, then its picture in blue."""
    path = picture_of(folder, thing)
    content = BytesIO()
    as_delft(picture).save(content, "PNG")
    write_file(path.with_suffix(".txt"), f"{TRIGGER}, {thing}".encode())
    write_file(path, content.getvalue())


def _train(folder: Path, side: int, display: Display) -> Trained:
    """The run below `folder/run`; one that was stopped there goes on."""
    stated = {
        "name": TRIGGER,
        "output": folder / "run",
        "model": {"checkpoint": CHECKPOINT},
        "data": [{"folder": folder / "pictures", "trigger": TRIGGER}],
        "adapter": {"rank": RANK, "text_encoder": True},
        "optimizer": {"rate": 4e-3},
        "run": {
            "steps": STEPS, "batch": BATCH, "resolution": side, "seed": SEED, "dtype": "fp32",
            "save_every": SAMPLE_EVERY,
        },
        "validation": {"share": 0.0},
        "samples": {
            "prompts": SAMPLES, "every": SAMPLE_EVERY, "cfg": 4.0, "sampler": "dpmpp_2m",
            "scheduler": "karras", "seed": SEED,
        },
    }  # fmt: skip
    return run_training(parse(stated, Settings, Path()), None, display.quiet)
