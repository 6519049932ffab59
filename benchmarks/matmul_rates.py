"""Matrix products in every data type of this machine, against FP32 on it; `--record` keeps a GPU's for lesson 01."""

import sys

import torch
from _peer import arguments, keep_recording

from qlab.matmul import MatmulResult, measure_products

SEED = 0
COMMAND = "python benchmarks/matmul_rates.py --record"

options = arguments(__doc__, record=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
if options.record and device == "cpu":
    sys.exit("nothing recorded: this machine has no CUDA GPU, and the lesson measures CPUs itself")
n = 64 if options.tiny else 8192 if device == "cuda" else 512
results = measure_products(n=n, device=device, seed=SEED)
fp32 = results[0]
for result in results:
    if isinstance(result, MatmulResult):
        ratio = result.tera_per_s / fp32.tera_per_s
        print(
            f"{result.name} n={n} on {device}: {result.tera_per_s:.4g} · 10¹² operations/s, {ratio:.2f} times FP32,"
            f" relative error {result.relative_error:.2g}"
        )
    else:
        print(f"{result.name}: not on this device ({result.reason})")
if options.record:
    keep_recording("01_data_types", "gpu", results, command=COMMAND, seed=SEED, device=device)
