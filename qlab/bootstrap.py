"""Make `.venv` and run one target: `python3 -m qlab.bootstrap lab|test|check|test-gpu|test-extra|bench|fuzz`.

Only the standard library and the syntax of Python 3.6, so that an old Python gets a sentence instead of a traceback.
"""

import errno
import functools
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

OLDEST_PYTHON = (3, 11)
ROOM_BYTES = 4 * 10**9  # the CPU environment with tests takes 1.8 GB, and pip unpacks beside it
STAMP = "qlab-stamp.json"
PIP_ERRORS = "qlab-pip-errors.txt"
TARGETS = ("lab", "test", "check", "test-gpu", "test-extra", "bench", "fuzz")
ALWAYS = {"onnx"}  # lesson 04 runs ONNX Runtime; asked for by every target, so that one environment serves all
FAST = "not slow and not browser and not grading"
PYTEST = {"test": ("-n", "2", "--dist", "loadgroup"), "check": ("-m", FAST)}
PYTEST.update({"test-" + marker: ("-m", marker) for marker in ("gpu", "extra")})
PYTHON_IN_VENV = "Scripts/python.exe" if os.name == "nt" else "bin/python"
NETWORK_SIGNS = ("Retrying", "NewConnectionError", "NameResolution", "Max retries", "timed out", "ProxyError")
say = functools.partial(print, flush=True)  # at once, so that a line stands before the next program's output


class Stop(Exception):
    """A failure that one sentence explains."""


def check_python(version: tuple, target: str) -> None:
    """Stop when this Python is too old or cannot make virtual environments."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        found = ".".join(str(number) for number in version[:3])
        again = f"make {target} PYTHON=python3.12" if os.name != "nt" else f"py -3.12 -m qlab.bootstrap {target}"
        raise Stop(f"qlab needs Python 3.11 or newer, this is {found}: install a newer one, then run: {again}")
    if importlib.util.find_spec("ensurepip") is None:
        raise Stop("this Python cannot make virtual environments: on Debian or Ubuntu run: apt install python3-venv")


def check_disk(root: Path, free_bytes: int) -> None:
    """Stop when even the environment with PyTorch's CPU build cannot fit."""
    if free_bytes < ROOM_BYTES:
        free, needed = f"{free_bytes / 1e9:.1f} GB", f"{ROOM_BYTES / 1e9:.0f} GB"
        raise Stop(f"the environment needs {needed} of disk and {root} has {free} free: make room, then run it again")


