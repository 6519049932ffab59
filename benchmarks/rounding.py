"""Rounding FP32 to 8- and 4-bit floats and back, on one thread, against ml_dtypes' encode and decode."""

import ml_dtypes
import numpy as np
import torch
from _peer import arguments, medians_ms, report

from qlab.formats import E2M1, E4M3, E5M2, decode, encode, round_to_format

PEERS = {E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2, E2M1: ml_dtypes.float4_e2m1fn}

options = arguments(__doc__)
count, repeats = (10_000, 1) if options.tiny else (10_000_000, 9)
x = (
    torch.randn(count, generator=torch.Generator().manual_seed(0)) * 3
)  # in range of every format but the rare E2M1 tail
array = x.numpy()
for fmt, peer in PEERS.items():
    expected = array.astype(peer).astype(np.float32)
    assert np.array_equal(round_to_format(x, fmt, saturate=True).numpy(), expected), fmt.name
    assert np.array_equal(decode(encode(x, fmt, saturate=True), fmt).numpy(), expected), fmt.name
    through_codes, at_once, theirs = medians_ms(
        lambda fmt=fmt: decode(encode(x, fmt, saturate=True), fmt),
        lambda fmt=fmt: round_to_format(x, fmt, saturate=True),
        lambda peer=peer: array.astype(peer).astype(np.float32),
        repeats=repeats,
    )
    name = f"{count:,} values to {fmt.name} and back"
    target = {"peer": theirs, "peer_name": "ml_dtypes", "target": "2"}
    report(f"{name}, through codes", ours=through_codes, **target)
    report(f"{name}, rounded at once", ours=at_once, **target)
