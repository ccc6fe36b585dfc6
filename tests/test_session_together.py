"""Several runs as rows of common batches: each gives what it gives alone, and has its own life."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from loraloom.engine.events import Event, NodeProgress, RunFinished
from loraloom.engine.node import NodeResult, NodeRun, Socket, node, node_types
from loraloom.errors import Cancelled
from loraloom.nodes.sockets import Latent
from loraloom.result import Run
from loraloom.session import NodeFailure, Session
from loraloom.workflow.graph import Graph
from tests.demo_models import write_demo_models
from tests.tiny_models import lora as lora_tensors
from tests.tiny_models import unet_shapes

LATENTS: dict[str, Tensor] = {}


@node("KeepLatent", category="test", output_node=True)
def keep_latent(latent: Latent, name: Annotated[str, Socket("STRING")], *, run: NodeRun) -> NodeResult:
    LATENTS[name] = latent["samples"].clone()
    return NodeResult(ui={"text": [name]})


@node("FailAt", category="test")
def fail_at(latent: Latent, fails: bool = False) -> Latent:
    if fails:
        raise ValueError("this row is bad")
    return latent


NODES = {found.name: found for function in (keep_latent, fail_at) for found in node_types(function)}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    root = tmp_path_factory.mktemp("models")
    write_demo_models(root)
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    linear = {n: s for n, s in unet_shapes(context=64).items() if ".attn" in n and len(s) == 2}
    flat = [("lora_unet_" + n.removesuffix(".weight").replace(".", "_"), s) for n, s in linear.items()]
    save_file(lora_tensors(flat, size=0.7), root / "loras/other.safetensors")
    output = tmp_path_factory.mktemp("output")
    with Session(root, output_dir=output, dtype="fp32", nodes=NODES) as made:
        yield made


def graph(session: Session, name: str, sampler: str = "euler", fails: bool = False, **changes: Any) -> Graph:
    """A picture's latent by one LoRA, in three steps."""
    said: dict[str, Any] = {
        "lora": "1.5/1.5-dpo-LoRA.safetensors", "strength": 1.0, "clip": 1.0, "seed": 1, "steps": 3,
        "prompt": "a rose", "cfg": 5.0,
    } | changes  # fmt: skip
    api: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}),
        "2": ("LoraLoader", {"model": ["1", 0], "clip": ["1", 1], "lora_name": said["lora"],
                             "strength_model": said["strength"], "strength_clip": said["clip"]}),
        "3": ("CLIPTextEncode", {"clip": ["2", 1], "text": said["prompt"]}),
        "4": ("CLIPTextEncode", {"clip": ["2", 1], "text": ""}),
        "5": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "6": ("KSampler", {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0],
                           "latent_image": ["5", 0], "seed": said["seed"], "steps": said["steps"],
                           "cfg": said["cfg"], "sampler_name": sampler, "scheduler": "normal",
                           "denoise": 1.0}),
        "7": ("FailAt", {"latent": ["6", 0], "fails": fails}),
        "8": ("KeepLatent", {"latent": ["7", 0], "name": name}),
    }  # fmt: skip
    return session.prepare(
        {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in api.items()}
    )


OTHER = "other.safetensors"
ROWS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"strength": 0.0, "clip": 0.0},
    "full": {},
    "text": {"strength": 0.3, "clip": -1.0, "prompt": "a cat on a roof"},
    "other": {"lora": OTHER, "strength": 0.6, "clip": 0.0, "seed": 3},
    "unguided": {"lora": OTHER, "strength": -0.4, "clip": 0.0, "cfg": 1.0},
}


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m_sde", "dpm_adaptive", "uni_pc"])
def test_rows_give_what_single_runs_give(session: Session, sampler: str) -> None:
    """Samplers draw their noise row by row, and may take steps of their own."""
    for name, changes in ROWS.items():
        session.run(graph(session, f"{name} alone", sampler, **changes))
    made = [graph(session, f"{name} together", sampler, **changes) for name, changes in ROWS.items()]
    results = session.run_together(made)
    for name, result in zip(ROWS, results, strict=True):
        assert isinstance(result, Run), result
        alone, together = LATENTS[f"{name} alone"], LATENTS[f"{name} together"]
        assert float((alone - together).norm()) <= 1e-5 * float(alone.norm()), name
        assert bool(result.batches) == (sampler != "dpm_adaptive")
    assert {len(r.receipts) for r in results if isinstance(r, Run)} == {1}
    strengths = [r.receipts[0]["strength_model"] for r in results if isinstance(r, Run)]
    assert strengths == [0.0, 1.0, 0.3, 0.6, -0.4]


