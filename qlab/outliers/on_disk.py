"""The outlier map of a model that lies on disk, or of the course model."""

import importlib.util
import json
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from qlab.model import load_course_model
from qlab.outliers.finding import PAPER_RULE, OutlierRule
from qlab.outliers.maps import OutlierMap, map_outliers

CAUSAL = ("ForCausalLM", "LMHeadModel")  # how transformers ends the names of causal language models


def outlier_map(
    path: str | Path | None, text: UInt8[Tensor, " n"], rule: OutlierRule = PAPER_RULE, *, sequence: int = 512
) -> OutlierMap:
    """Map the outliers of the causal language model in the folder `path`, or of the course model, on `text`.

    The folder is one that `save_pretrained` of the package transformers wrote; nothing is downloaded.
    Units:   `text` in bytes, read in windows of `sequence` tokens, or of as many as the model has positions for.
    Errors:  ValueError if `text` is empty, `sequence` is below 1, or `path` is no such folder; ModuleNotFoundError
             if transformers is not installed.
    """
    if not len(text) or sequence < 1:
        raise ValueError(f"text and sequence must be at least 1, got {len(text)} bytes and {sequence}")
    if path is None:
        model, tokens, name = load_course_model(), text.long(), "the course model"
        longest = model.config.sequence
    else:
        model, tokens = _load(Path(path), bytes(text.tolist()).decode(errors="replace"))
        longest, name = getattr(model.config, "max_position_embeddings", sequence), Path(path).name
    windows = tokens.split(min(sequence, longest))
    return map_outliers(model, (window[None] for window in windows), rule, name=name)


def _load(folder: Path, words: str) -> tuple[nn.Module, Int[Tensor, " tokens"]]:
    """Load the model in `folder`, and `words` as its tokens."""
    _refuse_other_folders(folder)
    if importlib.util.find_spec("transformers") is None:
        raise ModuleNotFoundError("a model on disk is read with transformers: `pip install transformers` brings it")
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - no dependency of the course

    local = {"local_files_only": True, "trust_remote_code": False}
    tokens = AutoTokenizer.from_pretrained(folder, **local)(words, return_tensors="pt")["input_ids"][0]
    model = AutoModelForCausalLM.from_pretrained(folder, **local, use_safetensors=True, dtype="auto")
    if model.dtype == torch.float16:
        model = model.bfloat16()  # a CPU multiplies FP16 hundreds of times more slowly
    return _with_linears(model.eval()), tokens


def _refuse_other_folders(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} must be a folder that holds a model, and there is no such folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} must hold config.json, as `save_pretrained` writes it")
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ()
    if not any(name.endswith(CAUSAL) for name in architectures):
        raise ValueError(f"{folder} must hold a causal language model, got {', '.join(architectures) or 'no name'}")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} must hold its weights as .safetensors, and none is there")


def _with_linears(model: nn.Module) -> nn.Module:
    """Put an `nn.Linear` in the place of each `Conv1D`: GPT-2's linear layer, its weight the other way round."""
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ == "Conv1D":
            linear = nn.Linear(*layer.weight.shape, device="meta")
            linear.weight, linear.bias = nn.Parameter(layer.weight.detach().T), layer.bias
            model.set_submodule(name, linear)
    return model
