"""What the probes share: one finding, and the ways in which they look at a machine."""

import importlib
import importlib.metadata
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "missing", "unknown"]
Ran = tuple[int, str, str]


@dataclass(frozen=True)
class Finding:
    """One thing about a machine, in one sentence."""

    topic: str
    status: Status
    sentence: str


def run_quietly(command: list[str], seconds: float) -> Ran:
    """Run `command` and return its status, stdout and stderr, or raise TimeoutExpired after `seconds`."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run(command, **pipes, text=True, errors="replace", timeout=seconds, check=False)
    return done.returncode, done.stdout, done.stderr


def read_text(path: str) -> str:
    """Read a file of the operating system."""
    return Path(path).read_text(encoding="utf-8", errors="replace")


def import_torch() -> Any:
    """Import PyTorch only when a probe asks, so that a broken one is a finding and no failure."""
    return importlib.import_module("torch")


@dataclass(frozen=True)
class Machine:
    """The ways in which the probes look at a machine, so that a test can describe another one."""

    torch: Callable[[], Any] = import_torch
    run: Callable[[list[str], float], Ran] = run_quietly
    read: Callable[[str], str] = read_text
    version: Callable[[str], str] = importlib.metadata.version


THIS_MACHINE = Machine()


def first_line(error: BaseException | Warning) -> str:
    """Name an exception by its type and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0].strip()}" if said else type(error).__name__
