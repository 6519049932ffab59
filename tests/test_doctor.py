"""The preflight on machines that are described here: it never raises, and says unknown where it does not know."""

import importlib.metadata
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from qlab import doctor
from qlab.doctor.gpu import FIRST_CAPABILITY, tensor_cores
from qlab.doctor.machine import THIS_MACHINE, Finding, Machine, run_quietly

XEON = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8\n"
DRIVER = {"name": "NVIDIA Test GPU", "driver_version": "580.95.05"}
VERSIONS = {"triton": "3.7.1", "jupyterlab": "4.6.6", "ipywidgets": "8.1.9"}
VERSIONS |= {"torchao": "0.18.0", "onnxruntime": "1.32.0", "ai-edge-litert": "2.3.0"}


def fake_torch(name: str = "", capability: tuple[int, int] = (0, 0), *, hip: str | None = None, count: int = 1) -> Any:
    """Describe PyTorch on a machine with the named GPU, or with none."""
    cuda = SimpleNamespace(
        is_available=lambda: bool(name),
        device_count=lambda: count,
        get_device_name=lambda index: name,
        get_device_capability=lambda index: capability,
        get_device_properties=lambda index: SimpleNamespace(total_memory=80 * 2**30),
    )
    backends = SimpleNamespace(
        cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX512"), mps=SimpleNamespace(is_available=lambda: False)
    )
    version = SimpleNamespace(cuda="13.0" if name and not hip else None, hip=hip)
    xpu = SimpleNamespace(is_available=lambda: False)
    return SimpleNamespace(__version__="2.13.0", version=version, cuda=cuda, backends=backends, xpu=xpu)


def ran(command: list[str], *, smi: bool, output: str = '["0.50.2", "CUDA", "CudaBNBNativeLibrary"]') -> tuple:
    """Answer for nvidia-smi and for the import of bitsandbytes."""
    if command[0] != "nvidia-smi":
        return 0, f"a line before\n{output}\n", "noise on stderr\n"
    if not smi:
        raise FileNotFoundError(2, "No such file or directory", "nvidia-smi")
    return 0, DRIVER[command[1].removeprefix("--query-gpu=")] + "\n", ""


def machine(torch: Any, **looks: Callable) -> Machine:
    """Describe a machine by its PyTorch; by default nvidia-smi agrees with it and all else is installed."""
    smi = bool(torch.version.cuda)
    looks.setdefault("run", lambda command, seconds: ran(command, smi=smi))
    looks.setdefault("read", lambda path: XEON if path == "/proc/cpuinfo" else "max\n")
    looks.setdefault("version", VERSIONS.__getitem__)
    return Machine(torch=lambda: torch, **looks)


def found(described: Machine) -> dict[str, Finding]:
    return {finding.topic: finding for finding in doctor.findings(described)}


def data_types(described: Machine) -> dict[str, str]:
    by_topic = found(described)
    return {name: by_topic[f"{name} tensor cores"].status for name in FIRST_CAPABILITY}


def raising(error: BaseException) -> Callable:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def test_without_a_gpu_every_data_type_is_shown_from_a_recording():
    described = found(machine(fake_torch()))
    assert described["GPU"] == Finding("GPU", "missing", "PyTorch finds no CUDA GPU: GPU cells show a recorded run")
    assert described["NVIDIA driver"].status == "missing"
    assert set(data_types(machine(fake_torch())).values()) == {"missing"}
    assert "recorded run" in described["FP8 tensor cores"].sentence
    assert "interpreter" in described["Triton"].sentence


def test_an_h100_has_all_but_fp4():
    described = machine(fake_torch("NVIDIA H100 80GB HBM3", (9, 0)))
    assert data_types(described) == dict.fromkeys(FIRST_CAPABILITY, "ok") | {"FP4": "missing"}
    assert found(described)["GPU"].sentence == "NVIDIA H100 80GB HBM3, 80.0 GiB, compute capability 9.0"
    assert found(described)["NVIDIA driver"].sentence == "version 580.95.05"
    assert "compiles" in found(described)["Triton"].sentence
    assert "GPU cells run here" in found(described)["FP8 tensor cores"].sentence


def test_a_t4_has_fp16_and_int8():
    described = machine(fake_torch("Tesla T4", (7, 5)))
    assert [name for name, status in data_types(described).items() if status == "ok"] == ["FP16", "INT8"]
    assert "needs compute capability 8.0 and this GPU has 7.5" in found(described)["BF16 tensor cores"].sentence
    assert found(described)["Triton"].status == "unknown"


