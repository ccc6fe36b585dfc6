"""What a training run is told, as one TOML file says it. The reason of every default: docs/training.md."""

from __future__ import annotations

from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, ValidationInfo
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticKnownError

from loraloom.errors import InputError
from loraloom.training.kind import kinds

OptimizerName = Literal["adamw", "adamw8bit", "prodigy", "adafactor"]
DecayName = Literal["constant", "cosine", "linear"]
Dtype = Literal["fp32", "bf16"]


def _in_folder(stated: object, info: ValidationInfo) -> object:
    """A path as a file states it, relative to the validation's `folder`."""
    folder = Path((info.context or {}).get("folder", ""))
    return folder / Path(stated).expanduser() if isinstance(stated, str) else stated


def _is_kind(name: str) -> str:
    """One of `training/kinds`, told as a choice from a list is."""
    if name not in kinds():
        *others, last = map(repr, kinds())
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
    return name


# Strict: TOML has types, so that a text is never read as a number, nor a number as a switch.
FilePath = Annotated[Path, BeforeValidator(_in_folder)]
Text = Annotated[str, Strict()]
AdapterKind = Annotated[Text, AfterValidator(_is_kind)]
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Share = Annotated[Real, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[Real, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1, le=10_000_000)]
KNOWN_KEYS = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class ModelSettings:
    """The base. checkpoint: an all-in-one file, or only the network; then the other files are named too."""

    checkpoint: FilePath
    text_encoders: tuple[FilePath, ...] = ()
    text_kind: Text = ""
    """The `type` that a CLIP loader would be given, where `text_encoders` are named."""
    autoencoder: FilePath | None = None


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class FolderSettings:
    """One dataset. folder: pictures with .txt or .caption files, or a folder of kohya's `N_trigger class`."""

    folder: FilePath
    repeats: Annotated[Whole, Field(ge=0, le=100_000)] = 0
    """0: the number before the underscore of the folder's name, or 1."""
    caption: Text = ""
    """For pictures without a caption file; "": what follows the number in the folder's name."""
    trigger: Text = ""
    """Put before every caption that does not hold it."""
    shuffle: Flag = False
    keep_tokens: Annotated[Whole, Field(ge=0, le=1000)] = 0
    caption_dropout: Share = 0.05
    tag_dropout: Share = 0.0
    flip: Flag = False


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class AdapterSettings:
    """What is trained. targets: a regular expression over diffusers' module names; "": attention and
    feed-forward layers, for `locon` the convolutions too. alpha 0: the rank. start: a LoRA file to go on
    from, of the same kind, rank, alpha and layers."""

    kind: AdapterKind = "lora"
    rank: Annotated[Whole, Field(ge=1, le=4096)] = 16
    alpha: Real = 0.0
    conv_rank: Annotated[Whole, Field(ge=0, le=4096)] = 0
    """Rank of the convolutions; 0: they are left alone, for `locon` the rank."""
    conv_alpha: Real = 0.0
    targets: Text = ""
    text_encoder: Flag = False
    factor: Whole = -1
    """LoKr: the size of the small block; -1: as square as possible."""
    start: FilePath | None = None

    def __post_init__(self) -> None:
        taken = kinds()[self.kind].settings
        given = {entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default}
        for kind in kinds().values():
            if others := given.intersection(kind.settings).difference(taken):
                raise InputError(f"adapter.{min(others)} is for {kind.name}; adapter.kind is {self.kind}")


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class NoiseSettings:
    """min_snr: γ of the weighting, 0 for none. offset: added brightness noise. shift: of flow times; 0: by
    the number of latent cells, as Flux.1 samples. logit_mean, logit_deviation: of flow times."""

    min_snr: Real = 5.0
    offset: Real = 0.0
    shift: Real = 0.0
    logit_mean: Real = 0.0
    logit_deviation: Real = 1.0
    guidance: Real = 1.0
    """What guidance-distilled networks (Flux.1 dev) are told while training."""


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class OptimizerSettings:
    name: OptimizerName = "adamw"
    rate: Amount = 1e-4
    text_rate: Amount = 0.0
    """Of the text encoder; 0: half of `rate`, with prodigy `rate` itself."""
    weight_decay: Amount = 0.01
    betas: tuple[Real, ...] = (0.9, 0.99)
    clip: Real = 1.0
    """Largest norm of the gradient; 0: no limit."""
    decay: DecayName = "cosine"
    warm_up: Share = 0.05
    """Share of the steps over which the rate rises from zero."""
    lowest: Real = 0.0
    """Where the decay ends, as a share of `rate`."""

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise InputError(f"optimizer.betas are two numbers; found {list(self.betas)}")


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class RunSettings:
    steps: Count = 1000
    """Optimizer steps."""
    batch: Count = 1
    accumulate: Count = 1
    """Batches per step."""
    resolution: Annotated[Whole, Field(ge=16, le=8192)] = 512
    """Side of a square of as many pixels as a bucket has at most."""
    bucket_step: Annotated[Whole, Field(ge=8, le=1024)] = 64
    seed: Whole = 42
    dtype: Dtype = "bf16"
    device: Text = "auto"
    checkpointing: Flag = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_every: Count = 250
    """Steps between saved states."""
    keep_states: Count = 2


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class ValidationSettings:
    """share: of the pictures, chosen by their content, that are never trained on; every: steps between
    validations. The same noise and times every time, so that losses can be compared."""

    share: Annotated[Real, Field(ge=0, le=0.5, allow_inf_nan=False)] = 0.05
    every: Whole = 100
    draws: Whole = 4
    """Noise levels per picture, spread evenly."""


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class SampleSettings:
    """Pictures drawn during training by the sampling code that `loraloom run` uses."""

    prompts: tuple[Text, ...] = ()
    negative: Text = ""
    every: Count = 250
    steps: Whole = 20
    cfg: Real = 7.0
    sampler: Text = "euler"
    scheduler: Text = "normal"
    seed: Whole = 0
    width: Whole = 0
    """0: the resolution."""
    height: Whole = 0


@dataclass(frozen=True, slots=True, config=KNOWN_KEYS)
class Settings:
    """A whole run. name: of the LoRA file. output: folder for files, states and samples."""

    name: Text
    output: FilePath
    model: ModelSettings
    data: tuple[FolderSettings, ...]
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    cache: FilePath | None = None
    """Where encoded pictures and captions are kept, which several runs may share; None: in `output`."""
    metadata: dict[str, Text] = field(default_factory=lambda: dict[str, str]())
    """Added to the file's header, such as modelspec.author and modelspec.license."""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise InputError(f'name: {self.name!r} is not a file name; give one such as "pixel_art"')
        if not self.data:
            raise InputError("no [[data]] table: name at least one folder of pictures")
        rates = self.optimizer
        if rates.name == "prodigy" and self.adapter.text_encoder and rates.text_rate not in (0, rates.rate):
            raise InputError(
                f"optimizer.text_rate is {rates.text_rate}: prodigy finds one rate for all; leave it out"
            )
