"""Plain settings of one drawing ⇄ a graph: what a form without nodes needs.

`graph_of` builds the workflow that such a form means; `settings_of` finds the same settings in a workflow,
as far as it follows one of the usual shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from loraloom.errors import InputError
from loraloom.workflow.graph import Graph, GraphNode, Link, Value

BaseKind = Literal["checkpoints", "diffusion_models"]
LORA_CLASSES = ("LoraLoader", "LoraLoaderModelOnly")
PREFIX = "Loraloom"
MAX_LORAS = 64


@dataclass(frozen=True, slots=True)
class LoraUse:
    """One LoRA of the stack. clip None: the same strength as for the model. on: False keeps it in the list
    and out of the picture."""

    name: str
    model: float = 1.0
    clip: float | None = None
    on: bool = True


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """One drawing. width, height: pixels. count: pictures at once.

    base: a file of the folder `base_kind`; a bare diffusion network also needs `text_encoders` (with
        `text_kind`, the `type` of ComfyUI's CLIP loaders) and `vae`. vae "": the checkpoint's own.
    family: what the base is, where that is known ("sd15", "flux"). channels: of its latents.
    guidance: for networks that are told their guidance (Flux.1 dev), beside cfg.
    start: a picture to begin from ("name.png", "folder/name.png [output]"), redrawn by `denoise`.
    """

    base: str
    prompt: str = ""
    negative: str = ""
    base_kind: BaseKind = "checkpoints"
    family: str = ""
    channels: int = 4
    text_encoders: tuple[str, ...] = ()
    text_kind: str = ""
    vae: str = ""
    width: int = 512
    height: int = 512
    count: int = 1
    steps: int = 20
    cfg: float = 7.0
    guidance: float = 3.5
    seed: int = 0
    sampler: str = "euler"
    scheduler: str = "normal"
    denoise: float = 1.0
    loras: tuple[LoraUse, ...] = ()
    start: str = ""


# Families that are told their guidance, by the channels of their latents.
_GUIDED = {16: "flux", 128: "flux2"}
# Channels of a latent → the node that makes an empty one. Others begin with one of EmptyLatentImage, of which
# the sampler makes the model's own.
_EMPTY_LATENTS = {4: "EmptyLatentImage", 16: "EmptySD3LatentImage", 128: "EmptyFlux2LatentImage"}
_CHANNELS = {node: channels for channels, node in _EMPTY_LATENTS.items()}
_CLIP_LOADERS = {1: "CLIPLoader", 2: "DualCLIPLoader", 3: "TripleCLIPLoader"}


class _Builder:
    """Nodes under the numbers 1, 2, 3, …"""

    def __init__(self) -> None:
        self.nodes: dict[str, GraphNode] = {}

    def add(self, class_type: str, title: str | None = None, **inputs: Value) -> str:
        node_id = str(len(self.nodes) + 1)
        self.nodes[node_id] = GraphNode(node_id, class_type, inputs, title)
        return node_id


def graph_of(settings: DrawSettings) -> Graph:
    """The workflow of a drawing. Raises InputError for settings that make none; what a node may be given
    is for `validate` to check."""
    _check(settings)
    build = _Builder()
    model, clip, vae = _loaders(build, settings)
    for lora in settings.loras:
        if lora.on:
            strengths: dict[str, Value] = {
                "strength_model": lora.model,
                "strength_clip": lora.model if lora.clip is None else lora.clip,
            }
            node = build.add("LoraLoader", None, model=model, clip=clip, lora_name=lora.name, **strengths)
            model, clip = Link(node, 0), Link(node, 1)
    positive = Link(build.add("CLIPTextEncode", "Prompt", text=settings.prompt, clip=clip), 0)
    negative = Link(build.add("CLIPTextEncode", "Negative prompt", text=settings.negative, clip=clip), 0)
    if settings.family in _GUIDED.values():
        node = build.add("FluxGuidance", None, conditioning=positive, guidance=settings.guidance)
        positive = Link(node, 0)
    sampler = build.add(
        "KSampler", None, model=model, seed=settings.seed, steps=settings.steps, cfg=settings.cfg,
        sampler_name=settings.sampler, scheduler=settings.scheduler, positive=positive, negative=negative,
        latent_image=_latent(build, settings, vae), denoise=settings.denoise,
    )  # fmt: skip
    decoded = build.add("VAEDecode", None, samples=Link(sampler, 0), vae=vae)
    build.add("SaveImage", None, images=Link(decoded, 0), filename_prefix=PREFIX)
    return Graph(build.nodes, origin="the form")


def _check(settings: DrawSettings) -> None:
    if not settings.base:
        raise InputError("no base model is chosen; choose a checkpoint")
    if len(settings.loras) > MAX_LORAS:
        raise InputError(f"{len(settings.loras)} LoRAs; at most {MAX_LORAS} are taken")
    if settings.base_kind == "diffusion_models":
        if len(settings.text_encoders) not in _CLIP_LOADERS or not all(settings.text_encoders):
            raise InputError(f"{settings.base} holds no text encoders; choose one to three of them")
        if not settings.vae:
            raise InputError(f"{settings.base} holds no VAE; choose one")


def _loaders(build: _Builder, settings: DrawSettings) -> tuple[Link, Link, Link]:
    """Links to model, CLIP and VAE."""
    if settings.base_kind == "checkpoints":
        node = build.add("CheckpointLoaderSimple", None, ckpt_name=settings.base)
        model, clip, vae = Link(node, 0), Link(node, 1), Link(node, 2)
    else:
        node = build.add("UNETLoader", None, unet_name=settings.base, weight_dtype="default")
        model, vae = Link(node, 0), Link("", 0)
        names = settings.text_encoders
        files: dict[str, Value] = (
            {"clip_name": names[0]}
            if len(names) == 1
            else {f"clip_name{i}": name for i, name in enumerate(names, 1)}
        )
        if len(names) < 3:
            files["type"] = settings.text_kind or settings.family
        clip = Link(build.add(_CLIP_LOADERS[len(names)], None, **files), 0)
    if settings.vae:
        vae = Link(build.add("VAELoader", None, vae_name=settings.vae), 0)
    return model, clip, vae


def _latent(build: _Builder, settings: DrawSettings, vae: Link) -> Link:
    if settings.start:
        picture = build.add("LoadImage", "Start picture", image=settings.start)
        return Link(build.add("VAEEncode", None, pixels=Link(picture, 0), vae=vae), 0)
    kind = _EMPTY_LATENTS.get(settings.channels, "EmptyLatentImage")
    size = {"width": settings.width, "height": settings.height, "batch_size": settings.count}
    return Link(build.add(kind, None, **size), 0)


# ---- Back from a graph ----


def settings_of(graph: Graph) -> DrawSettings | None:
    """The settings that a workflow amounts to; None where it samples in no way that is known here."""
    return next(_readings(graph), None)


def title_of(graph: Graph) -> str:
    """What a job is called: its prompt, or the first text in it."""
    found = settings_of(graph)
    if found is not None and found.prompt:
        return found.prompt
    texts = (v for node in graph.nodes.values() for v in (node.inputs.get("text"),) if isinstance(v, str))
    return next((text for text in texts if text.strip()), "")


def _readings(graph: Graph) -> Iterator[DrawSettings]:
    for node in graph.nodes.values():
        reader = _Reader(graph)
        if node.class_type in ("KSampler", "KSamplerAdvanced"):
            yield from reader.sampler(node)
        elif node.class_type in ("SamplerCustomAdvanced", "SamplerCustom"):
            yield from reader.custom(node)


class _Reader:
    """Follows links upwards from a sampler."""

    def __init__(self, graph: Graph) -> None:
        self._nodes = graph.nodes

    def sampler(self, node: GraphNode) -> Iterator[DrawSettings]:
        values = {
            "seed": self._number(node, "seed", self._number(node, "noise_seed", 0)),
            "steps": self._number(node, "steps", 20),
            "cfg": self._number(node, "cfg", 7.0),
            "denoise": self._number(node, "denoise", 1.0),
        }
        texts = {"sampler": self._text(node, "sampler_name"), "scheduler": self._text(node, "scheduler")}
        yield from self._whole(node, node, "positive", values, texts)

    def custom(self, node: GraphNode) -> Iterator[DrawSettings]:
        guider = self._up(node, "guider") or node
        noise, sigmas = self._up(node, "noise") or node, self._up(node, "sigmas")
        chosen = self._up(node, "sampler")
        values = {
            "seed": self._number(noise, "noise_seed", 0),
            "steps": self._number(sigmas, "steps", 20),
            "cfg": self._number(guider, "cfg", 1.0),
            "denoise": self._number(sigmas, "denoise", 1.0),
        }
        texts = {
            "sampler": self._text(chosen, "sampler_name"),
            "scheduler": self._text(sigmas, "scheduler"),
        }
        positive = "positive" if "positive" in guider.inputs else "conditioning"
        yield from self._whole(node, guider, positive, values, texts)

    def _whole(
        self, node: GraphNode, guider: GraphNode, positive: str, values: Mapping[str, float],
        texts: Mapping[str, str],
    ) -> Iterator[DrawSettings]:  # fmt: skip
        """The settings, if the chain of models ends at a file."""
        loras, loader = self._models(guider)
        base = self._file(loader, "ckpt_name") or self._file(loader, "unet_name")
        if not base or loader is None:
            return
        latent = self._find(node, "latent_image", ("width", "height"))
        clip = self._find(guider, positive, ("clip_name", "clip_name1", "ckpt_name"))
        names = [self._file(clip, n) for n in ("clip_name", "clip_name1", "clip_name2", "clip_name3")]
        vae = next((n for n in self._nodes.values() if n.class_type == "VAELoader"), None)
        guidance = self._find(guider, positive, ("guidance",))
        channels = _CHANNELS.get(latent.class_type, 4) if latent is not None else 4
        yield DrawSettings(
            base=base,
            base_kind="checkpoints" if "ckpt_name" in loader.inputs else "diffusion_models",
            family=_GUIDED.get(channels, "flux") if guidance is not None else "",
            channels=channels,
            text_encoders=tuple(name for name in names if name),
            text_kind=self._text(clip, "type"),
            vae=self._file(vae, "vae_name"),
            prompt=self._prompt(guider, positive),
            negative=self._prompt(guider, "negative"),
            width=int(self._number(latent, "width", 512)),
            height=int(self._number(latent, "height", 512)),
            count=int(self._number(latent, "batch_size", 1)),
            steps=int(values["steps"]),
            cfg=float(values["cfg"]),
            guidance=float(self._number(guidance, "guidance", 3.5)),
            seed=int(values["seed"]),
            sampler=texts["sampler"] or "euler",
            scheduler=texts["scheduler"] or "normal",
            denoise=float(values["denoise"]),
            loras=tuple(loras),
            start=self._text(self._find(node, "latent_image", ("image",)), "image"),
        )

    def _models(self, node: GraphNode) -> tuple[list[LoraUse], GraphNode | None]:
        """The LoRAs between a sampler and the file that its model comes from, in the order of use."""
        loras: list[LoraUse] = []
        found: GraphNode | None = self._up(node, "model") or self._find(node, "model", ("ckpt_name",))
        seen: set[str] = set()
        while found is not None and found.id not in seen:
            seen.add(found.id)
            if found.class_type in LORA_CLASSES:
                model = self._number(found, "strength_model", 1.0)
                clip = self._number(found, "strength_clip", model)
                name = self._file(found, "lora_name")
                loras.append(LoraUse(name, model, None if clip == model else clip))
            above = self._up(found, "model")
            if above is None:
                break
            found = above
        return loras[::-1], found

    def _prompt(self, node: GraphNode, name: str) -> str:
        found = self._find(node, name, ("text", "clip_l", "text_g"))
        return next((t for n in ("text", "t5xxl", "text_g", "clip_l") if (t := self._text(found, n))), "")

    def _up(self, node: GraphNode | None, name: str) -> GraphNode | None:
        link = None if node is None else node.inputs.get(name)
        return self._nodes.get(link.node) if isinstance(link, Link) else None

    def _find(self, node: GraphNode, name: str, inputs: tuple[str, ...]) -> GraphNode | None:
        """The nearest node above an input that has one of these inputs."""
        waiting, seen = [self._up(node, name)], set[str]()
        while waiting:
            found = waiting.pop(0)
            if found is None or found.id in seen:
                continue
            seen.add(found.id)
            if any(i in found.inputs for i in inputs):
                return found
            waiting += [self._nodes.get(link.node) for link in found.links().values()]
        return None

    def _text(self, node: GraphNode | None, name: str) -> str:
        value = self._value(node, name)
        return value if isinstance(value, str) else ""

    def _file(self, node: GraphNode | None, name: str) -> str:
        """A file's name; workflows made on Windows write it with backslashes."""
        return self._text(node, name).replace("\\", "/")

    def _number(self, node: GraphNode | None, name: str, default: float) -> float:
        value = self._value(node, name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else default

    def _value(self, node: GraphNode | None, name: str) -> Value:
        """A literal, or that of the primitive it is linked to."""
        value = None if node is None else node.inputs.get(name)
        if isinstance(value, Link):
            origin = self._nodes.get(value.node)
            inputs = {} if origin is None else origin.inputs
            return next((inputs[n] for n in ("value", "text", "string", "seed") if n in inputs), None)
        return value
