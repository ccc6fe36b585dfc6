"""What a diffusion network predicts, by the marks that its file carries.

A tensor named "v_pred" marks v-prediction, "ztsnr" a table that ends in pure noise, and
"edm_vpred.sigma_max" v-prediction over a range of noise levels (CosXL); some trainers say so in the
header's metadata instead (modelspec.predict_key / modelspec.prediction_type).
"""

from __future__ import annotations

from loraloom.sampling.parametrisation import Continuous, Discrete, Prediction, Table
from loraloom.sampling.types import Parametrisation
from loraloom.weights.source import WeightSource


def discrete(weights: WeightSource, *, default: Prediction) -> Parametrisation:
    """Stable Diffusion's noise table with the prediction that the file states, or `default`."""
    if "edm_vpred.sigma_max" in weights:
        lowest, highest = (
            float(weights.read(name)) if name in weights else otherwise
            for name, otherwise in (("edm_vpred.sigma_min", 0.002), ("edm_vpred.sigma_max", 120.0))
        )
        return Continuous("v", lowest, highest)
    prediction, zero_snr = default, "ztsnr" in weights
    stated = " ".join(
        weights.metadata.get(f"modelspec.{key}", "") for key in ("prediction_type", "predict_key")
    ).lower()
    if "v_pred" in weights or stated.split() and stated.split()[0] in ("v", "v_prediction", "v-prediction"):
        prediction = "v"
    elif "epsilon" in stated:
        prediction = "eps"
    return Discrete(prediction, Table(zero_snr=zero_snr))
