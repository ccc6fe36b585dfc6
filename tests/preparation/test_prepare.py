"""The command line and Python prepare a workflow alike: the same graphs, notes and errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from loraloom.cli.main import exit_code_of
from loraloom.errors import LoraloomError, WorkflowError
from loraloom.lora.hashes import hashes_of
from loraloom.session import Session
from tests.workflow.pictures_samples import png
from tests.workflow.ui_samples import link, node, workflow

TEXTS = "{a|b|c|d|e} {rose|cat|dog|apple|pizza} {1|2|3|4|5}"


@dataclass(frozen=True, slots=True)
class Answer:
    """graph: API JSON, None where it was refused. error: the message. code: the exit code."""

    code: int
    graph: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    error: str = ""


Ask: TypeAlias = Callable[..., Answer]
"""(workflow as JSON, loras=, set=, seed=, workflow=) → what became of it."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models/, in which one LoRA has been renamed."""
    folder = tmp_path_factory.mktemp("prepare")
    (folder / "models/checkpoints").mkdir(parents=True)
    (folder / "models/loras").mkdir()
    (folder / "models/checkpoints/base.safetensors").touch()
    for name, layer in (("text", "lora_te_text_model_encoder_layers_0_mlp_fc1"), ("renamed", "lora_unet_x")):
        tensors = {f"{layer}.lora_{side}.weight": torch.ones(2, 2) for side in ("up", "down")}
        save_file(tensors, folder / f"models/loras/{name}.safetensors", {"modelspec.trigger_phrase": "sks"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


def by_command(root: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    def ask(
        source: object,
        *,
        loras: list[str] | None = None,
        set: list[str] | None = None,
        seed: int | None = None,
        workflow: str | None = None,
    ) -> Answer:
        (root / "workflow.json").write_text(source if isinstance(source, str) else json.dumps(source))
        words = ["run", "workflow.json", "--models", "models", "--dry-run", "--json"]
        words += [word for text in loras or () for word in ("--lora", text)]
        words += [word for text in set or () for word in ("--set", text)]
        words += [] if seed is None else ["--seed", str(seed)]
        words += [] if workflow is None else ["--workflow", workflow]
        code = exit_code_of(words)
        said = json.loads(capsys.readouterr().out)
        if code:
            return Answer(code, error=said["error"]["message"])
        return Answer(code, said["workflows"][0], tuple(said["notes"][0]))

    return ask


def by_python(root: Path, session: Session) -> Ask:
    def ask(source: object, **changes: Any) -> Answer:
        path = root / "workflow.json"
        path.write_text(source if isinstance(source, str) else json.dumps(source))
        try:
            graph = session.prepare("workflow.json", **changes)
        except LoraloomError as error:
            return Answer(error.exit_code, error=str(error))
        return Answer(0, graph.to_api(), graph.notes)

    return ask


@pytest.fixture(scope="module")
def session(root: Path) -> Iterator[Session]:
    with Session(root / "models", output_dir=root / "output", device="cpu") as made:
        yield made


@pytest.fixture(params=["command", "python"])
def ask(
    request: pytest.FixtureRequest, root: Path, session: Session, capsys: pytest.CaptureFixture[str]
) -> Ask:
    return by_command(root, capsys) if request.param == "command" else by_python(root, session)


def api(lora: str | None = None) -> dict[str, Any]:
    """A workflow in API format, with a LoRA or without one."""
    source = ["1", 0] if lora is None else ["9", 0]
    nodes: dict[str, Any] = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "sks"}},
        "3": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1},
        },
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": source, "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0],
                "seed": 1, "steps": 2, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "x"}},
    }  # fmt: skip
    if lora is not None:
        nodes["9"] = {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["1", 0], "lora_name": lora, "strength_model": 1.0},
        }
    return nodes


def two() -> str:
    """A page with two workflows."""
    return f"# one\n\n{json.dumps(api())}\n\n# another\n\n{json.dumps(api('text.safetensors'))}\n"


