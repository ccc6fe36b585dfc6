"""Nodes that change how a model is sampled: its parametrisation, its guidance, its noise mask."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from loraloom.engine.node import Choice, NodeRun, Number, Optional_, Text, node
from loraloom.errors import InputError
from loraloom.models.freeu import FreeU
from loraloom.nodes.sockets import Conditioning, Model
from loraloom.sampling.guidance import ExtraSide, Rule, SamplingOptions
from loraloom.sampling.parametrisation import (
    Continuous,
    Discrete,
    Distilled,
    Flow,
    FluxFlow,
    Prediction,
    Table,
)
from loraloom.sampling.rules import (
    TCFG,
    CFGNorm,
    CFGZeroStar,
    DifferentialMask,
    PerpendicularNegative,
    RenormCFG,
    RescaleCFG,
    SkipNegativeLayers,
)

if TYPE_CHECKING:
    from loraloom.models.handles import DiffusionModel

MODEL = "advanced/model"
GUIDANCE = "advanced/guidance"
EXTRA = "comfy_extras.nodes_model_advanced"

Shift = Annotated[float, Number(min=0.0, max=100.0, step=0.01)]
Level = Annotated[float, Number(min=0.0, max=1000.0, step=0.001, round=False)]
Pixels = Annotated[int, Number(min=16, max=16384, step=8)]
Percent = Annotated[float, Number(min=0.0, max=1.0, step=0.001)]
Factor = Annotated[float, Number(min=0.0, max=10.0, step=0.01)]

FLUX_TOKENS = (256, 4096)
"""Picture sizes, in patches, between which Flux's shift goes from its base to its maximum."""


def sampling_options(model: DiffusionModel) -> SamplingOptions:
    """What nodes attached to a model for sampling so far."""
    options = model.option("sampling")
    return options if isinstance(options, SamplingOptions) else SamplingOptions()


# ---- parametrisation ------------------------------------------------------------------------------------

DISCRETE: dict[str, Prediction] = {
    "eps": "eps",
    "v_prediction": "v",
    "lcm": "lcm",
    "x0": "x0",
    "img_to_img": "img_to_img",
}


@node("ModelSamplingDiscrete", category=MODEL, display_name="ModelSamplingDiscrete", python_module=EXTRA)
def discrete(model: Model, *, sampling: Annotated[str, Choice(tuple(DISCRETE))], zsnr: bool = False) -> Model:
    """Say what a model of the Stable Diffusion kind predicts, and whether its last level is noise alone."""
    prediction, current = DISCRETE[sampling], model.current_parametrisation()
    table = replace(current.table if isinstance(current, Discrete) else Table(), zero_snr=zsnr)
    kind = Distilled if prediction == "lcm" else Discrete
    return model.with_parametrisation(kind(prediction, table))


CONTINUOUS = ("v_prediction", "edm", "edm_playground_v2.5", "eps", "cosmos_rflow")


@node(
    "ModelSamplingContinuousEDM",
    category=MODEL,
    display_name="ModelSamplingContinuousEDM",
    python_module=EXTRA,
)
def continuous_edm(
    *,
    model: Model,
    sampling: Annotated[str, Choice(CONTINUOUS)],
    sigma_max: Level = 120.0,
    sigma_min: Level = 0.002,
) -> Model:
    """Sample a model over a range of levels, with the level's logarithm as its time."""
    predictions: dict[str, tuple[Prediction, float]] = {
        "v_prediction": ("v", 1.0),
        "edm": ("edm", 0.5),
        "eps": ("eps", 1.0),
    }
    if sampling not in predictions:
        raise InputError(f"{sampling!r} belongs to a model family that is not supported yet.")
    prediction, data = predictions[sampling]
    return model.with_parametrisation(Continuous(prediction, *_range(sigma_min, sigma_max), sigma_data=data))


