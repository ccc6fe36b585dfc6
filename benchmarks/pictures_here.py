"""What `pictures.py` measures in a process of its own: Loraloom, and diffusers with the same weights.

    python benchmarks/pictures_here.py ours GRAPH --models DIR --dtype fp32 [--hand-over DIR]
    python benchmarks/pictures_here.py diffusers DIR

A line of JSON is printed: what is measured → seconds, bytes, shares. The folder that is handed over holds the
network with its LoRAs merged and the autoencoder, as diffusers stores them, and what each was given last.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEP, DECODE, TEXT = "step", "decode", "text"
BEST_OF = 3


@dataclass
class Seen:
    """Of one part of drawing: seconds, operations and arguments of its calls, and what it gave last."""

    seconds: list[float] = field(default_factory=lambda: list[float]())
    operations: list[int] = field(default_factory=lambda: list[int]())
    given: tuple[Any, ...] = ()
    gave: Any = None


@contextmanager
def watched(counting: bool = False) -> Generator[Mapping[str, Seen]]:
    """The parts of drawing by name, in the context. counting: operations (products, convolutions, attention)
    instead of seconds."""
    from torch.utils.flop_counter import FlopCounterMode

    from loraloom.models.autoencoder_network import AutoencoderNetwork
    from loraloom.models.diffusion_network import DiffusionNetwork
    from loraloom.runtime import prompts

    parts: dict[str, tuple[Any, str]] = {
        STEP: (DiffusionNetwork, "_evaluated"),
        DECODE: (AutoencoderNetwork, "decode"),
        TEXT: (prompts, "encode_prompt"),
    }
    seen: dict[str, Seen] = defaultdict(Seen)
    plain = {name: getattr(owner, attribute) for name, (owner, attribute) in parts.items()}

    def watching(name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            counter = FlopCounterMode(display=False) if counting else None
            begun = time.perf_counter()
            if counter is None:
                made = plain[name](*given, **named)
            else:
                with counter:
                    made = plain[name](*given, **named)
                seen[name].operations.append(counter.get_total_flops())
            seen[name].seconds.append(time.perf_counter() - begun)
            seen[name].given, seen[name].gave = given, made
            return made

        return call

    try:
        for name, (owner, attribute) in parts.items():
            setattr(owner, attribute, watching(name))
        yield seen
    finally:
        for name, (owner, attribute) in parts.items():
            setattr(owner, attribute, plain[name])


def ours(source: Path, models: Path, dtype: Any, hand_over: Path | None) -> dict[str, float]:
    """A picture, another with another seed, and its parts beside the processor's peak."""
    begun = time.perf_counter()
    from loraloom.session import Session

    found = {"import": time.perf_counter() - begun}
    graph = json.loads(source.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with Session(models, output_dir=folder, device="cpu", dtype=dtype) as session:
            found["session"] = time.perf_counter() - begun
            for which, seed in (("first", 1), ("second", 2)):
                begun, used, system = time.perf_counter(), time.process_time(), system_now()
                prepared = session.prepare(graph, seed=seed)
                run = session.run_prepared(prepared)
                found[f"{which} picture"] = time.perf_counter() - begun
                found[f"{which} picture, processor"] = time.process_time() - used
                for what, now, before in zip(SYSTEM, system_now(), system, strict=True):
                    found[f"{which} picture, {what}"] = now - before
                for name, seconds in run.timings.items():
                    known = prepared.nodes.get(name)
                    kind = f"{which}: {name if known is None else known.class_type}"
                    found[kind] = found.get(kind, 0.0) + seconds
            found["modules"] = len(sys.modules)
            found |= peak_memory()
            with suppress(ImportError):  # of a version that has other parts
                found |= parts(session, graph, hand_over)
    return found


def parts(session: Any, graph: Mapping[str, Any], hand_over: Path | None) -> dict[str, float]:
    """Seconds of each part once all is loaded, its operations, and the share of the peak that it reaches."""
    import torch

    def again() -> None:
        session.forget()
        session.services.encodings.clear()
        session.run(graph, seed=3)

    with watched() as timed:
        again()
    with watched(counting=True) as counted:
        again()
    with torch.inference_mode():
        found = peaks(session.memory.dtype)
    fastest = max(found.values())
    for name, part in timed.items():
        seconds, operations = min(part.seconds), max(counted[name].operations)
        found[f"{name}: seconds"] = seconds
        found[f"{name}: GFLOP"] = operations / 1e9
        found[f"{name}: share of the peak"] = operations / seconds / fastest / 1e9
    if hand_over is not None:
        handed_over(timed, hand_over)
    return found


def handed_over(seen: Mapping[str, Seen], folder: Path) -> None:
    """Network and autoencoder as diffusers stores them, with what they were given and gave."""
    from safetensors.torch import save_file

    from loraloom.weights.layers import PackedLayer

    network, x, timestep, inputs = seen[STEP].given
    decoder, latent = seen[DECODE].given
    calls = {"x": x, "timestep": timestep, "latent": latent, "output": seen[STEP].gave}
    calls |= {f"tokens.{name}": tokens.values for name, tokens in inputs.tokens.items()}
    calls |= {f"vectors.{name}": values for name, values in inputs.vectors.items()}
    calls["picture"] = seen[DECODE].gave
    kinds = {"network": (network.module(), network.family.module, network.config)}
    kind = decoder._kind  # what an autoencoder is made of is nobody else's business
    kinds["autoencoder"] = (decoder._module(), kind.module, decoder._config)
    for name, (module, made, config) in kinds.items():
        if any(isinstance(layer, PackedLayer) for layer in module.modules()):
            sys.exit(f"the {name} is quantised, which diffusers does not have: leave --diffusers out")
        place = folder / name
        place.mkdir(parents=True)
        weights = {key: value.contiguous().clone() for key, value in module.state_dict().items()}
        save_file(weights, place / "diffusion_pytorch_model.safetensors")
        said = {"_class_name": made.path.partition(":")[2], **config}
        (place / "config.json").write_text(json.dumps(said))
    save_file(
        {name: value.contiguous().clone() for name, value in calls.items()}, folder / "calls.safetensors"
    )
    said = {
        "family": network.family.name,
        "kind": kind.name,
        "dtype": network.dtype_name,
        "tokens": {name: (tokens.joining, tokens.lengths) for name, tokens in inputs.tokens.items()},
        "config": dict(network.config),
    }
    (folder / "calls.json").write_text(json.dumps(said))


def diffusers_with(folder: Path) -> dict[str, float]:
    """diffusers' classes, imported and loaded as its users do, on what was handed over: seconds, and how far
    what they give is from ours (relative, L2)."""
    said = json.loads((folder / "calls.json").read_text())
    names = {
        name: json.loads((folder / name / "config.json").read_text())["_class_name"]
        for name in ("network", "autoencoder")
    }
    begun = time.perf_counter()
    import diffusers
    import torch

    classes = {name: getattr(diffusers, kind) for name, kind in names.items()}
    found = {"import": time.perf_counter() - begun}
    dtype = getattr(torch, said["dtype"])
    begun = time.perf_counter()
    modules = {
        name: kind.from_pretrained(folder / name, torch_dtype=dtype, local_files_only=True).eval()
        for name, kind in classes.items()
    }
    found["first: load"] = time.perf_counter() - begun
    from safetensors.torch import load_file

    from loraloom.models.autoencoder import autoencoder_kinds
    from loraloom.models.diffusion_network import Run
    from loraloom.models.recognition import families
    from loraloom.sampling.inputs import Inputs, Tokens

    calls = load_file(folder / "calls.safetensors")
    tokens = {
        name: Tokens(calls[f"tokens.{name}"], joining, lengths and tuple(lengths))
        for name, (joining, lengths) in said["tokens"].items()
    }
    vectors = {
        name.partition(".")[2]: values for name, values in calls.items() if name.startswith("vectors.")
    }
    (family,) = [family for family in families() if family.name == said["family"]]
    kind = autoencoder_kinds()[said["kind"]]
    run = Run(said["config"], family.latents, dtype)
    given = Inputs(tokens, vectors)
    work: dict[str, Callable[[], Any]] = {
        STEP: lambda: family.network.forward(
            modules["network"], calls["x"], calls["timestep"], given, run
        ).float(),
        DECODE: lambda: kind.decode(modules["autoencoder"], calls["latent"].to(dtype)).float(),
    }
    with torch.inference_mode():
        for name, call in work.items():
            made = call()
            if name == DECODE:
                made = made.add(1).div(2).clamp(0, 1).movedim(1, -1)
            wanted = calls["output" if name == STEP else "picture"]
            found[f"{name}: distance from ours"] = float((made - wanted).norm() / wanted.norm())
            found[f"{name}: seconds"] = best(call)
    return found | peak_memory()


def peaks(dtype: Any) -> dict[str, float]:
    """The speed of a matrix product and of a convolution."""
    import torch

    matrix, picture = torch.ones(1024, 1024, dtype=dtype), torch.ones(1, 320, 64, 64, dtype=dtype)
    kernel = torch.ones(320, 320, 3, 3, dtype=dtype)
    order = torch.channels_last
    last, kernel_last = picture.contiguous(memory_format=order), kernel.contiguous(memory_format=order)
    convolution = min(
        best(lambda: torch.conv2d(picture, kernel, padding=1)),
        best(lambda: torch.conv2d(last, kernel_last, padding=1)),
    )
    return {
        "matmul GFLOP/s": 2 * 1024**3 / 1e9 / best(lambda: matrix @ matrix),
        "convolution GFLOP/s": 2 * 9 * 320 * 320 * 64 * 64 / 1e9 / convolution,
    }


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    seconds: list[float] = []
    for _ in range(BEST_OF):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


SYSTEM = ("system", "million faults")


def system_now() -> tuple[float, float]:
    """Seconds that the system has worked for this process, and pages that it has cleared or found for it."""
    if sys.platform == "win32":
        return 0.0, 0.0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_stime, used.ru_minflt / 1e6


def peak_memory() -> dict[str, float]:
    if sys.platform == "win32":
        return {}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=("ours", "diffusers"))
    parser.add_argument("source", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--hand-over", type=Path)
    given = parser.parse_args()
    if given.who == "diffusers":
        found = diffusers_with(given.source)
    else:
        found = ours(given.source, given.models, given.dtype, given.hand_over)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
