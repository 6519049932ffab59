"""Adapters on disk: a few megabytes beside a model of gigabytes, in the layout of PEFT."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qlab.lora.adapted import AdaptedLinear
from qlab.lora.inject import adapted_layers

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
ALPHAS = "qlab.alpha"  # in the metadata of the tensors: one file tells all that ours needs
STARTS_THAT_LEAVE_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapters' matrices by the names they have in `model.state_dict()`, and nothing else.

    Errors:  ValueError if the model has no adapted layer.
    """
    layers = adapted_layers(model)
    return {
        f"{name}.{part}".lstrip("."): getattr(layer, part).detach() for name, layer in layers.items() for part in PARTS
    }


def save_adapters(
    model: nn.Module, path: str | os.PathLike, *, base_model: str | None = None, task_type: str | None = None
) -> int:
    """Write the adapters into the folder `path` as PEFT does, and return the bytes of their tensors' file.

    Each file is written beside its place and then moved there: one that was there stays whole if writing fails.
    `base_model` and `task_type` ("CAUSAL_LM") are what PEFT's own loaders look for.
    Errors:  ValueError if the model has no adapted layer; OSError if the folder cannot be written.
    """
    layers, folder = adapted_layers(model), Path(path)
    tensors = {
        f"{PREFIX}{name}.{there}": getattr(layer, here).detach().contiguous()
        for name, layer in layers.items()
        for here, there in PARTS.items()
    }
    config = _peft_config(layers) | {"base_model_name_or_path": base_model, "task_type": task_type}
    metadata = {"format": "pt", ALPHAS: json.dumps({name: layer.alpha for name, layer in layers.items()})}
    folder.mkdir(parents=True, exist_ok=True)
    new = {name: folder / f".{name}.{os.getpid()}.new" for name in (TENSORS, CONFIG)}
    try:
        save_file(tensors, new[TENSORS], metadata=metadata)
        new[CONFIG].write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, written in new.items():
            os.replace(written, folder / name)
    finally:
        for written in new.values():
            written.unlink(missing_ok=True)
    return (folder / TENSORS).stat().st_size


def load_adapters(model: nn.Module, path: str | os.PathLike) -> tuple[str, ...]:
    """Read adapters from the folder `path`, ours or PEFT's, into the adapted layers of `model`; return their names.

    Everything is read and compared before the first matrix is written. Each layer takes the file's alpha too; a merged
    layer is unmerged.
    Errors:  FileNotFoundError if a file is missing; ValueError if one is truncated or no adapter file, or if names,
             ranks or kinds of adapter do not fit the model: nothing is changed then.
    """
    folder, layers = Path(path), adapted_layers(model)
    tensors, metadata = _read(folder / TENSORS)
    state = {f"{name}.{there}": getattr(layer, here) for name, layer in layers.items() for here, there in PARTS.items()}
    _require_same_names(state, tensors)
    for name, parameter in state.items():
        if tensors[name].shape != parameter.shape:
            got, ours = tuple(tensors[name].shape), tuple(parameter.shape)
            raise ValueError(f"{name} must have the model's shape {ours}, the file's is {got}: nothing was loaded")
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = _fields(metadata[ALPHAS], TENSORS) if ALPHAS in metadata else _alphas_of_peft(folder / CONFIG, ranks)
    if wrong := {name: alphas.get(name) for name in layers if not _is_alpha(alphas.get(name))}:
        raise ValueError(f"every alpha must be above 0 and finite, the file has {wrong}: nothing was loaded")
    for name, layer in layers.items():
        layer.unmerge()
        layer.alpha = alphas[name]
    with torch.no_grad():
        for name, parameter in state.items():
            parameter.copy_(tensors[name])
    return tuple(layers)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.exists():
        raise FileNotFoundError(f"{file.name} is missing in {file.parent}: nothing was loaded")
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            return {name.removeprefix(PREFIX): opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except SafetensorError as error:
        told = f"{file.name} of {file.stat().st_size} bytes is truncated or no safetensors file"
        raise ValueError(f"{told} ({error}): nothing was loaded") from error


def _fields(text: str, name: str) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is truncated or no JSON ({error}): nothing was loaded") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name} must hold named fields, got a {type(fields).__name__}: nothing was loaded")
    return fields


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _require_same_names(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    missing, extra = (sorted(a.keys() - b.keys()) for a, b in ((ours, theirs), (theirs, ours)))
    if missing or extra:
        counts = f"{len(missing)} of the model's are missing and {len(extra)} of the file's are not in the model"
        raise ValueError(f"the adapters' names differ: {counts}, such as {(missing + extra)[0]}: nothing was loaded")


def _peft_config(layers: Mapping[str, AdaptedLinear]) -> dict[str, object]:
    """Return PEFT's description: rank and alpha of the first layer, and patterns for those that differ."""
    first = next(iter(layers.values()))
    return {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "target_modules": list(layers),
        "rank_pattern": {_whole(name): m.rank for name, m in layers.items() if m.rank != first.rank},
        "alpha_pattern": {_whole(name): m.alpha for name, m in layers.items() if m.alpha != first.alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }


def _whole(name: str) -> str:
    return f"^{re.escape(name)}"  # PEFT searches a pattern without ^ at the end of any name


def _alphas_of_peft(file: Path, ranks: Mapping[str, int]) -> dict[str, object]:
    """Read each layer's alpha as PEFT would, times sqrt(rank) where it divides by sqrt(rank).

    Errors:  FileNotFoundError if there is no configuration; ValueError if it is no JSON, or of an adapter that is no
             plain LoRA, or starts from a changed base.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file.name} is missing in {file.parent}: nothing was loaded")
    config = _fields(file.read_text(encoding="utf-8"), file.name)
    plain = config.get("peft_type") == "LORA" and not config.get("use_dora")
    if not plain or config.get("init_lora_weights") not in STARTS_THAT_LEAVE_THE_BASE:
        told = {key: config.get(key) for key in ("peft_type", "use_dora", "init_lora_weights")}
        raise ValueError(f"{file.name} must describe plain LoRA on an unchanged base, got {told}: nothing was loaded")
    patterns, stabilized = config.get("alpha_pattern") or {}, config.get("use_rslora")

    def alpha(name: str) -> object:
        matches = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
        return next(matches, config.get("lora_alpha"))

    found = {name: alpha(name) for name in ranks}
    return {name: a * math.sqrt(ranks[name]) if stabilized and _is_alpha(a) else a for name, a in found.items()}