def test_each_row_has_its_own_progress_and_end(session: Session) -> None:
    steps = (2, 5, 3)
    made = [graph(session, f"progress {n}", seed=n, steps=count) for n, count in enumerate(steps)]
    seen: defaultdict[int, list[float]] = defaultdict(list)
    ended: list[int] = []

    def see(row: int, event: Event) -> None:
        if isinstance(event, NodeProgress):
            seen[row].append(event.value)
        if isinstance(event, RunFinished):
            ended.append(row)

    session.run_together(made, on_event=see)
    assert seen == {row: [float(n) for n in range(1, count + 1)] for row, count in enumerate(steps)}
    assert ended == [0, 2, 1]


def test_a_bad_row_fails_alone(session: Session) -> None:
    made = [graph(session, f"bad {n}", seed=n, fails=n == 1) for n in range(3)]
    made[2] = replace(
        made[2], nodes={**made[2].nodes, "2": replace(made[2].nodes["2"], class_type="Nothing")}
    )
    good, bad, broken = session.run_together(made)
    assert isinstance(good, Run) and "bad 0" in LATENTS
    assert isinstance(bad, NodeFailure) and "this row is bad" in str(bad) and bad.failed.node_id == "7"
    assert isinstance(broken, BaseException) and "Nothing" in str(broken)


def test_a_cancelled_row_leaves_the_others(session: Session) -> None:
    stops = [threading.Event(), threading.Event()]
    made = [graph(session, f"cancelled {n}", seed=n, steps=4) for n in range(2)]
    ends: dict[int, str] = {}
    steps: defaultdict[int, int] = defaultdict(int)
    starts = [
        lambda inside, g=g, stop=stop: session.events(g, cancel=stop, inside=inside)
        for g, stop in zip(made, stops, strict=True)
    ]
    for row, event in session.together(starts, [stop.is_set for stop in stops]):
        if isinstance(event, NodeProgress):
            steps[row] += 1
            if row == 0 and event.value == 1:
                stops[0].set()
        ends[row] = type(event).__name__
    assert ends == {0: "RunCancelled", 1: "RunFinished"} and steps[1] == 4 and steps[0] < 4


def test_all_rows_are_cancelled_at_once(session: Session) -> None:
    stop = threading.Event()
    made = [graph(session, f"all {n}", seed=n, steps=6) for n in range(2)]
    results = session.run_together(made, cancel=stop, on_event=lambda row, event: stop.set())
    assert all(isinstance(result, Cancelled) for result in results)
    assert session.memory.joined is None
    assert isinstance(session.run_together(made)[0], Run)


def test_who_stops_reading_stops_all_rows(session: Session) -> None:
    made = [graph(session, f"abandoned {n}", seed=n, steps=50) for n in range(2)]
    starts = [lambda inside, g=g: session.events(g, inside=inside) for g in made]
    told = session.together(starts, [lambda: False] * 2)
    next(event for _, event in told if isinstance(event, NodeProgress))
    told.close()
    assert session.memory.joined is None and not any(name.startswith("abandoned") for name in LATENTS)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loraloom-ro")]


def test_rows_that_turn_out_equal_are_computed_once(session: Session) -> None:
    sizes: list[int] = []

    def counted(module: torch.nn.Module, given: Any) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 4:
            sizes.append(len(given[0]))

    made = [graph(session, f"equal {n}", seed=seed) for n, seed in enumerate((7, 7, 8))]
    with register_module_forward_pre_hook(counted):
        session.run_together(made)
    assert sizes == [4, 4, 4]
    assert torch.equal(LATENTS["equal 0"], LATENTS["equal 1"])
    assert not torch.equal(LATENTS["equal 0"], LATENTS["equal 2"])