def port_is_free(port: int) -> bool:
    """Tell whether a server can listen on `port` of this machine's loopback addresses."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as client:
                client.settimeout(0.5)
                if client.connect_ex((address, port)) == 0:
                    return False
            with socket.socket(family, socket.SOCK_STREAM) as server:
                if os.name != "nt":  # a port that a stopped server left a moment ago is free, as Jupyter sees it
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False  # any other error: this machine lacks the address family
    return True


def port_from(arguments: "list[str]") -> int:
    """Read `--port N`, the one option of the target lab, and stop when something listens there."""
    words = " ".join(arguments).replace("=", " ").split() or ["--port", "8888"]
    if len(words) != 2 or words[0] != "--port":
        raise Stop(f"lab takes only --port NUMBER, got: {' '.join(arguments)}")
    if not words[1].isdecimal() or not 1024 <= int(words[1]) <= 65535:
        raise Stop(f"port must be a whole number from 1024 to 65535, got {words[1]}")
    port = int(words[1])
    if not port_is_free(port):
        again = "make lab PORT={}" if os.name != "nt" else "py -m qlab.bootstrap lab --port {}"
        again = again.format(port + 1 if port < 65535 else 8888)
        raise Stop(f"port {port} is taken: stop what listens there, or run: {again}")
    return port


def fingerprint(root: Path, asked: "set[str]", kept: "set[str]") -> dict:
    """Describe all that the content of `.venv` follows from, the extras `asked` for and those `kept` included."""
    import tomllib  # noqa: PLC0415 - unknown to the old Pythons that must still parse this file

    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    known = set(settings["project"].get("optional-dependencies", {}))
    if asked - known:
        raise Stop(f"EXTRAS may name {', '.join(sorted(known))}, got: {' '.join(sorted(asked - known))}")
    required = json.dumps([settings["project"], settings["build-system"]], sort_keys=True)
    pins = (root / "constraints.txt").read_text(encoding="utf-8")
    digest = hashlib.sha256((required + pins).encode()).hexdigest()
    python, extras = "{}.{}".format(*sys.version_info), sorted(asked | kept & known)
    return {"state": "ready", "python": python, "root": str(root), "packages": digest, "extras": extras}


def read_stamp(venv: Path) -> dict:
    """Read what the last run left in `.venv`: nothing, `making` after an interruption, or what it made."""
    try:
        return json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:  # torn in the middle of a write
        return {"state": "making"}


def write_stamp(venv: Path, stamp: dict) -> None:
    """Say in `.venv` how far it is."""
    (venv / STAMP).write_text(json.dumps(stamp), encoding="utf-8")


def run_shown(command: "list[str]", root: Path) -> "tuple[int, str]":
    """Run `command` with its progress on the screen and return its status and what it wrote to stderr."""
    complaints = []
    environment = dict(os.environ, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    settings = {"cwd": str(root), "env": environment, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, **settings) as process:
        try:
            for line in process.stderr or ():
                if line.startswith("WARNING: Retrying") and "WARNING: Retrying" not in "".join(complaints):
                    say("      a package index does not answer: pip tries again")
                complaints.append(line)
        except BaseException:
            process.terminate()
            raise
    return process.returncode, "".join(complaints)


def explain(complaints: str) -> str:
    """Turn what pip wrote to stderr into one sentence that says what to do."""
    errors = [line.split("ERROR:", 1)[1].strip() for line in complaints.splitlines() if "ERROR:" in line]
    if "No space left" in complaints:
        return "the disk ran full during the installation: make room, then run the same command again"
    if any(sign in complaints for sign in NETWORK_SIGNS):
        return "pip reached no package index: check the network, the proxy and `pip config list`, then run it again"
    missing = [error.split()[-1] for error in errors if error.startswith("No matching distribution found for")]
    if missing:
        here = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
        return f"no package index that pip asks has {missing[0]} for {here}: try another Python from 3.11 to 3.14"
    return f"pip failed ({errors[-1] if errors else 'no reason given'}): all it said is in .venv/{PIP_ERRORS}"


def prepare_venv(root: Path, wanted: dict, run=run_shown) -> None:
    """Leave a `.venv` with a working pip, made anew when it is half made, moved or of another Python."""
    venv, stamp = root / ".venv", read_stamp(root / ".venv")
    empty = not venv.exists() or not any(venv.iterdir())
    if not empty and (not stamp or all(stamp.get(key) == wanted[key] for key in ("state", "python", "root"))):
        works = f"import pip, sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
        if (venv / PYTHON_IN_VENV).exists() and run([str(venv / PYTHON_IN_VENV), "-c", works], root)[0] == 0:
            return
        if not stamp:  # somebody made it by hand: use it or leave it, never delete it
            raise Stop(".venv is no working environment of Python 3.11 or newer: move it away, then run it again")
    say("[2/3] making .venv" if empty else "[2/3] making .venv anew: it was half made, moved or of another Python")
    if venv.exists():
        shutil.rmtree(str(venv))
    venv.mkdir()
    write_stamp(venv, dict(wanted, state="making"))
    base = getattr(sys, "_base_executable", None) or sys.executable  # .venv itself may be the active environment
    status, complaints = run([base, "-m", "venv", str(venv)], root)
    if status != 0:
        raise Stop(f"`python -m venv` failed: {' '.join(complaints.split()) or 'it gave no reason'}")


def install(root: Path, wanted: dict, run=run_shown) -> None:
    """Let pip install the pinned packages and the checkout itself, with pip's own settings and progress."""
    venv, before = root / ".venv", read_stamp(root / ".venv")
    write_stamp(venv, dict(wanted, state="making"))
    place = ".[{}]".format(",".join(wanted["extras"])) if wanted["extras"] else "."
    pip_install = [str(venv / PYTHON_IN_VENV), "-m", "pip", "install", "-c", "constraints.txt"]
    status, complaints = run([*pip_install, "-e", place], root)
    if status != 0:
        write_stamp(venv, before)  # pip gave up in good order: what worked before still does
        (venv / PIP_ERRORS).write_text(complaints, encoding="utf-8")
        raise Stop(explain(complaints))
    write_stamp(venv, wanted)


