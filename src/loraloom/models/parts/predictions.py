"""What a diffusion network predicts, by the marks that its file carries.

A tensor named "v_pred" marks v-prediction, "ztsnr" a table that ends in pure noise, and
"edm_vpred.sigma_max" v-prediction over a range of noise levels (CosXL); some trainers say so in the
header's metadata instead (modelspec.predict_key / modelspec.prediction_type).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraloom.sampling.parametrisation import Prediction
    from loraloom.sampling.types import Parametrisation
    from loraloom.weights.source import WeightSource


def discrete(default: Prediction) -> Callable[[WeightSource], Parametrisation]:
    """Stable Diffusion's noise table with the prediction that the file states, or `default`."""

    def prediction(weights: WeightSource) -> Parametrisation:
        from loraloom.sampling.parametrisation import Continuous, Discrete, Table

        if "edm_vpred.sigma_max" in weights:
            lowest, highest = (
                float(weights.read(name)) if name in weights else otherwise
                for name, otherwise in (("edm_vpred.sigma_min", 0.002), ("edm_vpred.sigma_max", 120.0))
            )
            return Continuous("v", lowest, highest)
        return Discrete(_stated(weights) or default, Table(zero_snr="ztsnr" in weights))

    return prediction


def _stated(weights: WeightSource) -> Prediction | None:
    """What a file says that it predicts; None where it does not say."""
    said = " ".join(
        weights.metadata.get(f"modelspec.{key}", "") for key in ("prediction_type", "predict_key")
    ).lower()
    if "v_pred" in weights or said.split() and said.split()[0] in ("v", "v_prediction", "v-prediction"):
        return "v"
    return "eps" if "epsilon" in said else None


def flow(shift: float, multiplier: float = 1.0) -> Callable[[WeightSource], Parametrisation]:
    """Rectified flow, sigma(s) = shift·s / (1 + (shift - 1)·s); the network's time is sigma · multiplier."""

    def prediction(weights: WeightSource) -> Parametrisation:
        from loraloom.sampling.parametrisation import Flow

        return Flow(shift=shift, multiplier=multiplier)

    return prediction


def flux_flow(shift: float) -> Callable[[WeightSource], Parametrisation]:
    """Rectified flow, sigma(s) = e^shift / (e^shift + 1/s - 1); the network's time is sigma."""

    def prediction(weights: WeightSource) -> Parametrisation:
        from loraloom.sampling.parametrisation import FluxFlow

        return FluxFlow(shift)

    return prediction
