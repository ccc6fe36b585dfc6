"""What a diffusion network predicts, by the marks that its file carries.

A tensor named "v_pred" marks v-prediction and "ztsnr" a table that ends in pure noise; some trainers say
so in the header's metadata instead (modelspec.predict_key / modelspec.prediction_type).
"""

from __future__ import annotations

from loraloom.sampling.parametrisation import Discrete, Prediction, Table
from loraloom.sampling.types import Parametrisation
from loraloom.weights.source import WeightSource


def discrete(weights: WeightSource, *, default: Prediction) -> Parametrisation:
    """Stable Diffusion's noise table with the prediction that the file states, or `default`."""
    prediction, zero_snr = default, "ztsnr" in weights
    stated = " ".join(
        weights.metadata.get(f"modelspec.{key}", "") for key in ("prediction_type", "predict_key")
    ).lower()
    if "v_pred" in weights or stated.split() and stated.split()[0] in ("v", "v_prediction", "v-prediction"):
        prediction = "v"
    elif "epsilon" in stated:
        prediction = "eps"
    return Discrete(prediction, Table(zero_snr=zero_snr))
