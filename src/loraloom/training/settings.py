"""What a training run is told, as one TOML file says it. The reason of every default: docs/training.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loraloom.errors import InputError

AdapterKind = Literal["lora", "locon", "dora", "loha", "lokr"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy", "adafactor"]
DecayName = Literal["constant", "cosine", "linear"]
Dtype = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The base. checkpoint: an all-in-one file, or only the network; then the other files are named too."""

    checkpoint: Path
    text_encoders: tuple[Path, ...] = ()
    text_kind: str = ""
    """The `type` that a CLIP loader would be given, where `text_encoders` are named."""
    autoencoder: Path | None = None


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """One dataset. folder: pictures with .txt or .caption files, or a folder of kohya's `N_trigger class`."""

    folder: Path
    repeats: int = 0
    """0: the number before the underscore of the folder's name, or 1."""
    caption: str = ""
    """For pictures without a caption file; "": what follows the number in the folder's name."""
    trigger: str = ""
    """Put before every caption that does not hold it."""
    shuffle: bool = False
    keep_tokens: int = 0
    caption_dropout: float = 0.05
    tag_dropout: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        _within("data.caption_dropout", self.caption_dropout, 0, 1)
        _within("data.tag_dropout", self.tag_dropout, 0, 1)
        _within("data.repeats", self.repeats, 0, 100_000)
        _within("data.keep_tokens", self.keep_tokens, 0, 1000)


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What is trained. targets: a regular expression over diffusers' module names; "": attention and
    feed-forward layers, for `locon` the convolutions too. alpha 0: the rank."""

    kind: AdapterKind = "lora"
    rank: int = 16
    alpha: float = 0.0
    conv_rank: int = 0
    """Rank of the convolutions; 0: they are left alone, for `locon` the rank."""
    conv_alpha: float = 0.0
    targets: str = ""
    text_encoder: bool = False
    factor: int = -1
    """LoKr: the size of the small block; -1: as square as possible."""

    def __post_init__(self) -> None:
        _within("adapter.rank", self.rank, 1, 4096)
        _within("adapter.conv_rank", self.conv_rank, 0, 4096)


@dataclass(frozen=True, slots=True)
class NoiseSettings:
    """min_snr: γ of the weighting, 0 for none. offset: added brightness noise. shift: of flow times; 0: by
    the number of latent cells, as Flux.1 samples. logit_mean, logit_deviation: of flow times."""

    min_snr: float = 5.0
    offset: float = 0.0
    shift: float = 0.0
    logit_mean: float = 0.0
    logit_deviation: float = 1.0
    guidance: float = 1.0
    """What guidance-distilled networks (Flux.1 dev) are told while training."""


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    name: OptimizerName = "adamw"
    rate: float = 1e-4
    text_rate: float = 0.0
    """Of the text encoder; 0: half of `rate`."""
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.99)
    clip: float = 1.0
    """Largest norm of the gradient; 0: no limit."""
    decay: DecayName = "cosine"
    warm_up: float = 0.05
    """Share of the steps over which the rate rises from zero."""
    lowest: float = 0.0
    """Where the decay ends, as a share of `rate`."""

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise InputError(f"optimizer.betas are two numbers; found {list(self.betas)}")
        _within("optimizer.warm_up", self.warm_up, 0, 1)


@dataclass(frozen=True, slots=True)
class RunSettings:
    steps: int = 1000
    """Optimizer steps."""
    batch: int = 1
    accumulate: int = 1
    """Batches per step."""
    resolution: int = 512
    """Side of a square of as many pixels as a bucket has at most."""
    bucket_step: int = 64
    seed: int = 42
    dtype: Dtype = "bf16"
    device: str = "auto"
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_every: int = 250
    """Steps between saved states."""
    keep_states: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "keep_states"):
            _within(f"run.{name}", getattr(self, name), 1, 10_000_000)
        _within("run.resolution", self.resolution, 16, 8192)
        _within("run.bucket_step", self.bucket_step, 8, 1024)


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    """share: of the pictures, chosen by their content, that are never trained on; every: steps between
    validations. The same noise and times every time, so that losses can be compared."""

    share: float = 0.05
    every: int = 100
    draws: int = 4
    """Noise levels per picture, spread evenly."""

    def __post_init__(self) -> None:
        _within("validation.share", self.share, 0, 0.5)


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """Pictures drawn during training by the sampling code that `loraloom run` uses."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    every: int = 250
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 0
    width: int = 0
    """0: the resolution."""
    height: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole run. name: of the LoRA file. output: folder for files, states and samples."""

    name: str
    output: Path
    model: ModelSettings
    data: tuple[FolderSettings, ...]
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    metadata: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    """Added to the file's header, such as modelspec.author and modelspec.license."""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise InputError(f'name: {self.name!r} is not a file name; give one such as "pixel_art"')
        if not self.data:
            raise InputError("no [[data]] table: name at least one folder of pictures")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {value}; it must be between {low} and {high}")
