"""Where outliers live in any model: what its linear layers read, for the course model or one that lies on disk."""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from qlab.calibrate import watched_inputs
from qlab.model import load_course_model
from qlab.outliers.finding import PAPER_RULE, OutlierRule, outliers_by_count

CAUSAL = ("ForCausalLM", "LMHeadModel")  # how transformers ends the names of causal language models


@dataclass(frozen=True)
class OutlierMap:
    """The largest magnitude in each dimension of what linear layers read, by the first that reads it, and the outliers.

    Only inputs of the most common width are kept. The input of an attention's output projection is among them, as in
    the paper, although its dimensions are the heads' and not the stream's.
    """

    model: str
    readers: tuple[str, ...]
    largest: Float[Tensor, "readers width"]
    outliers: Int[Tensor, " outliers"]
    rule: OutlierRule


@torch.no_grad()
def map_outliers(
    model: nn.Module, batches: Iterable[Integer[Tensor, "batch sequence"]], rule: OutlierRule = PAPER_RULE, *, name: str
) -> OutlierMap:
    """Run `model`, called `name`, on the batches, and map what its linear layers read.

    Errors:  ValueError if no linear layer runs, or an input is empty or holds NaN or infinity.
    """
    largest: dict[str, Tensor] = {}
    large: dict[str, Tensor] = {}
    tokens: Counter[str] = Counter()
    seen = WeakIdKeyDictionary()  # queries, keys and values read one tensor: it counts once

    def see(reader: str, x: Tensor) -> None:
        if x in seen:
            return
        seen[x] = None
        rows = x.reshape(-1, x.shape[-1]).float()
        if not (rows.numel() and rows.isfinite().all()):
            raise ValueError(f"what {reader} reads must be finite and not empty, got shape {tuple(x.shape)}")
        absmax, count = rows.abs().amax(0).cpu(), (rows.abs() >= rule.magnitude).sum(0).cpu()
        largest[reader] = torch.maximum(absmax, largest.get(reader, absmax))
        large[reader] = count + large.get(reader, 0)
        tokens[reader] += len(rows)

    with watched_inputs(model, see):
        for batch in batches:
            model(batch)
    if not largest:
        raise ValueError(f"{name} must have linear layers and a batch to run on, and none of them ran")
    width, _ = Counter(len(row) for row in largest.values()).most_common(1)[0]
    readers = tuple(reader for reader, row in largest.items() if len(row) == width)
    counts = torch.stack([large[reader] for reader in readers])
    found = outliers_by_count(counts, rule, tokens=sum(tokens[reader] for reader in readers))
    return OutlierMap(name, readers, torch.stack([largest[reader] for reader in readers]), found, rule)


def outlier_map(
    path: str | Path | None, text: UInt8[Tensor, " n"], rule: OutlierRule = PAPER_RULE, *, sequence: int = 512
) -> OutlierMap:
    """Map the outliers of the causal language model in the folder `path`, or of the course model, while it reads `text`.

    The folder is one that `save_pretrained` of the package transformers wrote; nothing is downloaded.
    Units:   `text` in bytes, read in windows of `sequence` tokens, or of as many as the model can take.
    Errors:  ValueError if `text` is empty, or `path` is no such folder; ModuleNotFoundError without transformers.
    """
    if not len(text):
        raise ValueError("text must hold at least one byte, got 0")
    if path is None:
        model, tokens, longest, name = load_course_model(), text.long(), sequence, "the course model"
        longest = model.config.sequence
    else:
        model, tokens = _load(Path(path), bytes(text.tolist()).decode(errors="replace"))
        longest, name = getattr(model.config, "max_position_embeddings", sequence), Path(path).name
    windows = tokens.split(min(sequence, longest))
    return map_outliers(model, (window[None] for window in windows), rule, name=name)


def _load(folder: Path, words: str) -> tuple[nn.Module, Int[Tensor, " tokens"]]:
    """Load the model in `folder`, and the `words` as its tokens."""
    _refuse_other_folders(folder)
    if importlib.util.find_spec("transformers") is None:
        raise ModuleNotFoundError("reading a model from disk needs transformers: `pip install transformers`")
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - no dependency of the course

    local = {"local_files_only": True, "trust_remote_code": False}
    tokens = AutoTokenizer.from_pretrained(folder, **local)(words, return_tensors="pt")["input_ids"][0]
    model = AutoModelForCausalLM.from_pretrained(folder, **local, use_safetensors=True, dtype="auto")
    if model.dtype == torch.float16:
        model = model.bfloat16()  # products in FP16 take minutes on a CPU
    return _with_linears(model.eval()), tokens


def _refuse_other_folders(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} must be a folder that holds a model, and there is no such folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} must hold config.json, as `save_pretrained` writes it")
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ()
    if not any(name.endswith(CAUSAL) for name in architectures):
        raise ValueError(f"{folder} must hold a causal language model, got {', '.join(architectures) or 'none'}")
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