def prepare(root: Path, extras: "set[str]", run=run_shown) -> None:
    """Bring `.venv` to the pinned packages, or return at once when the last run did.

    Errors:  Stop, with the sentence to show, when the disk, pip or the network does not allow it.
    """
    venv = root / ".venv"
    stamp = read_stamp(venv)
    wanted = fingerprint(root, extras, set(stamp.get("extras", ())))
    if stamp == wanted and (venv / PYTHON_IN_VENV).exists():
        return
    started = time.monotonic()
    free_bytes = shutil.disk_usage(str(root)).free
    say(f"[1/3] Python {platform.python_version()}, {free_bytes / 1e9:.0f} GB of disk free")
    check_disk(root, free_bytes)
    prepare_venv(root, wanted, run)
    say("[3/3] installing the pinned packages: minutes the first time, PyTorch is the large one")
    install(root, wanted, run)
    say(f"      the environment is ready after {time.monotonic() - started:.0f} s")


def hand_over(command: "list[str]", root: Path) -> int:
    """Become `command`, so that Ctrl-C and the exit status are its own."""
    os.chdir(str(root))
    if os.name != "nt":
        os.execv(command[0], command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows cannot replace a process: leave Ctrl-C to the child
    return subprocess.call(command)


def run_benchmarks(root: Path, arguments: "list[str]", call=subprocess.call) -> int:
    """Run every script of `benchmarks/` one after another, tiny when `TINY=1` is set."""
    if os.environ.get("TINY", "0") not in ("", "0"):
        arguments = ["--tiny", *arguments]
    scripts = [path for path in sorted((root / "benchmarks").glob("*.py")) if not path.name.startswith("_")]
    if not scripts:
        raise Stop("there is nothing to run in benchmarks/")
    failed = []
    for script in scripts:
        say(f"== {script.name}")
        if call([str(root / ".venv" / PYTHON_IN_VENV), str(script), *arguments], cwd=str(root)) != 0:
            failed.append(script.name)
    if failed:
        raise Stop(f"{len(failed)} of {len(scripts)} benchmarks failed: {', '.join(failed)}")
    return 0


def start(target: str, arguments: "list[str]", root: Path) -> int:
    """Check the machine, prepare the environment and run one target."""
    if target not in TARGETS:
        raise Stop(f"unknown target {target!r}: use one of {', '.join(TARGETS)}")
    check_python(sys.version_info, target)
    port = port_from(arguments) if target == "lab" else 0
    extras = ALWAYS | set(os.environ.get("EXTRAS", "").replace(",", " ").split())
    prepare(root, extras | {"lab": set(), "test-extra": {"test", "litert"}}.get(target, {"test"}))
    python = str(root / ".venv" / PYTHON_IN_VENV)
    if target == "lab":
        return hand_over([python, "-m", "qlab", "lab", "--port", str(port)], root)
    if target == "bench":
        return run_benchmarks(root, arguments)
    if target == "fuzz":
        return hand_over([python, "-m", "tests.grading.fuzz", *arguments], root)
    return hand_over([python, "-m", "pytest", *PYTEST[target], *arguments], root)


def main(arguments: "list[str]") -> int:
    """Run the command line and turn every failure into one sentence and exit status 1."""
    try:
        return start(arguments[0] if arguments else "", arguments[1:], Path(__file__).resolve().parent.parent)
    except (Stop, OSError, ValueError) as error:
        print(f"qlab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
