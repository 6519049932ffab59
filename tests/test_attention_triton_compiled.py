"""The kernels compile for Hopper: without a GPU they cannot run, but Triton can make their machine code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qlab.attention_triton import backward, forward

def described(kernel, tiles, one):
    names, width = kernel.arg_names, tiles["WIDTH"]
    kinds = {name: "i32" for name in names}
    kinds |= {name: "*fp32" for name in ("log_sum_exp", "log2_sum_exp", "row_sum") if name in names}
    kinds |= {name: "fp32" for name in ("scale", "scale_log2") if name in names}
    blocks = {name: tiles["BLOCK_ROWS"] for name in ("q", "output", "grad_output", "dq")}
    blocks |= {name: tiles["BLOCK_COLUMNS"] for name in ("k", "v", "dk", "dv")}
    kinds |= {name: f"tensordesc<bf16[1,1,{rows},{width}]>" for name, rows in blocks.items() if name in names}
    constants = tiles | ({"GROUP": 2} if "GROUP" in names else {}) | {name: 1 for name in one if name in names}
    return ASTSource(fn=kernel.fn, signature=kinds | dict.fromkeys(constants, "constexpr"), constexprs=constants)

found = []
for kernel in (forward.forward_kernel, backward.keys_kernel, backward.queries_kernel):
    first = kernel.configs[0]
    all_one = ("queries", "keys", "heads", "group", "key_heads")
    for width, is_causal, one in ((64, False, ()), (128, True, ()), (64, True, all_one)):
        tiles = {"WIDTH": width, "CAUSAL": is_causal, **first.kwargs}
        options = {"num_warps": first.num_warps, "num_stages": first.num_stages}
        source = described(kernel, tiles, one)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        matrix, copies = (made.asm["ptx"].count(name) for name in ("wgmma.mma_async", "cp.async.bulk.tensor"))
        found.append([kernel.base_fn.__name__, width, len(one), matrix, copies, made.metadata.shared])
print(json.dumps(found))
"""
SHARED_BYTES = 232_448  # NVIDIA, CUDA C++ programming guide, compute capability 9.0: 227 KiB for one block


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_to_its_matrix_units_and_its_copy_engine(tmp_path: Path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == 9
    for kernel, width, ones, matrix, copies, shared in found:
        assert matrix > 0 and copies > 0, (kernel, width, ones)
        assert shared <= SHARED_BYTES, (kernel, width, ones)
