"""Variants of one picture as rows of common batches, beside as many single runs.

    python benchmarks/variants.py [--models DIR] [--checkpoint NAME] [--random NAME] [--variants 16]
                                  [--steps 20] [--size 128] [--rank 16] [--rounds 3] [--seconds S]
                                  [--device auto] [--dtype fp32] [--comfyui DIR] [--json FILE]

Without --models, on the demo's model; --random sd15 makes one with that published file's shapes. The LoRAs
are drawn at random (every attention and feed-forward projection of the network, as kohya's trainer places
them). Two cases: so many LoRAs, and one LoRA at so many strengths. In each round they are drawn by single
runs, in one process that keeps its model, and together: as Loraloom chooses, with LoRAs beside the weights
whatever that costs, and with LoRAs merged one after another. Medians, of the clock and of the processor, and
their ratios are printed. --seconds: rounds after the first, and the ways that Loraloom did not choose, are
left out once so much time has gone.

Then the seconds by which Loraloom chooses (`models/residency/row_plan.py`) are measured: of an operation of
the products beside the weights, of a byte of weights rebuilt, of a layer's call; and what each way was
estimated to cost more than the other.

--comfyui: a ComfyUI checkout (v0.3.64) that this Python can run; it draws the same one after another, asked
over HTTP, in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peer_server import PeerServer, started
from safetensors.torch import save_file
from tests.published import Fixture
from tests.random_weights import write_random
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
    "all beside": Speeds(flop=0.0, byte=1.0, layer=0.0),
    "all merged": Speeds(flop=1.0, byte=0.0, layer=0.0),
}


PRECISION = {"fp32": ["--force-fp32"], "fp16": ["--force-fp16"], "bf16": ["--bf16-unet", "--bf16-vae"]}
"""Our names of types → ComfyUI's options."""


@contextmanager
def comfyui(folder: Path, models: Sequence[Path], device: str, dtype: str) -> Generator[PeerServer]:
    """ComfyUI as a process."""
    with TemporaryDirectory() as home:
        kinds = {"checkpoints": "checkpoints", "loras": "loras"}
        paths = {f"models{n}": {"base_path": str(root), **kinds} for n, root in enumerate(models)}
        Path(home, "paths.yaml").write_text(json.dumps(paths))
        words = [
            sys.executable, "main.py", "--listen", "127.0.0.1", "--port", "{port}", "--disable-auto-launch",
            "--output-directory", home, "--extra-model-paths-config", f"{home}/paths.yaml",
            *PRECISION.get(dtype, []), *(["--cpu"] if device == "cpu" else []),
        ]  # fmt: skip
        with started(words, folder) as server:
            yield server


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
    parser.add_argument("--random", default="", metavar="NAME", help="a checkpoint of tests/data/headers")
    parser.add_argument("--variants", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128, help="sides of the picture in pixels")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="what does not fit is left out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--comfyui", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures go there, too, as they come")
    options = parser.parse_args()
    begun = time.monotonic()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        models = random_models(root, options.random, options.dtype) if options.random else options.models
        file = models / "checkpoints" / options.checkpoint
        if not options.checkpoint:
            file = min((models / "checkpoints").glob("*.safetensors"))
        model, _, _ = open_checkpoint(file)
        loras = [f"{n}.safetensors" for n in range(options.variants)]
        for seed, name in enumerate(loras):
            write_lora(root / "loras" / name, model, seed, options.rank)
        roots = [root] if models == root else [root, models]
        with Session(
            roots, output_dir=root / "output", device=options.device, dtype=options.dtype
        ) as session:
            many = [(name, 1.0) for name in loras]
            one = [(loras[0], 1.5 * n / len(loras)) for n in range(1, len(loras) + 1)]
            about = described(file, session.memory, options)
            print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
            found: dict[str, Any] = {"about": about, "cases": {}}
            for number, (title, variants) in enumerate((("LoRAs", many), ("strengths of one LoRA", one)), 1):
                until = begun + options.seconds * number / 2
                said, medians = compare(session, file.name, variants, roots, options, until)
                title = f"{len(variants)} {title}"
                report(title, said, medians)
                found["cases"][title] = {"said": said, "seconds": medians}
                save(options.json, found)
            session.memory.release()
            shelf = LoraShelf()
            sources = [shelf.load(root / "loras" / name, model, None).lora.model for name in loras]
            stacks = [(PatchUse(source, 1.0),) for source in sources]
            # The first round reads the LoRAs' files.
            found["speeds"] = speeds(session.memory, model, stacks, options.size // 8, max(options.rounds, 3))
        print(Speeds(**found["speeds"]))
        save(options.json, found)


def described(file: Path, memory: Memory, options: argparse.Namespace) -> dict[str, Any]:
    on_cuda = memory.device.type == "cuda"
    return {
        "model": file.name,
        "dtype": str(memory.dtype).removeprefix("torch."),
        "device": str(memory.device),
        "processor": torch.cuda.get_device_name(memory.device) if on_cuda else platform.machine(),
        "torch": torch.__version__,
        **{name: getattr(options, name) for name in ("steps", "size", "rank")},
    }


def random_models(root: Path, name: str, dtype: str) -> Path:
    """A folder with a published checkpoint's shapes and random weights."""
    kind = {"fp32": "F32", "bf16": "BF16"}.get(dtype, "F16")
    (root / "checkpoints").mkdir()
    write_random(root / "checkpoints" / f"{name}.safetensors", Fixture.named(name), lambda _: kind)
    return root


def save(path: Path | None, found: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=1))