def test_blackwell_has_every_data_type():
    assert set(data_types(machine(fake_torch("NVIDIA B200", (10, 0)))).values()) == {"ok"}
    assert set(data_types(machine(fake_torch("NVIDIA GeForce RTX 5090", (12, 0)))).values()) == {"ok"}


@pytest.mark.parametrize(
    ("capability", "takes"),
    [
        ((6, 1), set()),
        ((7, 0), {"FP16"}),
        ((8, 0), {"FP16", "INT8", "TF32", "BF16"}),
        ((8, 6), {"FP16", "INT8", "TF32", "BF16"}),
        ((8, 9), {"FP16", "INT8", "TF32", "BF16", "FP8"}),
        ((11, 0), set(FIRST_CAPABILITY)),
    ],
)
def test_the_table_of_tensor_cores(capability: tuple[int, int], takes: set[str]):
    status = {name: tensor_cores(name, capability=capability, name="GPU")[0] for name in FIRST_CAPABILITY}
    assert {name for name, value in status.items() if value == "ok"} == takes


def test_a_capability_says_nothing_where_the_table_does_not_reach():
    assert set(data_types(machine(fake_torch("NVIDIA Next", (13, 0)))).values()) == {"unknown"}
    assert set(data_types(machine(fake_torch("NVIDIA GeForce GTX 1650", (7, 5)))).values()) == {"missing"}
    amd = found(machine(fake_torch("AMD Instinct MI300X", (9, 4), hip="7.0")))
    assert amd["GPU"].status == amd["FP8 tensor cores"].status == amd["Triton"].status == "unknown"
    assert "AMD's GPU (ROCm)" in amd["Other accelerators"].sentence


def test_several_gpus_are_counted():
    assert "the first of 8" in found(machine(fake_torch("NVIDIA H200", (9, 0), count=8)))["GPU"].sentence


def test_a_gpu_that_pytorch_cannot_use_is_named():
    cpu_build = machine(fake_torch(), run=lambda command, seconds: ran(command, smi=True))
    assert "NVIDIA Test GPU is there and this PyTorch is built without CUDA" in found(cpu_build)["GPU"].sentence

    torch = fake_torch()
    torch.version.cuda = "13.0"
    torch.cuda.is_available = lambda: warnings.warn("driver too old (found version 11040)", stacklevel=1) or False
    sentence = found(machine(torch))["GPU"].sentence
    assert "NVIDIA Test GPU is there and PyTorch cannot use it (UserWarning: driver too old" in sentence


def test_broken_cuda_is_unknown_with_its_reason():
    torch = fake_torch("NVIDIA H100", (9, 0))
    torch.cuda.is_available = raising(RuntimeError("CUDA driver initialization failed\nlong trace"))
    described = found(machine(torch))
    reason = "could not be found out (RuntimeError: CUDA driver initialization failed)"
    assert described["GPU"] == Finding("GPU", "unknown", reason)
    assert described["FP8 tensor cores"] == Finding("FP8 tensor cores", "unknown", reason)
    assert described["bitsandbytes"].status == "ok", "the other probes go on"


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'torch'"), OSError("libtorch.so is missing")])
def test_a_machine_without_a_working_pytorch(error: Exception):
    broken = Machine(torch=raising(error), run=raising(PermissionError(13, "no")), version=VERSIONS.__getitem__)
    described = found(broken)
    assert described["PyTorch"].status == ("missing" if isinstance(error, ModuleNotFoundError) else "unknown")
    assert described["FP8 tensor cores"].status == "unknown"
    assert described["bitsandbytes"].status == "unknown"
    assert described["Jupyter"].status == "ok"


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ((0, 'noise\n["0.50.2", "CPU", "BNBNativeLibrary"]\n', "noise"), "ok", "0.50.2 with its CPU library"),
        ((0, '["0.50.2", "CUDA", "ErrorHandlerMockBNBNativeLibrary"]', ""), "missing", "CUDA library does not load"),
        ((-11, "", ""), "missing", "crashes Python (SIGSEGV)"),
        ((1, "", "Traceback\nModuleNotFoundError: No module named 'bitsandbytes'\n"), "missing", "No module named"),
        ((3, "", ""), "missing", "exit status 3"),
        ((0, "no JSON", ""), "unknown", "JSONDecodeError"),
        ((0, "", ""), "unknown", "IndexError"),
    ],
)
def test_bitsandbytes_is_imported_at_arms_length(answer: tuple, status: str, words: str):
    finding = found(machine(fake_torch(), run=lambda command, seconds: answer))["bitsandbytes"]
    assert finding.status == status
    assert words in finding.sentence


