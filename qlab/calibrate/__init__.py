"""Calibration and quantization-aware training: which range gets the codes, and how a model learns to live with them."""

from qlab.calibrate.clipping import ClipErrors, clip_errors, mse_clip
from qlab.calibrate.correction import bias_correction, equalize
from qlab.calibrate.fake_quantize import FakeQuantize, LearnedStep, fake_quantize
from qlab.calibrate.layers import DynamicLinear, StaticLinear, calibrate, require_disjoint, watched_inputs
from qlab.calibrate.observers import Entropy, LeastSquares, MinMax, MovingAverage, Percentile

__all__ = [
    "ClipErrors",
    "DynamicLinear",
    "Entropy",
    "FakeQuantize",
    "LearnedStep",
    "LeastSquares",
    "MinMax",
    "MovingAverage",
    "Percentile",
    "StaticLinear",
    "bias_correction",
    "calibrate",
    "clip_errors",
    "equalize",
    "fake_quantize",
    "mse_clip",
    "require_disjoint",
    "watched_inputs",
]