Medians = dict[str, tuple[float, float]]
"""By way: seconds of the clock and of this process's processor."""


def compare(
    session: Session,
    checkpoint: str,
    variants: Sequence[tuple[str, float]],
    roots: Sequence[Path],
    options: argparse.Namespace,
    until: float,
) -> tuple[str, Medians]:
    """Time one case in all ways, by turns; how the rows were evaluated, in words, and the medians."""
    prompts = [workflow(checkpoint, lora, s, options.steps, options.size) for lora, s in variants]
    graphs = [session.prepare(prompt) for prompt in prompts]
    seconds: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    said: list[str] = []
    singly(session, graphs[:1])
    together(session, graphs[:2], [])
    peer = nullcontext()
    if options.comfyui:
        peer = comfyui(options.comfyui, roots, session.memory.device.type, options.dtype)
    with peer as server:
        if server is not None:
            server.draw(prompts[0])
        for number in range(options.rounds):
            if number and time.monotonic() > until:
                break
            # What a run kept must not make the next one cheap.
            session.forget()
            seconds["single runs"].append(timed(lambda: singly(session, graphs)))
            if server is not None:
                seconds["ComfyUI"].append(timed(lambda: [server.draw(prompt) for prompt in prompts]))
            for way, cost in WAYS.items():
                if cost is not None and time.monotonic() > until:
                    continue
                session.forget()
                heard = said if cost is None else list[str]()
                with nullcontext() if cost is None else forced(cost):
                    seconds[way].append(timed(lambda heard=heard: together(session, graphs, heard)))
    medians = {
        way: (statistics.median(clock for clock, _ in of), statistics.median(used for _, used in of))
        for way, of in seconds.items()
    }
    return said[0] if said else "nothing was evaluated together", medians


def report(title: str, said: str, medians: Medians) -> None:
    print(f"{title}: {said}")
    base = medians["single runs"]
    for way, (clock, processor) in medians.items():
        own = "" if way == "ComfyUI" else f", processor {processor:7.2f} s, {processor / base[1]:5.2f}"
        print(f"  {way:<14}{clock:8.2f} s, {clock / base[0]:5.2f} of single runs{own}", flush=True)


if __name__ == "__main__":
    main()