@node(
    "ModelSamplingContinuousV", category=MODEL, display_name="ModelSamplingContinuousV", python_module=EXTRA
)
def continuous_v(
    *,
    model: Model,
    sampling: Annotated[str, Choice(("v_prediction",))],
    sigma_max: Level = 500.0,
    sigma_min: Level = 0.03,
) -> Model:
    """Sample a v model over a range of levels, with the level's angle as its time."""
    return model.with_parametrisation(Continuous("v", *_range(sigma_min, sigma_max), time="angle"))


@node("ModelSamplingSD3", category=MODEL, display_name="ModelSamplingSD3", python_module=EXTRA)
def shifted_flow(model: Model, shift: Shift = 3.0) -> Model:
    """Spend more steps at high noise: the shift of a flow model whose time runs to 1000."""
    return model.with_parametrisation(Flow(_shift(shift), 1000.0))


@node("ModelSamplingAuraFlow", category=MODEL, display_name="ModelSamplingAuraFlow", python_module=EXTRA)
def shifted_unit_flow(model: Model, shift: Shift = 1.73) -> Model:
    """Spend more steps at high noise: the shift of a flow model whose time runs to 1."""
    return model.with_parametrisation(Flow(_shift(shift), 1.0))


@node("ModelSamplingFlux", category=MODEL, display_name="ModelSamplingFlux", python_module=EXTRA)
def flux_flow(
    *,
    model: Model,
    max_shift: Shift = 1.15,
    base_shift: Shift = 0.5,
    width: Pixels = 1024,
    height: Pixels = 1024,
) -> Model:
    """Shift the levels of Flux by the size of the picture, as it was trained."""
    small, large = FLUX_TOKENS
    share = (width * height / 16**2 - small) / (large - small)
    return model.with_parametrisation(FluxFlow(base_shift + share * (max_shift - base_shift)))


