"""What `device.py` measures, each case in a process of its own that writes its rows as JSON."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import torch
from benchmarks.device_models import MODELS, make
from tests.models.plain_loras import PlainLora, plain_lora
from torch import Tensor
from torch.nn import functional as F

from loraloom.models.attention import attention
from loraloom.models.checkpoint import open_checkpoint, open_diffusion_model
from loraloom.models.computing import AttentionName, Computing
from loraloom.models.handles import DiffusionModel
from loraloom.models.residency import residents as residents_module
from loraloom.models.residency.memory import Memory
from loraloom.models.residency.storage import weights_bytes
from loraloom.sampling.guidance import CFG
from loraloom.sampling.run import completed, sample
from loraloom.sampling.samplers.registry import method
from loraloom.sampling.schedules import sigmas_for
from loraloom.sampling.types import Cond, SampleContext
from loraloom.session import Session

Row: TypeAlias = "dict[str, Any]"
"""what, s (seconds), peak (bytes on the device), moved (bytes to it), copies (how many), least (bytes that
have to cross), off (relative to what it should be), said: what else there is to say."""

SLACK = 1.1
"""How many times the least may cross."""

KERNELS: tuple[AttentionName, ...] = ("math", "flash", "efficient", "cudnn")
PROMPT = "a red fox in the snow, morning light, highly detailed"


@dataclass(frozen=True)
class Asked:
    """What the command line asked for. is_narrow: small models, whose times say nothing."""

    folder: Path
    device: str
    dtype: Any
    is_narrow: bool
    started: float
    """When the process was started, by the system's clock."""


class Meter:
    """Time, the peak of the device's memory and, on the simulated device, what crosses."""

    def __init__(self, device: str) -> None:
        self._sim: Any = None
        if device == "sim":
            from tests.sim_device.device import sim_device

            self._sim = sim_device(Path(tempfile.gettempdir()) / "loraloom-sim-device")
        self._device = torch.device(device)
        self._module: Any = None if device == "cpu" else torch.get_device_module(self._device)

    def measure(self, what: str, work: Callable[[], Any]) -> tuple[Row, Any]:
        if self._sim is not None:
            self._sim.reset()
        elif hasattr(self._module, "reset_peak_memory_stats"):
            self._module.reset_peak_memory_stats(self._device)
        start = time.perf_counter()
        found = work()
        if hasattr(self._module, "synchronize"):
            self._module.synchronize()
        row: Row = {"what": what, "s": time.perf_counter() - start}
        if self._sim is not None:
            row |= {"peak": self._sim["peak"], "moved": self._sim["to_bytes"], "copies": self._sim["to"]}
        elif hasattr(self._module, "max_memory_allocated"):
            row["peak"] = self._module.max_memory_allocated(self._device)
        return row, found


