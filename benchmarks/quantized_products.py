"""Linear layers as BF16, as int8 codes and with 4-bit weights, against FP32 here; `--record` keeps a GPU's."""

import sys

import torch
from _peer import arguments, keep_recording

from qlab.quantized_products import measure_linears

SEED = 0
COMMAND = "python benchmarks/quantized_products.py --record"

options = arguments(__doc__, record=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
if options.record and device == "cpu":
    sys.exit("nothing recorded: this machine has no CUDA GPU, and the lesson measures CPUs itself")
width = 128 if options.tiny else 8192 if device == "cuda" else 1024
repeats = 1 if options.tiny else 30
found = measure_linears(width=width, tokens=(1, 256), device=device, seed=SEED, repeats=repeats)
fp32 = {one.tokens: one.microseconds for one in found if one.name == "FP32"}
for one in found:
    ratio = fp32[one.tokens] / one.microseconds
    print(
        f"{one.name}, {one.tokens} tokens × {width}² on {device}: {one.microseconds:.4g} µs,"
        f" FP32 {fp32[one.tokens]:.4g} µs: {ratio:.2f} times as fast, relative error {one.relative_error:.2g}"
    )
if options.record:
    keep_recording("03_quantization", "gpu", found, command=COMMAND, seed=SEED, device=device, width=width)
