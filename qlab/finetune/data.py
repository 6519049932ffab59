"""Text to fine-tune on: read with the line number of whatever is wrong, held out by document, cut into windows."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

HELD_OUT_SHARE = 0.1
IGNORED = -100  # the target that a loss leaves out: cross_entropy's own default
LINE_FORMATS = (".jsonl", ".ndjson")
FORMS = 'give {"text": …} or {"prompt": …, "completion": …}'


@dataclass(frozen=True)
class Document:
    """One text, and the prompt before it, which is read and not learned."""

    text: str
    prompt: str = ""


@dataclass(frozen=True, eq=False)
class Windows:
    """Tokens side by side with the token that follows each, IGNORED where it is not to be learned.

    Shapes:  both are (n, sequence).
    Units:   `bytes_per_target` is the mean UTF-8 length of what is to be learned, over its tokens.
    """

    inputs: Int[Tensor, "n sequence"]
    targets: Int[Tensor, "n sequence"]
    bytes_per_target: float

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, count: int) -> "Windows":
        """Keep the first `count` windows."""
        return Windows(self.inputs[:count], self.targets[:count], self.bytes_per_target)


def read_documents(path: Path) -> tuple[Document, ...]:
    """Read a text as one document, or each line of a .jsonl file as one.

    Errors:  ValueError that names the file and, where there is one, the line.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: --data takes a text in UTF-8, or JSON Lines (.jsonl)")
    if path.suffix == ".json":
        raise ValueError(f"{path} is JSON: --data takes a text in UTF-8, or JSON Lines (.jsonl), one object a line")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8") from None
    if not text.strip():
        raise ValueError(f"{path} holds no text")
    if path.suffix not in LINE_FORMATS:
        return (Document(text),)
    lines = enumerate(text.split("\n"), start=1)  # a line in JSON may hold U+2028, which splitlines would cut at
    return tuple(_document(line, f"{path}, line {number}") for number, line in lines if line.strip())


def _document(line: str, where: str) -> Document:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg}, at character {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets in brackets
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where} holds {type(found).__name__}, not an object: {FORMS}")
    keys = ("text",) if "text" in found else ("prompt", "completion")
    for key in keys:
        if not isinstance(found.get(key), str):
            raise ValueError(f"{where} has no string {key!r}: {FORMS}")
        try:
            found[key].encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where}: {key!r} holds half of a surrogate pair, which is no character") from None
    if not found[keys[-1]]:
        raise ValueError(f"{where}: {keys[-1]!r} is empty")
    return Document(found["text"]) if keys == ("text",) else Document(found["completion"], prompt=found["prompt"])


def hold_out(documents: Sequence[Document]) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Keep a tenth for the held-out part: whole documents chosen by hash, or the last lines of a single one.

    Documents with the same prompt, or the same text where there is none, stay together.
    Errors:  ValueError if one of the two parts would be empty.
    """
    if len(documents) == 1:
        return _cut(documents[0])
    keys = [hashlib.sha256((d.prompt or d.text).encode()).hexdigest() for d in documents]
    groups = sorted(set(keys))
    if len(groups) == 1:
        raise ValueError(f"all {len(documents)} documents are the same, and one must be held out: give another")
    chosen = set(groups[: math.ceil(HELD_OUT_SHARE * len(groups))])
    kept = tuple(d for d, key in zip(documents, keys, strict=True) if key not in chosen)
    return kept, tuple(d for d, key in zip(documents, keys, strict=True) if key in chosen)


def _cut(document: Document) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    if document.prompt:
        raise ValueError("a single prompt leaves nothing to hold out: give at least two lines")
    middle = round(len(document.text) * (1 - HELD_OUT_SHARE))
    line = document.text.rfind("\n", 0, middle) + 1
    cut = line if line > middle // 2 else middle
    if not document.text[:cut].strip() or not document.text[cut:].strip():
        raise ValueError(f"a text of {len(document.text)} characters is too short to hold a tenth out")
    return (Document(document.text[:cut]),), (Document(document.text[cut:]),)


def windows(documents: Sequence[Document], tokenizer: Any, *, sequence: int) -> Windows:
    """Join the tokens of all documents, an end of text after each, and cut them into windows that do not overlap.

    Errors:  ValueError if there are too few tokens for one window, or none to learn.
    """
    tokens, learned, learned_bytes = [], [], 0
    end = tokenizer.eos_token_id
    for document in documents:
        before = _tokens(tokenizer, document.prompt, special=True) if document.prompt else []
        after = _tokens(tokenizer, document.text, special=not before)
        after += [end] if end is not None and after[-1:] != [end] else []
        tokens += before + after
        learned += [False] * len(before) + [True] * len(after)
        learned_bytes += len(document.text.encode())
    count = (len(tokens) - 1) // sequence
    if count < 1:
        raise ValueError(f"{len(tokens)} tokens are too few for a window of {sequence} and the one after: give more")
    ids, mask = torch.tensor(tokens), torch.tensor(learned)
    targets = torch.where(mask, ids, IGNORED)[1 : count * sequence + 1].view(count, sequence)
    inputs = ids[: count * sequence].view(count, sequence)
    useful = (targets != IGNORED).any(dim=1)
    if not useful.any():
        raise ValueError(f"no window of {sequence} tokens holds one to learn: the prompts are longer, raise --sequence")
    return Windows(inputs[useful], targets[useful], learned_bytes / sum(learned))


def _tokens(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