def _range(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    if not 0 < sigma_min < sigma_max:
        raise InputError(
            f"sigma_min is {sigma_min} and sigma_max {sigma_max}; 0 < sigma_min < sigma_max is needed."
        )
    return sigma_min, sigma_max


def _shift(shift: float) -> float:
    if shift <= 0:
        raise InputError(f"The shift is {shift}; it must be above 0.")
    return shift


# ---- guidance -------------------------------------------------------------------------------------------


@node("RescaleCFG", category=MODEL, display_name="RescaleCFG", python_module=EXTRA)
def rescale_cfg(
    model: Model, multiplier: Annotated[float, Number(min=0.0, max=1.0, step=0.01)] = 0.7
) -> Model:
    """Keep high cfg from washing out v models: restore the contrast of the positive side."""
    return _with(model, combine=RescaleCFG(multiplier))


@node("RenormCFG", category=MODEL, v3=True, python_module="comfy_extras.nodes_lumina2")
def renorm_cfg(
    model: Model,
    cfg_trunc: Annotated[float, Number(min=0.0, max=100.0, step=0.01)] = 100,
    renorm_cfg: Annotated[float, Number(min=0.0, max=100.0, step=0.01)] = 1.0,
) -> Model:
    """Guide below a level only, and keep the result from growing beyond the positive side."""
    return _with(model, combine=RenormCFG(cfg_trunc, renorm_cfg))


@node(
    "CFGNorm",
    category=GUIDANCE,
    outputs=("patched_model",),
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_cfg",
)
def cfg_norm(model: Model, strength: Annotated[float, Number(min=0.0, max=100.0, step=0.01)] = 1.0) -> Model:
    """Keep each guided latent pixel from growing beyond the positive side's."""
    return _after(model, CFGNorm(strength))


@node(
    "CFGZeroStar",
    category=GUIDANCE,
    outputs=("patched_model",),
    v3=True,
    python_module="comfy_extras.nodes_cfg",
)
def cfg_zero_star(model: Model) -> Model:
    """Scale the negative side to fit the positive one before guiding, for flow models."""
    return _after(model, CFGZeroStar())


@node(
    "TCFG",
    category=GUIDANCE,
    display_name="Tangential Damping CFG",
    outputs=("patched_model",),
    v3=True,
    python_module="comfy_extras.nodes_tcfg",
)
def tangential_damping(model: Model) -> Model:
    """Remove from the negative side what leads away from both sides' common direction."""
    options = sampling_options(model)
    return _with(model, before=(*options.before, TCFG()))


@node(
    "PerpNeg",
    category="_for_testing",
    display_name="Perp-Neg (DEPRECATED by PerpNegGuider)",
    deprecated=True,
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_perpneg",
)
def perp_neg(
    model: Model,
    empty_conditioning: Conditioning,
    neg_scale: Annotated[float, Number(min=0.0, max=100.0, step=0.01)] = 1.0,
) -> Model:
    """Guide away from what only the negative prompt says."""
    empty = (("empty", ExtraSide(empty_conditioning)),)
    return _with(model, combine=PerpendicularNegative(neg_scale), extra=empty)


@node(
    "SkipLayerGuidanceDiTSimple",
    category=GUIDANCE,
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_slg",
)
def skip_negative_layers(
    *,
    model: Model,
    double_layers: Annotated[str, Text(multiline=False)] = "7, 8, 9",
    single_layers: Annotated[str, Text(multiline=False)] = "7, 8, 9",
    start_percent: Percent = 0.0,
    end_percent: Percent = 1.0,
    run: NodeRun,
) -> Model:
    """Compute the negative side without some layers of a transformer, between two points of the run."""
    known = model.family.blocks
    blocks: list[tuple[str, int]] = []
    for kind, text in (("double", double_layers), ("single", single_layers)):
        numbers = re.findall(r"\d+", text)
        if numbers and kind not in known:
            has = f"those it has are {' and '.join(known)}" if known else "none of it can be skipped"
            run.warn(
                f"SkipLayerGuidanceDiTSimple: {model.family.title} has no {kind} blocks to skip ({has}); "
                f"leave {kind}_layers empty"
            )
        else:
            blocks += [(kind, int(number)) for number in numbers]
    if not blocks:
        return model
    return _with(model, sides=SkipNegativeLayers(tuple(blocks), start_percent, end_percent))


@node(
    "DifferentialDiffusion",
    category="_for_testing",
    display_name="Differential Diffusion",
    experimental=True,
    v3=True,
    python_module="comfy_extras.nodes_differential_diffusion",
)
def differential_diffusion(
    model: Model,
    strength: Annotated[float, Number(min=0.0, max=1.0, step=0.01), Optional_()] = 1.0,
) -> Model:
    """Read grey in a noise mask as the time from which a pixel may change."""
    return _with(model, mask=DifferentialMask(strength))


def _with(model: DiffusionModel, **changes: Any) -> DiffusionModel:
    return model.with_option("sampling", replace(sampling_options(model), **changes))


def _after(model: DiffusionModel, rule: Rule) -> DiffusionModel:
    return _with(model, after=(*sampling_options(model).after, rule))


# ---- the decoder ----------------------------------------------------------------------------------------


@node(
    "FreeU", category="model_patches/unet", display_name="FreeU", python_module="comfy_extras.nodes_freelunch"
)
def free_u(model: Model, b1: Factor = 1.1, b2: Factor = 1.2, s1: Factor = 0.9, s2: Factor = 0.2) -> Model:
    """Amplify a UNet's own features (b) and damp the broad ones that skip its middle (s)."""
    return _with_free_u(model, FreeU(b1, b2, s1, s2))


@node(
    "FreeU_V2",
    category="model_patches/unet",
    display_name="FreeU_V2",
    python_module="comfy_extras.nodes_freelunch",
)
def free_u_adaptive(
    model: Model, b1: Factor = 1.3, b2: Factor = 1.4, s1: Factor = 0.9, s2: Factor = 0.2
) -> Model:
    """FreeU that amplifies each place by how strong its features are."""
    return _with_free_u(model, FreeU(b1, b2, s1, s2, adaptive=True))


def _with_free_u(model: DiffusionModel, settings: FreeU) -> DiffusionModel:
    if not model.family.is_unet:
        raise InputError(
            f"FreeU acts on the decoder of a UNet, and the network of {model.family.title} is a transformer, "
            "which has none: take this node out, or use it with a Stable Diffusion 1.5, 2.x or SDXL model"
        )
    return model.with_option("freeu", settings)
