"""The course's text: what every Python installation already holds, split once and hashed.

Documentation is `pydoc_data.topics` and the docstrings of modules written in C; source is the standard library itself.
The new domain, which the base model never sees, is the list of Unicode character names.
A document is put into its split by a hash of its *name*, so that a file held out in one Python version is
held out in all of them: a checkpoint trained under one version is never tested on its own training text in another.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import platform
import re
import sysconfig
import types
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

# Tests, vendored wheels, packages that distributions ship apart or patch, and `encodings`: its tables spell
# out the Unicode names that the new domain keeps for later.
EXCLUDED_DIRECTORIES = frozenset(
    {"__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3"}
    | {"msilib", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo"}
)
EXCLUDED_FILES = frozenset({"sitecustomize.py", "usercustomize.py", "turtle.py", "stringprep.py"})
MODULES_IN_C = ("builtins", "_collections", "_functools", "_io", "_operator", "_thread", "gc", "itertools", "math")
REPLACED_BY_SHELLS = frozenset({"input", "open", "print"})  # a notebook kernel puts its own in their place
DOCUMENTATION_VALIDATION_SHARE = 1 / 8
SOURCE_VALIDATION_SHARE = 1 / 16
NEW_DOMAIN_VALIDATION_SHARE = 1 / 8
NEW_DOMAIN_LAST_CODE_POINT = 0x1FFFF
CODE_POINTS_PER_DOCUMENT = 256
SEPARATOR = b"\n\n"


class Document(NamedTuple):
    """One text of the corpus, by a name that is the same in every Python version."""

    name: str
    text: bytes


@dataclass(frozen=True)
class CorpusRecord:
    """What a page must print beside a number that was taken on the corpus."""

    sha256: str
    python_version: str
    unicode_version: str
    documents: int
    train_bytes: int
    train_documentation_bytes: int
    validation_bytes: int
    validation_documentation_bytes: int
    new_domain_train_bytes: int
    new_domain_validation_bytes: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """The splits as bytes, documentation first in `train` and `validation`, then source code."""

    train: UInt8[Tensor, " train"]
    validation: UInt8[Tensor, " validation"]
    new_domain_train: UInt8[Tensor, " new_domain_train"]
    new_domain_validation: UInt8[Tensor, " new_domain_validation"]
    record: CorpusRecord


@functools.cache
def load_corpus() -> Corpus:
    """Read the corpus of the running Python, once per process.

    Units:   one byte is one token; the record's sizes are bytes.
    Errors:  RuntimeError if this Python ships without the source of its standard library.
    """
    documentation = sorted({*topic_documents(), *docstring_documents()})
    source = list(source_documents())
    names = list(unicode_name_documents())
    if not source:
        raise RuntimeError(f"the standard library at {sysconfig.get_path('stdlib')!r} holds no .py files to read")
    doc_train, doc_validation = split(documentation, share=DOCUMENTATION_VALIDATION_SHARE)
    source_train, source_validation = split(source, share=SOURCE_VALIDATION_SHARE)
    new_train, new_validation = split(names, share=NEW_DOMAIN_VALIDATION_SHARE)
    texts = (doc_train + source_train, doc_validation + source_validation, new_train, new_validation)
    record = CorpusRecord(
        sha256=hashlib.sha256(b"\0".join(texts)).hexdigest(),
        python_version=platform.python_version(),
        unicode_version=unicodedata.unidata_version,
        documents=len(documentation) + len(source) + len(names),
        train_bytes=len(texts[0]),
        train_documentation_bytes=len(doc_train),
        validation_bytes=len(texts[1]),
        validation_documentation_bytes=len(doc_validation),
        new_domain_train_bytes=len(texts[2]),
        new_domain_validation_bytes=len(texts[3]),
    )
    return Corpus(*map(as_bytes_tensor, texts), record)


def as_bytes_tensor(text: bytes) -> UInt8[Tensor, " n"]:
    """Copy `text` into a uint8 tensor, one element per byte."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def split(documents: Iterable[Document], *, share: int | float) -> tuple[bytes, bytes]:
    """Join `documents` into a training text and a held-out text that takes about `share` of the names.

    Errors:  ValueError if `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    kept: list[bytes] = []
    held_out: list[bytes] = []
    for document in documents:
        (held_out if name_fraction(document.name) < share else kept).append(document.text + SEPARATOR)
    return b"".join(kept), b"".join(held_out)


def name_fraction(name: str) -> float:
    """Map a document's name to a fixed number in [0, 1), spread evenly over names."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def topic_documents() -> Iterator[Document]:
    """Yield the language reference that `help("topic")` prints; nothing where Python ships without it."""
    if importlib.util.find_spec("pydoc_data") is None or importlib.util.find_spec("pydoc_data.topics") is None:
        return
    topics = {name: text.strip() for name, text in importlib.import_module("pydoc_data.topics").topics.items()}
    for name in sorted(topics):
        if not any(topics[name] in text for other, text in topics.items() if other != name):  # "else" is in "if"
            yield Document(f"topic {name}", topics[name].encode())


