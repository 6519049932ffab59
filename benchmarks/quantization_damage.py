"""Bits per byte that every scheme of weight quantization costs the course model; `--record` keeps them for lesson 03.

The peer is the model as it was, window by window. The embedding, which is also the head, is left alone.
"""

import sys

from _peer import arguments, keep_recording

from qlab.corpus import load_corpus
from qlab.damage import all_schemes, damage
from qlab.model import load_course_model

SEQUENCE = 512
COMMAND = "python benchmarks/quantization_damage.py --record"

options = arguments(__doc__, record=True)
if options.record and options.tiny:
    sys.exit("nothing recorded: --tiny only shows that the benchmark runs")
windows = 2 if options.tiny else 64
schemes = all_schemes()[::20] if options.tiny else all_schemes()
model = load_course_model()
found = damage(
    model, schemes, load_corpus().validation[: windows * SEQUENCE + 1], sequence=SEQUENCE, keep=(model.head,)
)
for one in found:
    print(
        f"{one.family}, {one.bits} bits: {one.bits_per_weight:.3f} bits per weight,"
        f" {one.bits_per_byte:+.4f} ± {one.standard_error:.4f} bits per byte"
    )
if options.record:
    keep_recording("03_quantization", "damage", found, command=COMMAND, windows=windows)