@dataclass(frozen=True)
class Case:
    """A diffusion model, and what it is to sample without a text encoder."""

    model: DiffusionModel
    latent: Tensor
    cond: Cond
    steps: int

    def run(self, memory: Memory, model: DiffusionModel | None = None) -> Tensor:
        network = memory.network(model or self.model)
        with torch.inference_mode():
            steps = sample(
                network,
                CFG((self.cond,), (self.cond,), 1.0),
                latent=torch.zeros_like(self.latent),
                noise=self.latent,
                method=method("euler"),
                sigmas=sigmas_for(network.parametrisation, "simple", self.steps),
                seed=1,
            )
            return completed(steps).latent

    @property
    def given(self) -> int:
        """Bytes of what a run is given: latent, noise, and for both sides what the network reads of the
        prompt."""
        context, sizes = SampleContext(noise=self.latent, latent=self.latent), list[int]()

        def noted(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        inputs = Memory("cpu", "fp32").network(self.model).inputs(self.cond, context)
        inputs.mapped(noted)
        return 2 * self.latent.nbytes + 2 * sum(sizes)

    def styled(self, strength: float, name: str = "benchmark") -> DiffusionModel:
        """With a random LoRA on every matrix."""
        return self.model.with_lora(self._lora(name).at(strength)[0])

    def _lora(self, name: str) -> PlainLora:
        shapes = {native: shape for native, shape in self.model.weights.shapes.items() if len(shape) == 2}
        return plain_lora(name, shapes)

    def crossing(self, name: str, *, is_first: bool, is_new: bool) -> int:
        """Bytes that have to cross for a LoRA where unpatched values stay on the device: its factors when it
        is new, those beside quantised weights at every strength. is_first: and the weights that the network
        holds in pieces, whose unpatched values are nowhere else until then."""
        source = self.model.weights
        factors = {
            native: sum(f.down.nbytes + f.up.nbytes for p in held if (f := p.factors()) is not None)
            for native, held in self._lora(name).held.items()
        }
        crossing = sum(size for native, size in factors.items() if is_new or source.is_packed(native))
        pieces = {place.native for place in self.model.blueprint.placements.values() if place.rows}
        if is_first:
            crossing += sum(source.stored_bytes(n) for n in pieces & {*factors} if not source.is_packed(n))
        return crossing


def case_of(model: DiffusionModel, side: int, steps: int) -> Case:
    """Random conditionings of the widths that the model's configuration states."""
    config = model.blueprint.config
    names = ("joint_attention_dim", "cross_attention_dim", "cap_feat_dim")
    width = next((config[name] for name in names if name in config), None)
    if not isinstance(width, int):
        raise SystemExit(f"how wide prompts of {model.family.title} are is not stated; take a UNet or Flux")
    pooled = config.get("pooled_projection_dim")
    label = config.get("projection_class_embeddings_input_dim")
    if not isinstance(pooled, int):
        pooled = label - 6 * 256 if isinstance(label, int) else 1280
    generator = torch.Generator().manual_seed(1)
    cond = Cond(torch.randn(1, 77, width, generator=generator), torch.randn(1, pooled, generator=generator))
    return Case(model, torch.randn(1, model.latent.channels, side, side, generator=generator), cond, steps)


def opened(path: Path) -> DiffusionModel:
    found = open_checkpoint(path) if path.parent.name == "checkpoints" else open_diffusion_model(path)
    return found[0] if isinstance(found, tuple) else found


def making(asked: Asked, name: str) -> Iterator[Row]:
    device = torch.device("cpu" if asked.device == "sim" else asked.device)
    seconds, written = make(asked.folder, name, device, is_narrow=asked.is_narrow)
    yield {"what": "files written", "s": seconds, "said": f"{written / 1e9:.1f} GB"}


def layers(asked: Asked, name: str, shares: tuple[float, ...] = (2.0, 0.5, 0.25, 0.1)) -> Iterator[Row]:
    """The network alone: LoRAs, attention, and less memory than it needs. The narrow one is also held to what
    the CPU computes."""
    if asked.is_narrow:
        residents_module.MARGIN = 1 << 20  # the usual one is larger than the model
    model = opened(asked.folder / MODELS[name][0].place)
    side, steps = (16, 3) if asked.is_narrow else (128, 4)
    case, meter = case_of(model, side, steps), Meter(asked.device)
    wanted = case.run(Memory("cpu", "fp32")) if asked.is_narrow else None
    memory, given = Memory(asked.device, asked.dtype), case.given

    def row(what: str, memory: Memory, model: DiffusionModel, *, is_plain: bool = True) -> Row:
        nonlocal wanted
        found, latent = meter.measure(what, lambda: case.run(memory, model))
        wanted = latent if wanted is None else wanted
        if is_plain:
            found["off"] = float((latent - wanted).norm() / wanted.norm())
        return found

    yield held_to(given + model.weights.nbytes, row(f"load, {steps} steps", memory, model))
    yield held_to(given, row(f"{steps} steps", memory, model))
    one, another = "benchmark", "another"
    for what, strength, lora, crossing in (
        ("LoRA on", 0.3, one, case.crossing(one, is_first=True, is_new=True)),
        ("strength 0.3 → 0.2", 0.2, one, case.crossing(one, is_first=False, is_new=False)),
        ("the same again", 0.2, one, 0),
        ("another LoRA", 0.2, another, case.crossing(another, is_first=False, is_new=True)),
    ):
        found = row(what, memory, case.styled(strength, lora), is_plain=False)
        yield held_to(given + crossing, found)
    yield held_to(given, row("LoRA off", memory, model))
    for kind in KERNELS:
        try:
            kernel = attention(kind, memory.device)
            with kernel():
                row("warm", memory, model)
                yield row(f"attention {kind}", memory, model)
        except Exception as error:  # noqa: BLE001 - said, and the next one is tried
            yield {"what": f"attention {kind}", "said": f"{type(error).__name__}: {error}"}
    size = weights_bytes(model.weights, memory.dtype, "quantized")
    memory.release()
    for share in shares if memory.device.type != "cpu" else ():
        budget = int(share * size) + 2 * residents_module.MARGIN + (0 if asked.is_narrow else 1 << 30)
        held = Memory(asked.device, asked.dtype, budget=budget)
        for what in ("load, ", "") if share < 2 else ("",):
            found = row(f"{share:.0%} of the weights fit: {what}{steps} steps", held, model)
            found["said"] = f"budget {budget / 1e9:.1f} GB"
            if "peak" in found and found["peak"] > budget + (64 << 20):
                found["said"] += ", EXCEEDED"
            least = given + steps * fetched(held) + (model.weights.nbytes if share >= 2 else 0)
            yield found if what else held_to(least, found)
        held.release()


def held_to(least: int, row: Row) -> Row:
    """A row with what has to cross at least, and a word where more than `SLACK` times as much did."""
    if "copies" not in row:
        return row
    said = [row["said"]] if "said" in row else []
    said += ["EXCEEDED"] if row["moved"] > SLACK * least else []
    return {**row, "least": least, "said": ", ".join(said)}


def fetched(memory: Memory) -> int:
    """Bytes, as stored, of the weights that cross in each evaluation of the only resident."""
    ((_, resident),) = memory._residents.values()  # pyright: ignore[reportPrivateUsage]
    streaming = resident.streaming
    moving = streaming.moving if streaming is not None else ()
    return sum(resident.source.stored_bytes(native) for unit in moving for native in unit.natives)


def _node(kind: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def workflow(name: str, side: int, steps: int) -> dict[str, Any]:
    """As people write it: prompt, LoRA, sampler, picture."""
    family = name.partition("_")[0]
    encode = {
        side_: _node("CLIPTextEncode", clip=["clip", 1], text=text)
        for side_, text in (("positive", PROMPT), ("negative", "blurry"))
    }
    lora = f"{family}_a.safetensors"
    graph = {
        **encode,
        "latent": _node("EmptyLatentImage", width=side, height=side, batch_size=1),
        "sample": _node(
            "KSampler", model=["lora", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["latent", 0], seed=1, steps=steps, cfg=7.0, sampler_name="euler",
            scheduler="normal", denoise=1.0,
        ),
        "decode": _node("VAEDecode", samples=["sample", 0], vae=["base", 2]),
        "lora": _node("LoraLoaderModelOnly", model=["base", 0], lora_name=lora, strength_model=0.8),
        "save": _node("SaveImage", images=["decode", 0], filename_prefix="device"),
    }  # fmt: skip
    if family != "flux":
        graph["base"] = _node("CheckpointLoaderSimple", ckpt_name=f"{family}.safetensors")
        for side_ in encode:
            graph[side_]["inputs"]["clip"] = ["base", 1]
        return graph
    graph["base"] = _node("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default")
    graph["clip"] = _node(
        "DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl.safetensors", type="flux"
    )
    graph["vae"] = _node("VAELoader", vae_name="flux.safetensors")
    graph["guided"] = _node("FluxGuidance", conditioning=["positive", 0], guidance=3.5)
    graph["latent"]["class_type"] = "EmptySD3LatentImage"
    for side_ in encode:
        graph[side_]["inputs"]["clip"] = ["clip", 0]
    graph["sample"]["inputs"] |= {"positive": ["guided", 0], "cfg": 1.0, "scheduler": "simple"}
    graph["decode"]["inputs"]["vae"] = ["vae", 0]
    return graph


def picture(
    asked: Asked,
    name: str,
    side: int,
    steps: int,
    *,
    vram: int | None = None,
    computing: Computing | None = None,
    weight_dtype: str = "default",
    rounds: int = 4,
) -> Iterator[Row]:
    """From the process's start to a saved picture, and what the next ones take."""
    from loraloom.engine.events import NodeProgress

    side, steps = (64, 3) if asked.is_narrow else (side, steps)
    vram = None if asked.is_narrow else vram
    meter = Meter(asked.device)
    graph = workflow(name, side, steps)
    lora = graph["lora"]["inputs"]
    if "weight_dtype" in graph["base"]["inputs"]:
        graph["base"]["inputs"]["weight_dtype"] = weight_dtype
    with (
        tempfile.TemporaryDirectory() as output,
        Session(
            asked.folder, output_dir=output, device=asked.device, dtype=asked.dtype, vram=vram,
            computing=computing or Computing(),
        ) as session,
    ):  # fmt: skip
        yield {"what": "process start → session", "s": time.time() - asked.started}
        for what, change in (
            ("picture", {}),
            ("another seed", {"seed": 2}),
            ("another strength", {"strength_model": 0.5}),
            ("another LoRA", {"lora_name": lora["lora_name"].replace("_a", "_b")}),
        )[:rounds]:
            for key, value in change.items():
                graph["sample" if key == "seed" else "lora"]["inputs"][key] = value
            at: list[float] = []

            def seen(event: object, at: list[float] = at) -> None:
                if isinstance(event, NodeProgress):
                    at.append(time.perf_counter())

            begun = time.perf_counter()
            row, run = meter.measure(what, lambda seen=seen: session.run(graph, on_event=seen))
            between = [after - before for before, after in zip(at, at[1:], strict=False)]
            said = [f"{median(between):.4f} s/step"] if between else []
            if computing and computing.compiled and at:
                said.append(f"{at[0] - begun:.1f} s until the first step ended")
            said += [
                f"{node} {run.timings[node]:.2f}" for node in ("sample", "decode") if node in run.timings
            ]
            if what == "picture":
                row |= {"what": "process start → picture", "s": time.time() - asked.started}
                said += [f"{node} {seconds:.2f}" for node, seconds in run.timings.items() if seconds > 0.05]
            said += run.warnings
            row["said"] = "; ".join(dict.fromkeys(said))
            yield row


def products(asked: Asked) -> Iterator[Row]:
    """What bounds the rest: products, convolutions, copies."""
    device, meter = torch.device(asked.device), Meter(asked.device)
    count = 64 if asked.is_narrow else 4096
    dtype = torch.bfloat16

    def best(what: str, work: Callable[[], Any], operations: float = 0, size: float = 0) -> Iterator[Row]:
        try:
            times = [meter.measure(what, lambda: [work() for _ in range(5)])[0]["s"] / 5 for _ in range(4)]
        except Exception as error:  # noqa: BLE001 - said, and the next one is tried
            yield {"what": what, "said": f"{type(error).__name__}: {error}"}
            return
        said = f"{operations / min(times) / 1e12:.1f} TFLOP/s" if operations else ""
        yield {"what": what, "s": min(times), "said": said or f"{size / min(times) / 1e9:.1f} GB/s"}

    shapes = ((3072, 12288), (12288, 3072), (3072, 3072)) if not asked.is_narrow else ((64, 32),)
    for inner, outer in shapes:
        x = torch.randn(count, inner, device=device).to(dtype)
        weight = torch.randn(outer, inner, device=device).to(dtype) / 50
        narrow = weight.to(torch.float8_e4m3fn)
        one = torch.ones((), device=device)
        work, sizes = 2.0 * count * inner * outer, f"{count}×{inner} · {inner}×{outer}"
        wide = F.linear(x, weight)
        yield from best(f"bf16 {sizes}", lambda x=x, w=weight: F.linear(x, w), work)
        yield from best(f"fp8 widened, bf16 {sizes}", lambda x=x, w=narrow: F.linear(x, w.to(dtype)), work)

        def scaled(x: Tensor = x, w: Tensor = narrow, one: Tensor = one) -> Tensor:
            rounded = x.clamp(-448, 448).to(torch.float8_e4m3fn)
            return torch._scaled_mm(rounded, w.t(), out_dtype=dtype, scale_a=one, scale_b=one)  # pyright: ignore[reportPrivateUsage]

        for row in best(f"fp8 _scaled_mm with rounding {sizes}", scaled, work):
            if "s" in row:
                row["off"] = float((scaled().float() - wide.float()).norm() / wide.float().norm())
            yield row
        base = torch.zeros(outer, inner, device=device)
        up, down = torch.randn(outer, 16, device=device), torch.randn(16, inner, device=device)
        yield from best(
            f"patch fp32 rank 16 {inner}×{outer}",
            lambda b=base, u=up, d=down: b.addmm_(u, d, alpha=1e-3),
            size=8.0 * inner * outer,
        )
    side, channels = (8, 32) if asked.is_narrow else (64, 640)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype) / 50
    maps = torch.randn(2, channels, side, side, device=device).to(dtype)
    for what, order in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        k, m = kernel.contiguous(memory_format=order), maps.contiguous(memory_format=order)
        yield from best(
            f"conv 3×3 {what} 2×{channels}×{side}×{side}",
            lambda k=k, m=m: F.conv2d(m, k, padding=1),
            2.0 * 9 * channels**2 * 2 * side**2,
        )
    tokens, heads = (64, 2) if asked.is_narrow else (4608, 24)
    q, k, v = (torch.randn(1, heads, tokens, 128, device=device).to(dtype) for _ in range(3))
    for kind in ("auto", *KERNELS):
        try:
            kernel_of = nullcontext if kind == "auto" else attention(kind, device)
        except Exception as error:  # noqa: BLE001 - said, and the next one is tried
            yield {"what": f"attention {kind}", "said": f"{type(error).__name__}: {error}"}
            continue
        with kernel_of():
            yield from best(
                f"attention {kind} 1×{heads}×{tokens}×128",
                lambda: F.scaled_dot_product_attention(q, k, v),
                4.0 * heads * tokens**2 * 128,
            )
    yield from copies(asked, device, best)


def copies(asked: Asked, device: torch.device, best: Any) -> Iterator[Row]:
    size = (1 if asked.is_narrow else 512) << 20
    host = torch.zeros(size, dtype=torch.uint8)
    yield from best("host → device, pageable", lambda: host.to(device), size=size)
    if device.type == "cuda":
        begun = time.perf_counter()
        pinned = host.pin_memory()
        yield {"what": "pinning 0.5 GB", "s": time.perf_counter() - begun}
        yield from best("host → device, pinned", lambda: pinned.to(device, non_blocking=True), size=size)
    there = host.to(device)
    yield from best("device → device", there.clone, size=2 * size)
    path = asked.folder / MODELS["sdxl"][0].place
    if path.is_file():
        begun = time.perf_counter()
        mapped = torch.from_file(str(path), size=min(path.stat().st_size, 1 << 30), dtype=torch.uint8)
        mapped.to(device)
        seconds = time.perf_counter() - begun
        yield {
            "what": "mapped file → device",
            "s": seconds,
            "said": f"{len(mapped) / seconds / 1e9:.1f} GB/s",
        }


GB = 10**9
CASES: dict[str, tuple[int, Callable[[Asked], Iterator[Row]]]] = {
    "make sd15": (60, lambda a: making(a, "sd15")),
    "picture sd15": (90, lambda a: picture(a, "sd15", 512, 20)),
    "make sdxl": (60, lambda a: making(a, "sdxl")),
    "picture sdxl": (120, lambda a: picture(a, "sdxl", 1024, 20)),
    "make flux fp8": (90, lambda a: making(a, "flux_fp8")),
    "picture flux fp8": (120, lambda a: picture(a, "flux_fp8", 1024, 8)),
    "picture flux fp8, fast": (
        120,
        lambda a: picture(a, "flux_fp8", 1024, 8, weight_dtype="fp8_e4m3fn_fast", rounds=2),
    ),
    "products": (60, products),
    "layers sdxl": (120, lambda a: layers(a, "sdxl")),
    "layers flux fp8": (120, lambda a: layers(a, "flux_fp8", (0.5, 0.25))),
    "make flux bf16": (90, lambda a: making(a, "flux_bf16")),
    "picture flux bf16": (120, lambda a: picture(a, "flux_bf16", 1024, 8)),
    "picture flux bf16, 12 GB": (
        120,
        lambda a: picture(a, "flux_bf16", 1024, 8, vram=12 * GB, rounds=2),
    ),
    "compiled sd15": (
        180,
        lambda a: picture(a, "sd15", 512, 20, computing=Computing(compiled=True), rounds=2),
    ),
    "layers flux bf16": (150, lambda a: layers(a, "flux_bf16", (0.5, 0.25))),
}
"""Name → seconds that it may take, and what gives its rows; the most telling first."""