def docstring_documents() -> Iterator[Document]:
    """Yield each distinct docstring of the modules written in C, under its signature."""
    seen: set[str] = set()
    for module_name in MODULES_IN_C:
        module = importlib.import_module(module_name)
        for name, member in sorted(vars(module).items()):
            if name in REPLACED_BY_SHELLS or not is_its_own(member, module_name, name):
                continue
            yield from described(f"{module_name}.{name}", member, seen)
            if isinstance(member, type):
                for attribute, value in sorted(vars(member).items()):
                    yield from described(f"{module_name}.{name}.{attribute}", value, seen)


def is_its_own(member: object, module_name: str, name: str) -> bool:
    """Tell a module's own functions and classes from what others have put into its namespace."""
    known = isinstance(member, type | types.BuiltinFunctionType)
    return known and (member.__module__, member.__name__) == (module_name, name)


def described(name: str, member: object, seen: set[str]) -> Iterator[Document]:
    """Yield `member`'s docstring under its signature, unless the docstring was `seen` before or is missing."""
    text = getattr(member, "__doc__", None)
    if not isinstance(text, str) or text in seen:
        return
    seen.add(text)
    signature = re.sub(r"\$\w+(, )?", "", getattr(member, "__text_signature__", None) or "")  # ($self, key, /)
    shown = name.removeprefix("builtins.").removeprefix("_")
    yield Document(f"docstring {name}", f"{shown}{signature}\n\n{text.strip()}".encode())


def source_documents() -> Iterator[Document]:
    """Yield the standard library's own modules, sorted by path, line ends as on Unix."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in sorted(source_names(library)):
        yield Document(f"source {name}", (library / name).read_bytes().replace(b"\r\n", b"\n").strip())


def source_names(library: Path) -> Iterator[str]:
    """Yield the paths, relative to `library`, of the modules that belong to the corpus."""
    for folder, directories, files in os.walk(library):
        directories[:] = [d for d in directories if d not in EXCLUDED_DIRECTORIES and not d.startswith("config-")]
        for file in files:
            generated = file.startswith("_sysconfigdata")  # build settings of this very machine
            if file.endswith(".py") and file not in EXCLUDED_FILES and not generated:
                yield (Path(folder) / file).relative_to(library).as_posix()


def unicode_name_documents() -> Iterator[Document]:
    """Yield the names of the Unicode characters, one a line, in documents of 256 code points."""
    for first in range(0, NEW_DOMAIN_LAST_CODE_POINT + 1, CODE_POINTS_PER_DOCUMENT):
        lines = character_lines(range(first, first + CODE_POINTS_PER_DOCUMENT))
        if lines:
            yield Document(f"unicode {first:04X}", "\n".join(lines).encode())


def character_lines(code_points: range) -> list[str]:
    """Write code point and name of each character, leaving out names that are computed and not given."""
    named = ((code, unicodedata.name(chr(code), "")) for code in code_points)
    return [
        f"U+{code:04X} {name}"
        for code, name in named
        if name and not name.startswith("HANGUL SYLLABLE") and not name.endswith(f"-{code:04X}")
    ]
