"""The 4-bit kernels and the fused Adam compile for Hopper as they are meant to; without a GPU they cannot run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

COMPILE = """
import json, re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from qlab.codebooks_triton.dequantize import tuned_dequantize
from qlab.codebooks_triton.products import tuned_few_tokens, tuned_one_token
from qlab.optimizers_triton.adam import tuned_kernel

LOADS = r"ld\\.global[.\\w]*\\.(v\\d\\.)?b(\\d+)"
POINTERS = {
    "packed": "u8", "codebook": "fp32", "scales": "fp32", "second_codebook": "fp32", "mean": "fp32", "x": "bf16",
    "y": "fp32", "out": "bf16", "parameter": "bf16", "gradient": "bf16",
}
for moment in ("first", "second"):
    POINTERS |= {f"{moment}_codes": "u8", f"{moment}_cells": "i32"}
    POINTERS |= {f"{moment}_{name}": "fp32" for name in ("absmax", "levels")}
FLOATS = "step_size root_correction old_first new_first old_second new_second eps kept coupled_decay".split()

def made(tuned, constants, **changed):
    first = tuned.configs[0]
    constants = constants | first.kwargs
    kinds = {name: "i32" for name in tuned.arg_names} | dict.fromkeys(FLOATS, "fp32")
    kinds |= {name: "*" + kind for name, kind in (POINTERS | changed).items()} | dict.fromkeys(constants, "constexpr")
    kinds = {name: kinds[name] for name in tuned.arg_names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(kinds.values()) if kind != "constexpr"}
    source = ASTSource(fn=tuned.fn, signature=kinds, constexprs=constants, attrs=aligned)
    options = {"num_warps": first.num_warps, "num_stages": first.num_stages}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    return {
        "wide loads": len(re.findall(r"ld\\.global[.\\w]*\\.(v\\d\\.b32|v\\d\\.b64|b32|b64)", ptx)),
        "byte loads": len(re.findall(r"ld\\.global[.\\w]*\\.b8", ptx)),
        "wide stores": len(re.findall(r"st\\.global[.\\w]*\\.v4\\.b32", ptx)),
        "matrix": ptx.count("wgmma.mma_async"),
        "local": ptx.count("ld.local") + ptx.count("st.local"),
    }

found = {}
for second_size, absmax in ((0, "fp32"), (256, "u8")):
    sizes = {"SIZE": 64, "SECOND_SIZE": second_size}
    found[f"dequantize {second_size}"] = made(tuned_dequantize, sizes, absmax=absmax)
    found[f"one token {second_size}"] = made(tuned_one_token, sizes, absmax=absmax, y="bf16")
    few = sizes | {"TOKENS": 16, "ROWS": 64}
    found[f"few tokens {second_size}"] = made(tuned_few_tokens, few, absmax=absmax, codebook="bf16")
adam = {"SIZE": 256, "PADDED": 256, "LIFT": 2.0**24, "TINY": 2.0**-126}
found["adam"] = made(tuned_kernel, adam)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_with_wide_accesses(tmp_path: Path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == 7
    for name, counts in found.items():
        assert counts["local"] == 0, name
        assert counts["wide loads"] > 0, name
        of_absmaxes = 4 if name.endswith("256") else 0  # their codes are a byte, and a thread has few blocks
        assert counts["byte loads"] <= of_absmaxes, name
        assert (counts["matrix"] > 0) == name.startswith("few"), name
        assert counts["wide stores"] > 0 or name.startswith("one"), name