def editor(*, text: str = "a rose", lora: str = "", digest: str = "") -> dict[str, Any]:
    """A workflow of the editor: a prompt that is saved as a latent's name, and maybe a LoRA with its hash."""
    nodes: list[dict[str, Any]] = [
        {
            "id": 1, "type": "CheckpointLoaderSimple", "widgets_values": ["base.safetensors"],
            "outputs": [
                {"name": "MODEL", "type": "MODEL", "links": [4]},
                {"name": "CLIP", "type": "CLIP", "links": [1]},
                {"name": "VAE", "type": "VAE", "links": []},
            ],
        },
        {
            "id": 2, "type": "CLIPTextEncode", "widgets_values": [text],
            "inputs": [{"name": "clip", "type": "CLIP", "link": 1}],
            "outputs": [{"name": "CONDITIONING", "type": "CONDITIONING", "links": [2, 3]}],
        },
        {
            "id": 3, "type": "EmptyLatentImage", "widgets_values": [64, 64, 1],
            "outputs": [{"name": "LATENT", "type": "LATENT", "links": [5]}],
        },
        {
            "id": 4, "type": "KSampler", "widgets_values": [1, "fixed", 2, 7, "euler", "normal", 1],
            "inputs": [
                {"name": "model", "type": "MODEL", "link": 6 if lora else 4},
                {"name": "positive", "type": "CONDITIONING", "link": 2},
                {"name": "negative", "type": "CONDITIONING", "link": 3},
                {"name": "latent_image", "type": "LATENT", "link": 5},
            ],
            "outputs": [{"name": "LATENT", "type": "LATENT", "links": [7]}],
        },
        {
            "id": 5, "type": "SaveLatent", "widgets_values": ["x"],
            "inputs": [{"name": "samples", "type": "LATENT", "link": 7}],
        },
    ]  # fmt: skip
    links: list[list[Any]] = [
        [1, 1, 1, 2, 0, "CLIP"], [2, 2, 0, 4, 1, "CONDITIONING"], [3, 2, 0, 4, 2, "CONDITIONING"],
        [5, 3, 0, 4, 3, "LATENT"], [7, 4, 0, 5, 0, "LATENT"],
    ]  # fmt: skip
    if lora:
        nodes.append(
            {
                "id": 6, "type": "LoraLoaderModelOnly", "widgets_values": [lora, 1],
                "inputs": [{"name": "model", "type": "MODEL", "link": 4}],
                "outputs": [{"name": "MODEL", "type": "MODEL", "links": [6]}],
            }
        )  # fmt: skip
        links += [[4, 1, 0, 6, 0, "MODEL"], [6, 6, 0, 4, 0, "MODEL"]]
    else:
        links.append([4, 1, 0, 4, 0, "MODEL"])
    models = [{"name": lora, "url": "", "directory": "loras", "hash": digest}] if digest else []
    return {"version": 0.4, "nodes": nodes, "links": links, "models": models}


def test_loras_come_first_so_that_their_inputs_can_be_set_and_the_seed_last(ask: Ask) -> None:
    answer = ask(
        api(), loras=["text.safetensors:0.5"], set=["LoraLoader.strength_clip=0.25", "4.seed=3"], seed=7
    )
    assert answer.graph is not None, answer.error
    (loader,) = (node for node in answer.graph.values() if node["class_type"] == "LoraLoader")
    assert (loader["inputs"]["strength_model"], loader["inputs"]["strength_clip"]) == (0.5, 0.25)
    assert answer.graph["4"]["inputs"]["seed"] == 7


def test_one_seed_makes_one_choice(ask: Ask, root: Path, session: Session) -> None:
    def text(seed: int, ask: Ask = ask) -> str:
        graph = ask(editor(text=TEXTS), seed=seed).graph
        assert graph is not None
        return graph["2"]["inputs"]["text"]

    assert {text(7) for _ in range(4)} == {text(7, by_python(root, session))}
    assert len({text(seed) for seed in range(6)}) > 1


def test_a_renamed_lora_is_found_by_its_hash(ask: Ask, root: Path) -> None:
    digest = hashes_of(root / "models/loras/renamed.safetensors").sha256
    answer = ask(editor(lora="gone.safetensors", digest=str(digest)))
    assert answer.graph is not None, answer.error
    assert answer.graph["6"]["inputs"]["lora_name"] == "renamed.safetensors"
    assert any("found by its hash" in note for note in answer.notes)


def test_what_is_rarely_meant_is_a_note(ask: Ask) -> None:
    for loras, words in (
        (["text.safetensors:0"], "strengths are 0"),
        (["renamed.safetensors"], "no text"),
    ):
        (note, *_) = ask(api(), loras=loras).notes
        assert words in note


