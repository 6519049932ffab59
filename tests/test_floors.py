"""The floors of the house: imports go down only, and the lower floors stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qlab

PACKAGE = Path(qlab.__file__).parent
FLOORS = {
    0: {
        "bootstrap",
        "config",
        "corpus",
        "course",
        "digits",
        "energy",
        "formats",
        "measure",
        "packing",
        "recipes",
        "roofline",
        "summation",
    },
    1: {
        "activations",
        "allocator",
        "attention",
        "attention_triton",
        "checkpointing",
        "loss_scaling",
        "matmul",
        "memory",
        "microscaling",
        "model",
        "quantize",
    },
    2: {
        "budget",
        "calibrate",
        "codebooks",
        "codebooks_triton",
        "distill",
        "optimizers_triton",
        "quantized_products",
        "scoring",
        "soups",
        "sparsity",
    },
    3: {
        "bill",
        "damage",
        "lora",
        "optimizers",
        "outliers",
        "precision_runs",
        "precision_timing",
        "qat",
        "train_course_model",
    },
    4: {"adapter_runs", "checks", "deploy", "optimizer_runs", "plots", "smaller_runs"},
    5: {"doctor", "finetune", "labs", "page", "widgets"},
    6: {"grading", "ledger"},
    7: {"cli"},
    8: {"__main__"},
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}
ROOMS_OF_THEIR_OWN = {  # the only rooms of the lower floors that may import such a library
    "attention_triton": "triton",
    "codebooks_triton": "triton",
    "optimizers_triton": "triton",
}
LIGHT = sorted(module for floor in range(4) for module in FLOORS[floor] - ROOMS_OF_THEIR_OWN.keys())
NOT_BELOW_FLOOR_4 = (
    "matplotlib",
    "ipywidgets",
    "IPython",
    "nbgrader",
    "bitsandbytes",
    "torchao",
    "onnx",
    "onnxruntime",
    "peft",
    "sklearn",
    "transformers",
    *set(ROOMS_OF_THEIR_OWN.values()),
)
SECONDS_BEYOND_TORCH = 0.2


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "qlab":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qlab."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("qlab.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor"
    for imported in rooms_imported(path) - {room}:
        assert FLOOR_OF[imported] < FLOOR_OF[room], f"{room} on floor {FLOOR_OF[room]} imports {imported}"


def test_the_package_itself_imports_nothing():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_the_lower_floors_are_light():
    code = f"""
import os, sys, time, torch

def seconds(room):
    reader, writer = os.pipe()
    if os.fork() == 0:
        start = time.process_time()
        __import__("qlab." + room)
        os.write(writer, str(time.process_time() - start).encode())
        os._exit(0)
    os.wait()
    return float(os.read(reader, 32))

before = set(sys.modules)
dearest = max((seconds(room), room) for room in {LIGHT}) if hasattr(os, "fork") else (0.0, "none")
for room in {LIGHT}:
    __import__("qlab." + room)
heavy = [name for name in {NOT_BELOW_FLOOR_4} if name in sys.modules and name not in before]
print(*dearest, torch.cuda.is_initialized(), heavy)
"""
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    results = [run.stdout.strip().split(" ", 2) for run in found]
    assert {rest for _, _, rest in results} == {"False []"}
    seconds, room = min((float(seconds), room) for seconds, room, _ in results)
    assert seconds <= SECONDS_BEYOND_TORCH, f"importing qlab.{room} takes {seconds:.3f} s beyond torch"
