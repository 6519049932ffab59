"""Mixed precision: what a narrow format loses (`census`), and its cures: `scaler`, `weights`, `step`, `emulation`."""

from qlab.loss_scaling.census import Census, census, safe_scale, underflow_fraction
from qlab.loss_scaling.emulation import EVERYTHING, PRODUCTS, CastPolicy, Emulated, narrow_error
from qlab.loss_scaling.scaler import LossScaler, StaticScaler, unscale_gradients
from qlab.loss_scaling.step import training_step
from qlab.loss_scaling.weights import (
    KahanWeights,
    MasterWeights,
    NarrowWeights,
    StochasticWeights,
    kahan_add,
    nearest_add,
    stochastic_add,
    swallowed_fraction,
)

__all__ = [
    "EVERYTHING",
    "PRODUCTS",
    "CastPolicy",
    "Census",
    "Emulated",
    "KahanWeights",
    "LossScaler",
    "MasterWeights",
    "NarrowWeights",
    "StaticScaler",
    "StochasticWeights",
    "census",
    "kahan_add",
    "narrow_error",
    "nearest_add",
    "safe_scale",
    "stochastic_add",
    "swallowed_fraction",
    "training_step",
    "underflow_fraction",
    "unscale_gradients",
]
