"""`loraloom demo`: the tutorial's first workflow on the model that Loraloom ships, with a LoRA of its own or
one that is trained now."""

from __future__ import annotations

import json
import shlex
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loraloom.atomic_file import write_file
from loraloom.cli.console import say
from loraloom.cli.display import Display
from loraloom.cli.run_command import stop_on_interrupt
from loraloom.cli.settings import OutputDirOption
from loraloom.cli.workflow_commands import JsonOption, SeedOption
from loraloom.contact_sheet import Axis, contact_sheet_png
from loraloom.demo.files import DATA, LORAS, MODELS, WORKFLOW, DemoLora
from loraloom.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from loraloom.result import Run
    from loraloom.session import Session
    from loraloom.workflow.graph import Graph

PROMPT = "high quality,Illustration of a single red rose"
GRID_PROMPTS = ("a red rose", "a cat", "a pizza")
GRID_STRENGTHS = ("0", "0.75", "1")


def demo_command(
    prompt: Annotated[
        str,
        typer.Argument(
            help="What to draw: one of 119 things (docs/demo.md lists them), such as 'a cat' or 'a rocket'. "
            "The trigger word is put in front where it is missing."
        ),
    ] = PROMPT,
    lora: Annotated[
        Literal["pixel_art", "ink"] | None,
        typer.Option(help="Which of the LoRAs that come along to show.", show_default="pixel_art"),
    ] = None,
    train: Annotated[
        bool,
        typer.Option("--train", help="Train a LoRA first, on pictures that the model draws, and show it."),
    ] = False,
    seed: SeedOption = None,
    output_dir: OutputDirOption = Path("demo-output"),
    unpack: Annotated[
        Path | None,
        typer.Option(help="Draw nothing; put the model, its LoRAs and the workflow into this folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one prompt with a LoRA and without it, on a small model that comes with Loraloom."""
    if unpack is not None:
        for path in unpack_demo(unpack):
            say(path)
        return
    from loraloom.session import Session

    if train and lora:
        raise InputError(
            f"--train shows the LoRA that it trains, --lora {lora} one that comes along: give one"
        )
    display = Display(quiet=as_json)
    if train:
        from loraloom.cli.demo_training import train_lora

        shown = train_lora(output_dir, display)
    else:
        shown = LORAS[lora or "pixel_art"]
    folders = list(dict.fromkeys((MODELS, shown.models)))
    display.say(f"{shown.trigger}: {shown.look} ({shown.kind}), trigger word {shown.trigger!r}")
    with (
        stop_on_interrupt() as cancel,
        Session(folders, output_dir=output_dir, dtype="fp32") as session,
    ):
        easel = Easel(session, shown, seed, display, cancel)
        runs = {
            "with the LoRA": easel.draw(prompt, "1", f"with-{shown.trigger}"),
            "without it": easel.draw(prompt, "0", f"without-{shown.trigger}"),
        }
        sheet = session.services.output.save(f"{shown.trigger}-strengths", ".png", easel.strengths()).path
    if as_json:
        described = {title: run.to_json() for title, run in runs.items()}
        told = {"status": "done", "lora": str(shown.file), "sheet": str(sheet), "runs": described}
        typer.echo(json.dumps(told, indent=1))
        return
    display.say(f"Look at these: same words, same seed; what differs is the LoRA ({shown.look})")
    for title, run in runs.items():
        display.say(f"{title}: {run.outputs[0].path}")
    display.say(f"strengths from 0 (left) to 1 (right): {sheet}")
    again = [
        "loraloom",
        "run",
        str(WORKFLOW),
        *(word for folder in folders for word in ("--models", str(folder))),
    ]
    display.say(f"More with these files: {shlex.join(again)}")


def unpack_demo(folder: Path) -> list[Path]:
    """Write `models/` and `workflow.json` into a folder, where other commands find them. Raises InputError
    where another file stands in a place."""
    files = {
        folder / file.relative_to(DATA): file for file in (WORKFLOW, *sorted(MODELS.rglob("*.safetensors")))
    }
    for path, file in files.items():
        if path.exists() and path.read_bytes() != file.read_bytes():
            raise InputError(f"{path} is there already and is another file; name an empty folder")
    for path, file in files.items():
        if not path.exists():
            write_file(path, file.read_bytes())
    return [*files]


class Easel:
    """Draws prompts with one LoRA through the demo's workflow."""

    def __init__(
        self, session: Session, lora: DemoLora, seed: int | None, display: Display, cancel: threading.Event
    ) -> None:
        self._session, self._lora, self._seed = session, lora, seed
        self._display, self._cancel = display, cancel
        self._workflow = session.prepare(WORKFLOW)

    def draw(self, prompt: str, strength: str, name: str) -> Run:
        """One picture, with the trigger word, shown as it comes about."""
        graph = self._graph(self._lora.asked(prompt), strength, name)
        with self._display.running(graph):
            run = self._session.run_prepared(graph, on_event=self._display.see, cancel=self._cancel)
        self._display.result(run)
        return run

    def base(self, prompt: str, name: str) -> Image:
        """One picture without the LoRA and its word."""
        return self._session.run_prepared(self._graph(prompt, "0", name), cancel=self._cancel).images[0]

    def strengths(self) -> bytes:
        """A PNG with a row for each prompt and a column for each strength."""
        pictures: list[Image] = []
        for prompt in GRID_PROMPTS:
            self._display.say(f"strengths {', '.join(GRID_STRENGTHS)}: {prompt}")
            for strength in GRID_STRENGTHS:
                name = "strengths/" + prompt.replace(" ", "-")
                graph = self._graph(self._lora.asked(prompt), strength, name)
                pictures += self._session.run_prepared(graph, cancel=self._cancel).images[:1]
        return contact_sheet_png(pictures, [Axis("", GRID_PROMPTS), Axis("strength", GRID_STRENGTHS)])

    def _graph(self, text: str, strength: str, name: str) -> Graph:
        changes = {
            "LoraLoader.lora_name": self._lora.file.name,
            "LoraLoader.strength_model": strength,
            "LoraLoader.strength_clip": strength,
            "3.text": text,
            "SaveImage.filename_prefix": name,
        }
        return self._session.prepare(self._workflow, set=changes, seed=self._seed)
