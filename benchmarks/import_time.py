"""The time `import qlab` and its lower floors take beyond torch, in a fresh process, against importing torch."""

import statistics
import subprocess
import sys

from _peer import arguments, report

LIGHT = "formats", "packing", "summation", "microscaling", "measure", "matmul", "memory", "model", "quantize"
LIGHT += "codebooks", "calibrate", "outliers", "scoring", "damage", "qat", "loss_scaling", "checkpointing", "attention"
CODE = f"""
import time
start = time.perf_counter()
import qlab
package = time.perf_counter()
import torch
torch_done = time.perf_counter()
import {", ".join(f"qlab.{module}" for module in LIGHT)}
print(package - start, torch_done - package, time.perf_counter() - torch_done)
"""

options = arguments(__doc__)
runs = []
for _ in range(1 if options.tiny else 7):
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    runs.append([1e3 * float(seconds) for seconds in done.stdout.split()])
package, torch_alone, floors = (statistics.median(column) for column in zip(*runs, strict=True))
report("import qlab", ours=package, peer=torch_alone, peer_name="import torch", target="at most 200 ms with all floors")
report("floors 0 to 3 beyond torch", ours=floors, peer=torch_alone, peer_name="import torch", target="at most 200 ms")
