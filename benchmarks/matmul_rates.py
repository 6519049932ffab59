"""Matrix products in every data type of this machine, against FP32 on it; `--record` keeps a GPU's for lesson 01."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from _peer import arguments

from qlab.matmul import MatmulResult, measure_products
from qlab.measure import provenance

SEED = 0
RECORDING = Path(__file__).parents[1] / "lessons" / "recorded" / "01_data_types.json"

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
    RECORDING.parent.mkdir(exist_ok=True)
    content = {
        "provenance": asdict(provenance(seed=SEED, device=device)),
        "command": "python benchmarks/matmul_rates.py --record",
        "results": [asdict(result) for result in results],
    }
    RECORDING.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"recorded in {RECORDING}")
