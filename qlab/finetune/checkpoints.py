"""Checkpoints that are whole or not there: written aside, flushed, renamed; read only if every byte is as written."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qlab.finetune.libraries import SafetensorError, peft

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

PARTIAL, RECORD = ".partial", "run.json"
STATE, ADAPTER, OPTIMIZER = "state.json", "adapter_model.safetensors", "optimizer.pt"
KEPT = 2  # should the newest be damaged, removing it goes back to the one before


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder aside, and give it its name when all of it is on the disk.

    Errors:  FileExistsError if the name is taken, ValueError if the disk does not take it.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already, and is not overwritten")
    aside = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    with _writing(folder):
        aside.mkdir(parents=True)
        fill(aside)
        for path in (*aside.iterdir(), aside):
            _flush(path)
        aside.rename(folder)
        _flush(folder.parent)


def write_file(path: Path, text: str) -> None:
    """Write a file that is whole or not there, and the folders above it.

    Errors:  ValueError if the disk does not take it.
    """
    aside = path.with_name(path.name + PARTIAL)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        _flush(aside)
        aside.replace(path)
        _flush(path.parent)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # the system, torch and safetensors on a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be written ({reason}): make room there, or choose another --out") from None


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other processes out of `out` inside a `with`; a killed process holds nothing.

    Errors:  ValueError if another one is there.
    """
    if fcntl is None:
        yield
        return
    with (out / RECORD).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {out}: wait for it, or choose another --out") from None
        yield


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_adapter(model: nn.Module, folder: Path, base_name: str) -> None:
    """Write the adapters in PEFT's format, the same bytes for the same adapters."""
    model.peft_config["default"].base_model_name_or_path = base_name
    # embeddings are frozen; left to itself, peft would ask the Hub whether they were resized
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # a set, which each process orders in its own way
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def checkpoint_steps(out: Path) -> list[int]:
    """List the steps of the whole checkpoints in `out`, ascending."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in out.glob("checkpoint-*"))
    return sorted(int(name[1]) for name in found if name)


def checkpoint_folder(out: Path, step: int) -> Path:
    """Name the folder of a checkpoint."""
    return out / f"checkpoint-{step:06d}"


def save(out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, notes: dict[str, Any]) -> None:
    """Write the checkpoint of `step`, with the random state and `notes`, then remove those older than the last two."""

    def fill(folder: Path) -> None:
        save_adapter(model, folder, "")
        torch.save({"optimizer": optimizer.state_dict(), "random": random_state()}, folder / OPTIMIZER)
        hashes = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
        state = {"step": step, "notes": notes, "sha256": hashes}
        (folder / STATE).write_text(json.dumps(state | {"own": _hash_of(state)}, indent=1), encoding="utf-8")

    folder = checkpoint_folder(out, step)
    if not folder.exists():  # an interrupt may come right after it was written
        write_folder(folder, fill)
    for old in checkpoint_steps(out)[:-KEPT]:
        shutil.rmtree(checkpoint_folder(out, old))


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint's notes, and its tensors: adapters under their names, optimizer, random state.

    Errors:  ValueError that names the damaged file, and says what can be done.
    """
    remedy = f"remove {folder} to go on from the checkpoint before it, or from the start"
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        whole = state.pop("own") == _hash_of(state)
        hashes, notes = state["sha256"], state["notes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{folder / STATE} is missing or not what was written: {remedy}")
    for name in {ADAPTER, OPTIMIZER, *hashes}:
        path = folder / name
        if not path.is_file() or file_hash(path) != hashes.get(name):
            what = "is not what was written" if path.is_file() else "is missing"
            raise ValueError(f"{path} {what}, nothing is loaded from it: {remedy}")
    tensors = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    return notes, tensors | {"adapter": peft.utils.load_peft_weights(str(folder), device="cpu")}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Any]) -> None:
    """Put adapters, optimizer and random state back as they were.

    Errors:  ValueError if the adapters are not those of this model.
    """
    own = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    given = tensors["adapter"]
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in given.items()}:
        raise ValueError("the checkpoint's adapters have other names or shapes than this run's")
    peft.set_peft_model_state_dict(model, given)
    optimizer.load_state_dict(tensors["optimizer"])
    set_random_state(tensors["random"])


def random_state() -> dict[str, Tensor]:
    """Return the state of torch's global generators, which dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def set_random_state(states: dict[str, Tensor]) -> None:
    """Put the state of torch's global generators back."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _hash_of(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