def test_what_was_found_elsewhere_is_a_note(ask: Ask) -> None:
    answer = ask(api("somewhere/text.safetensors"))
    assert answer.code == 3
    assert "text.safetensors" in answer.error


REFUSED: dict[str, tuple[Callable[[], object], dict[str, Any], int, str]] = {
    "no assignment": (api, {"set": ["steps=3"]}, 2, "is not an assignment"),
    "no node": (api, {"set": ["KSamplr.steps=3"]}, 2, "Nearest: KSampler"),
    "no number": (api, {"set": ["KSampler.steps=many"]}, 2, "whole number"),
    "LoRA's strength": (api, {"loras": ["text.safetensors:strong"]}, 2, "is not a strength"),
    "LoRA's file": (api, {"loras": ["nosuch.safetensors"]}, 3, "nosuch.safetensors"),
    "no model": (lambda: {"1": {"class_type": "EmptyImage", "inputs": {}}}, {"loras": ["a"]}, 2, "no node"),
    "seed": (api, {"seed": -1}, 2, "out of range"),
    "no seed": (
        lambda: {"1": {"class_type": "PreviewImage", "inputs": {}}}, {"seed": 1}, 2, "no seed to set"
    ),
    "class": (lambda: {"1": {"class_type": "Nope", "inputs": {}}}, {}, 2, "Nope"),
    "no workflow": (lambda: "not one", {}, 2, "workflow"),
    "several": (lambda: two(), {}, 2, "choose"),
    "number": (lambda: json.dumps(api()), {"workflow": "3"}, 2, "has no workflow"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_have_one_message(case: str, ask: Ask, root: Path, session: Session) -> None:
    source, changes, code, words = REFUSED[case]
    answer = ask(source(), **changes)
    assert (answer.graph, answer.code) == (None, code)
    assert words in answer.error
    assert answer == by_python(root, session)(source(), **changes)


def test_python_takes_the_command_lines_all_for_one_workflow_only(root: Path, session: Session) -> None:
    assert "choose one of them" in by_python(root, session)(two(), workflow="all").error
    assert by_python(root, session)(api(), workflow="all").graph == api()


def test_a_source_in_memory_is_prepared_alike(session: Session, root: Path) -> None:
    changes: dict[str, Any] = {"seed": 3, "loras": ["text.safetensors"]}
    wanted = by_python(root, session)(api(), **changes).graph
    assert session.prepare(api(), **changes).to_api() == wanted
    assert session.prepare(session.prepare(api()), **changes).to_api() == wanted


def test_a_picture_with_an_older_prompt_runs_by_its_workflow(
    root: Path, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    """VAEDecodeTiled got three inputs since; the editor's workflow gives them their defaults."""
    prompt = api() | {
        "6": {
            "class_type": "VAEDecodeTiled",
            "inputs": {"samples": ["3", 0], "vae": ["1", 2], "tile_size": 512},
        },
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}},
    }
    editor = workflow(
        node(1, "CheckpointLoaderSimple", values=["base.safetensors"], outputs=["MODEL", "CLIP", "VAE"]),
        node(3, "EmptyLatentImage", values=[64, 64, 1], outputs=["LATENT"]),
        node(6, "VAEDecodeTiled", values=[512], inputs=[("samples", "LATENT", 1), ("vae", "VAE", 2)],
             outputs=["IMAGE"]),
        node(7, "SaveImage", values=["x"], inputs=[("images", "IMAGE", 3)]),
        links=[link(1, 3, 0, 6, 0), link(2, 1, 2, 6, 1), link(3, 6, 0, 7, 0)],
    )  # fmt: skip
    picture = png({"prompt": json.dumps(prompt), "workflow": json.dumps(editor)})
    graph = session.prepare(picture, set={"6.tile_size": 256})
    assert graph.nodes["6"].inputs["tile_size"] == 256
    assert graph.nodes["6"].inputs["overlap"] == 64
    assert any("Required input is missing: overlap" in n and "'workflow' is used" in n for n in graph.notes)
    (root / "old.png").write_bytes(picture)
    assert exit_code_of(["validate", "old.png", "--models", "models"]) == 0
    assert "'workflow' is used" in capsys.readouterr().err
    with pytest.raises(WorkflowError, match="overlap"):
        session.prepare(png({"prompt": json.dumps(prompt)}))
