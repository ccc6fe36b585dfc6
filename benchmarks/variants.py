"""Variants of one picture as rows of common batches, beside as many single runs.

    python benchmarks/variants.py [--models DIR] [--checkpoint NAME] [--variants 16] [--steps 20] [--size 128]
                                  [--rank 16] [--rounds 3] [--device auto] [--dtype fp32] [--comfyui DIR]

Without --models, on the demo's model. The LoRAs are drawn at random (every attention and feed-forward
projection of the network, as kohya's trainer places them). Two cases: so many LoRAs, and one LoRA at so many
strengths. In each round they are drawn by single runs, in one process that keeps its model, and together: as
Loraloom chooses, with LoRAs beside the weights whatever that costs, and with LoRAs merged one after another.
Medians, of the clock and of the processor, and their ratios are printed.

Then the seconds by which Loraloom chooses (`models/residency/row_plan.py`) are measured: of an operation of
the products beside the weights, of a byte of weights rebuilt, of a layer's call; and what each way was
estimated to cost more than the other.

--comfyui: a ComfyUI checkout (v0.3.64) that this Python can run; it draws the same one after another, asked
over HTTP, in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from loraloom.demo.files import MODELS
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency import together as residency
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.row_plan import Speeds, rebuilt_bytes
from loraloom.runtime.lora_shelf import LoraShelf
from loraloom.sampling.inputs import Inputs
from loraloom.sampling.types import Cond, SampleContext
from loraloom.session import Session
from loraloom.weights.patch import PatchUse, Stack
from loraloom.workflow.graph import Graph

PLACES = (".to_q", ".to_k", ".to_v", ".to_out.0", ".proj_in", ".proj_out", ".ff.net.0.proj", ".ff.net.2")
SECONDS_TO_START = 300.0


def write_lora(path: Path, model: DiffusionModel, seed: int, rank: int) -> None:
    """A LoRA with random factors in kohya's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module, target in model.lora_aliases().items():
        shape = model.weights.shapes[target.weight]
        if module.endswith(PLACES) and target.rows is None:
            name, ones = "lora_unet_" + module.replace(".", "_"), [1] * (len(shape) - 2)
            up, down = (shape[0], rank, *ones), (rank, *shape[1:])
            tensors[f"{name}.lora_up.weight"] = torch.randn(up, generator=generator).half() * 0.02
            tensors[f"{name}.lora_down.weight"] = torch.randn(down, generator=generator).half() * 0.02
            tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def workflow(checkpoint: str, lora: str, strength: float, steps: int, size: int) -> dict[str, Any]:
    """API JSON of one picture."""
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "2": ("LoraLoaderModelOnly", {"model": ["1", 0], "lora_name": lora, "strength_model": strength}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a red rose"}),
        "4": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "5": ("EmptyLatentImage", {"width": size, "height": size, "batch_size": 1}),
        "6": ("KSampler", {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0],
                           "latent_image": ["5", 0], "seed": 1, "steps": steps, "cfg": 7.0,
                           "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "variant"}),
    }  # fmt: skip
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    begun, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - used


def singly(session: Session, graphs: Sequence[Graph]) -> None:
    for graph in graphs:
        session.run_prepared(graph)


def together(session: Session, graphs: Sequence[Graph], said: list[str]) -> None:
    for result in session.run_together(graphs):
        if isinstance(result, BaseException):
            raise result
        said[:] = [f"{batch['rows']} rows, {batch['loras']}" for batch in result.batches]


@contextmanager
def forced(cost: Speeds) -> Generator[None]:
    """Let the choice go by these speeds."""
    usual, residency.SPEEDS = residency.SPEEDS, dict.fromkeys((*residency.SPEEDS, "cuda", "xpu", "mps"), cost)
    try:
        yield
    finally:
        residency.SPEEDS = usual


WAYS: Mapping[str, Speeds | None] = {
    "together": None,
    "  beside": Speeds(flop=0.0, byte=1.0, layer=0.0),
    "  merged": Speeds(flop=1.0, byte=0.0, layer=0.0),
}


@contextmanager
def comfyui(folder: Path, models: Sequence[Path], device: str) -> Generator[Callable[[dict[str, Any]], None]]:
    """ComfyUI as a process; what is yielded draws a workflow with it."""
    with TemporaryDirectory() as home, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        kinds = {"checkpoints": "checkpoints", "loras": "loras"}
        paths = {f"models{n}": {"base_path": str(root), **kinds} for n, root in enumerate(models)}
        Path(home, "paths.yaml").write_text(json.dumps(paths))
        command = [
            sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch",
            "--output-directory", home, "--extra-model-paths-config", f"{home}/paths.yaml", "--force-fp32",
            *(["--cpu"] if device == "cpu" else []),
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def ask(route: str, body: object = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}{route}", data)
            request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        def draw(prompt: dict[str, Any]) -> None:
            job = ask("/prompt", {"prompt": prompt})["prompt_id"]
            while job not in (done := ask(f"/history/{job}")):
                time.sleep(0.01)
            if done[job]["status"]["status_str"] != "success":
                raise RuntimeError(f"ComfyUI failed: {done[job]['status']}")

        try:
            until = time.monotonic() + SECONDS_TO_START
            while True:
                try:
                    ask("/system_stats")
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > until:
                        raise
                    time.sleep(0.5)
            yield draw
        finally:
            process.terminate()
            process.wait()


def speeds(
    memory: Memory, model: DiffusionModel, stacks: Sequence[Stack], size: int, rounds: int
) -> dict[str, float]:
    """The measured fields of `Speeds`."""
    plain = memory.network_alone(model)
    rows = len(stacks)

    def noise(batch: int, side: int) -> Tensor:
        return torch.randn(batch, plain.latent_channels, side, side).to(memory.device)

    x, small = noise(rows, size), noise(1, 8)
    wide = next(s[1] for name, s in model.weights.shapes.items() if name.endswith("attn2.to_k.weight"))
    one = plain.inputs(Cond(torch.randn(1, 77, wide)), SampleContext(noise=small, latent=small))
    time_of = torch.full((rows,), 500.0, device=memory.device)
    unmerged = memory.unmerged_of(model, tuple(stacks))
    beside = memory.network_alone(model, tuple(stacks), unmerged)
    merged = [memory.network_alone(replace(model, stack=stack)) for stack in stacks[:2]]
    layers, inputs = len(unmerged.placements), Inputs.joined([one] * rows)
    found: defaultdict[str, list[float]] = defaultdict(list)

    def clock(work: Callable[[], object]) -> float:
        def whole() -> None:
            work()
            if memory.device.type != "cpu":
                torch.get_device_module(memory.device).synchronize()

        return timed(whole)[memory.device.type == "cpu"]

    with torch.inference_mode():
        for network in (plain, beside):
            network(x, time_of, inputs)
        for round_ in range(rounds):
            before = replace(unmerged.work)
            with_loras = clock(lambda: beside(x, time_of, inputs))
            without = clock(lambda: plain(x, time_of, inputs))
            alone = clock(lambda: plain(small, time_of[:1], one))
            module = memory.resident_module(model)
            rebuilt = clock(lambda n=round_: memory.resident_module(replace(model, stack=stacks[n % rows])))
            del module
            found["layer"].append(alone / layers)
            found["byte"].append(rebuilt / rebuilt_bytes(stacks[round_ % rows], model.weights, memory.dtype))
            flops = unmerged.work.flops - before.flops
            calls = unmerged.work.layers - before.layers
            found["flop"].append(max(with_loras - without - calls * alone / layers, 0.0) / flops)
    del merged
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--variants", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128, help="sides of the picture in pixels")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--comfyui", type=Path, metavar="DIR")
    options = parser.parse_args()
    files = sorted((options.models / "checkpoints").glob("*.safetensors"))
    checkpoint = options.checkpoint or files[0].name
    model, _, _ = open_checkpoint(options.models / "checkpoints" / checkpoint)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        loras = [f"{n}.safetensors" for n in range(options.variants)]
        for seed, name in enumerate(loras):
            write_lora(root / "loras" / name, model, seed, options.rank)
        roots = [root, options.models]
        with Session(
            roots, output_dir=root / "output", device=options.device, dtype=options.dtype
        ) as session:
            many = [(name, 1.0) for name in loras]
            one = [(loras[0], 1.5 * n / len(loras)) for n in range(1, len(loras) + 1)]
            print(f"{checkpoint}, {options.dtype} on {session.memory.device}, {options.steps} steps, "
                  f"{options.size}×{options.size}, rank {options.rank}")  # fmt: skip
            for title, variants in (("LoRAs", many), ("strengths of one LoRA", one)):
                compare(session, f"{len(variants)} {title}", checkpoint, variants, roots, options)
            session.memory.release()
            shelf = LoraShelf()
            found = [shelf.load(root / "loras" / name, model, None).model for name in loras]
            stacks = [(PatchUse(source, 1.0),) for source in found]
            measured = speeds(session.memory, model, stacks, options.size // 8, options.rounds)
        print(Speeds(**measured))


def compare(
    session: Session,
    title: str,
    checkpoint: str,
    variants: Sequence[tuple[str, float]],
    roots: Sequence[Path],
    options: argparse.Namespace,
) -> None:
    """Time one case both ways, by turns."""
    prompts = [workflow(checkpoint, lora, s, options.steps, options.size) for lora, s in variants]
    graphs = [session.prepare(prompt) for prompt in prompts]
    seconds: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    said: list[str] = []
    session.run_prepared(graphs[0])
    server = comfyui(options.comfyui, roots, str(session.memory.device)) if options.comfyui else None
    draw = None if server is None else server.__enter__()
    try:
        if draw is not None:
            draw(prompts[0])
        for _ in range(options.rounds):
            # What a run kept must not make the next one cheap.
            session.forget()
            seconds["single runs"].append(timed(lambda: singly(session, graphs)))
            for way, cost in WAYS.items():
                session.forget()
                heard = said if cost is None else list[str]()
                with nullcontext() if cost is None else forced(cost):
                    seconds[way].append(timed(lambda heard=heard: together(session, graphs, heard)))
            if draw is not None:
                seconds["ComfyUI"].append(timed(lambda draw=draw: [draw(prompt) for prompt in prompts]))
    finally:
        if server is not None:
            server.__exit__(None, None, None)
    print(f"{title}: {said[0] if said else 'nothing was evaluated together'}")
    medians = {
        way: [statistics.median(values) for values in zip(*of, strict=True)] for way, of in seconds.items()
    }
    for way, (clock, processor) in medians.items():
        base = medians["single runs"]
        own = "" if way == "ComfyUI" else f", processor {processor:7.2f} s, {processor / base[1]:5.2f}"
        print(f"  {way:<14}{clock:8.2f} s, {clock / base[0]:5.2f} of single runs{own}")


if __name__ == "__main__":
    main()