def test_a_probe_that_hangs_is_unknown():
    described = found(machine(fake_torch(), run=raising(subprocess.TimeoutExpired("python", 60.0))))
    assert described["bitsandbytes"] == Finding("bitsandbytes", "unknown", "its import did not end within 60 s")
    assert described["NVIDIA driver"].status == "unknown"


def test_a_real_process_is_stopped_at_its_limit():
    with pytest.raises(subprocess.TimeoutExpired):
        run_quietly([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)
    program = "import sys; print('here'); sys.stderr.write('there'); sys.exit(3)"
    assert run_quietly([sys.executable, "-c", program], 30.0) == (3, "here\n", "there")


@pytest.mark.parametrize(
    ("listed", "status"), [(XEON, "ok"), ("flags : fpu sse2\n", "missing"), ("cpu : POWER9\n", "unknown")]
)
def test_cpu_instructions_are_read_and_not_guessed(listed: str, status: str):
    assert found(machine(fake_torch(), read=lambda path: listed))["CPU low precision"].status == status


def test_a_system_without_proc_is_unknown():
    described = found(machine(fake_torch(), read=raising(FileNotFoundError(2, "No such file", "/proc/cpuinfo"))))
    assert described["CPU low precision"].status == "unknown"
    assert described["Memory"].status == "ok"


def test_a_container_limit_is_said():
    described = found(machine(fake_torch(), read=lambda path: "1073741824\n"))
    assert "of which this container may use 1.0 GiB" in described["Memory"].sentence


def test_what_is_not_installed_is_named():
    nothing = raising(importlib.metadata.PackageNotFoundError("jupyterlab"))
    described = found(machine(fake_torch(), version=nothing))
    assert described["Jupyter"].status == described["Triton"].status == "missing"


def test_the_interpreter_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET=1" in found(machine(fake_torch("NVIDIA H100", (9, 0))))["Triton"].sentence


def test_apple_and_intel_are_said_honestly():
    torch = fake_torch()
    torch.backends.mps.is_available = torch.xpu.is_available = lambda: True
    other = found(machine(torch))["Other accelerators"]
    assert other.status == "ok"
    assert "Apple's GPU (MPS) and Intel's GPU (XPU)" in other.sentence
    assert "written for NVIDIA's" in other.sentence


def test_this_machine_gets_an_answer_to_every_question():
    here = Machine(run=lambda command, seconds: ran(command, smi=False))
    topics = [finding.topic for finding in doctor.findings(here)]
    assert topics == [topic for topic, _ in doctor.PROBES]


@pytest.mark.slow
def test_bitsandbytes_on_this_machine_is_found_out():
    probe = dict(doctor.PROBES)["bitsandbytes"]
    assert probe(THIS_MACHINE).status in {"ok", "missing"}


def test_the_text_is_lines_that_fit_a_terminal():
    lines = repr(doctor.report(machine(fake_torch()))).splitlines()
    assert len(lines) >= len(doctor.PROBES)
    assert max(map(len, lines)) <= doctor.TEXT_WIDTH
    assert any(line.startswith("– missing  GPU ") for line in lines)
    assert doctor.as_text(()) == ""


def test_the_table_says_status_in_words_and_escapes_what_it_shows():
    page = doctor.report(machine(fake_torch("<b>GPU</b> & Sons", (9, 0))))._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;GPU&lt;/b&gt; &amp; Sons" in page
    assert page.count("<tr>") == 1 + len(doctor.PROBES)
    for status in ("ok", "missing"):
        assert f"</span> {status}</td>" in page
    assert "currentColor" in page


def test_runtimes_of_single_pages_are_named_with_what_brings_those_that_are_missing():
    def version(package: str) -> str:
        if package == "ai-edge-litert":
            raise importlib.metadata.PackageNotFoundError(package)
        return VERSIONS[package]

    finding = found(machine(fake_torch(), version=version))["Other runtimes"]
    assert finding.status == "ok"
    assert finding.sentence == "torchao 0.18.0, ONNX Runtime 1.32.0; not installed: LiteRT (`make lab EXTRAS=litert`)"
    none = found(machine(fake_torch(), version=raising(importlib.metadata.PackageNotFoundError("x"))))["Other runtimes"]
    assert none.status == "missing" and "torchao (`make lab`)" in none.sentence
