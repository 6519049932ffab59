"""A model's files: found in a folder or in the Hub's cache, complete and whole, before anything is loaded."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlab.finetune.libraries import AutoConfig, AutoTokenizer, huggingface_hub

WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TAIL_BYTES = 2**20


@dataclass(frozen=True)
class Source:
    """A model that can be loaded: the name it was asked for by, its folder, its configuration, a hash of its files."""

    name: str
    folder: Path
    config: Any
    fingerprint: str

    @property
    def base_name(self) -> str:
        """The name that an adapter keeps to find its base again."""
        return str(self.folder) if Path(self.name).is_dir() else self.name


def find(model: str, *, download: bool = False) -> Source:
    """Find a model by folder or Hub id; the Hub is asked only with `download`.

    Errors:  ValueError that says what is missing or damaged, and how to get it.
    """
    folder = Path(model).expanduser().resolve() if Path(model).expanduser().is_dir() else _from_hub(model, download)
    config = read_config(folder)
    shards = weight_files(folder)
    digest = hashlib.sha256()
    for path in (folder / "config.json", folder / "tokenizer.json"):
        digest.update(path.read_bytes() if path.is_file() else b"")
    for shard in shards:
        digest.update(_whole_header(shard) + _tail(shard))
    return Source(model, folder, config, digest.hexdigest())


def _from_hub(model: str, download: bool) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(model, allow_patterns=list(WANTED), local_files_only=not download)
        )
    except huggingface_hub.errors.HFValidationError:
        raise ValueError(f"{model!r} is no folder, and no Hub id such as owner/name either") from None
    except huggingface_hub.errors.LocalEntryNotFoundError as error:
        if download:
            raise ValueError(f"{model} could not be downloaded: {_first_line(error)}") from None
        cache = huggingface_hub.constants.HF_HUB_CACHE
        raise ValueError(
            f"{model!r} is no folder, and not in the local cache ({cache}) either: this command stays offline unless"
            f" it is given --download, or fetch the model once with `hf download {model}`"
        ) from None
    except Exception as error:  # whatever a network or a Hub answers; the client's errors have no common ancestor
        raise ValueError(f"{model} could not be downloaded: {_first_line(error)}") from None


def read_config(folder: Path) -> Any:
    """Read the configuration of a model that can be fine-tuned here.

    Errors:  ValueError if there is none, it needs code of its own, or the weights are quantized already.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json: it is not a model saved by transformers")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a configuration is checked in as many ways as there are models
        raise ValueError(f"{path} is not a configuration that transformers knows: {_first_line(error)}") from None
    method = getattr(config, "quantization_config", None)
    if method is not None:
        raise ValueError(f"{folder} is quantized already: fine-tuning starts from the original weights")
    return config


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the files that hold the weights.

    Errors:  ValueError if there is none, or one that the index names is missing.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{index} is damaged: it does not say which file holds which weight") from None
    else:
        names = [SINGLE]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        what = f"{len(missing)} of {len(names)} weight files are missing" if index.is_file() else f"it has no {SINGLE}"
        raise ValueError(f"{folder} is not complete: {what}, {missing[0]} among them; other formats are not read")
    return tuple(folder / name for name in names)


def _whole_header(shard: Path) -> bytes:
    """Return the header of a safetensors file after holding it against the file's size."""
    size = shard.stat().st_size
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if size >= 8 + length else b""
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{shard} is damaged: it does not begin as a safetensors file") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ValueError(f"{shard} is damaged: it has {size:,} bytes, its header promises {expected:,}")
    return header


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read()


def read_tokenizer(source: Source) -> Any:
    """Read the model's own tokenizer.

    Errors:  ValueError if there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except Exception as error:  # each family of tokenizers fails in its own way
        raise ValueError(f"{source.folder} has no tokenizer that can be read: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
