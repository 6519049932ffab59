"""LLM.int8()'s decomposition against BF16 on the same layer, in time and bytes; `--record` keeps a GPU's."""

import sys

import torch
from _peer import arguments, keep_recording

from qlab.outliers.timing import measure_decomposition

SEED = 0
COMMAND = "python benchmarks/outlier_decomposition.py --record"

options = arguments(__doc__, record=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
if options.record and device == "cpu":
    sys.exit("nothing recorded: this machine has no CUDA GPU, and the lesson measures CPUs itself")
widths = (64,) if options.tiny else (1024, 2048, 4096, 8192) if device == "cuda" else (256, 1024)
tokens, repeats = (32, 1) if options.tiny else (512, 20)
found = measure_decomposition(widths=widths, tokens=tokens, device=device, seed=SEED, repeats=repeats)
for one in found:
    ratio = one.bf16_ms / one.decomposition_ms
    print(
        f"{one.width}² with {one.tokens} tokens on {device}: decomposition {one.decomposition_ms:.4g} ms,"
        f" BF16 {one.bf16_ms:.4g} ms: {ratio:.2f} times as fast; peak {one.decomposition_bytes:,} bytes,"
        f" BF16 {one.bf16_bytes:,}; relative error {one.relative_error:.2g}"
    )
if options.record:
    keep_recording("05_outliers", "gpu", found, command=COMMAND, seed=SEED, device=device)
