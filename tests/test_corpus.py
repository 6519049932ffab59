import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qlab.corpus import (
    SEPARATOR,
    Document,
    as_bytes_tensor,
    character_lines,
    docstring_documents,
    load_corpus,
    name_fraction,
    source_documents,
    source_names,
    split,
    topic_documents,
    unicode_name_documents,
)

FRESH = """
import builtins, time
builtins.display, builtins.input = print, lambda: 0  # as notebooks do
from qlab.corpus import load_corpus
start = time.process_time()
record = load_corpus().record
print(record.sha256, time.process_time() - start)
"""


def test_the_record_tells_the_sizes_of_the_splits():
    corpus = load_corpus()
    record = corpus.record
    assert len(corpus.train) == record.train_bytes
    assert len(corpus.validation) == record.validation_bytes
    assert len(corpus.new_domain_train) == record.new_domain_train_bytes
    assert len(corpus.new_domain_validation) == record.new_domain_validation_bytes
    assert corpus.train.dtype == torch.uint8


def test_the_hash_is_that_of_the_texts():
    corpus = load_corpus()
    texts = (corpus.train, corpus.validation, corpus.new_domain_train, corpus.new_domain_validation)
    assert corpus.record.sha256 == hashlib.sha256(b"\0".join(text.numpy().tobytes() for text in texts)).hexdigest()


def test_a_notebooks_process_reads_the_same_text_within_a_second():
    folder = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True, cwd=folder)
    sha256, seconds = found.stdout.split()
    assert sha256 == load_corpus().record.sha256
    assert float(seconds) < 1


def test_the_splits_are_large_enough_to_be_used():
    record = load_corpus().record
    assert record.train_bytes > 3_000_000
    assert record.validation_bytes > 200_000
    assert record.validation_documentation_bytes > 10_000
    assert record.new_domain_train_bytes > 300_000
    assert record.new_domain_validation_bytes > 50_000


def test_documentation_comes_first():
    corpus = load_corpus()
    documentation = bytes(corpus.train[: corpus.record.train_documentation_bytes].tolist())
    assert b'The "with" statement' in documentation
    assert b"import os\n" not in documentation
    assert documentation.endswith(SEPARATOR)


def test_no_held_out_document_is_in_the_training_text():
    train = load_corpus().train.numpy().tobytes()
    held_out = [d for d in [*topic_documents(), *source_documents()] if name_fraction(d.name) < 1 / 16]
    assert len(held_out) > 10
    assert not [d.name for d in held_out if len(d.text) > 200 and d.text in train]


def test_the_new_domain_is_nowhere_else():
    corpus = load_corpus()
    known = corpus.train.numpy().tobytes() + corpus.validation.numpy().tobytes()
    lines = bytes(corpus.new_domain_train.tolist()).decode().splitlines()
    names = {line.split(" ", 1)[1] for line in lines if line}
    longer = sorted(name for name in names if name.count(" ") >= 3)
    assert len(longer) > 10_000
    tried = longer[::7]
    assert sum(name.encode() in known for name in tried) <= 0.01 * len(tried)  # source code names a few letters


def test_source_leaves_out_tests_build_settings_and_installed_packages(tmp_path):
    for name in (
        "a.py",
        "test/b.py",
        "site-packages/c.py",
        "pkg/d.py",
        "pkg/tests/e.py",
        "_sysconfigdata_x.py",
        "f.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(source_names(tmp_path)) == ["a.py", "pkg/d.py"]


def test_a_document_keeps_its_split_whatever_stands_beside_it():
    documents = [Document(f"file {i}", b"%d" % i) for i in range(400)]
    held_out = split(documents, share=0.25)[1].split(SEPARATOR)[:-1]
    assert split(documents[::2], share=0.25)[1].split(SEPARATOR)[:-1] == [t for t in held_out if int(t) % 2 == 0]
    # 400 draws at 1/4: mean 100, standard deviation 8.7; six of them
    assert abs(len(held_out) - 100) < 52


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match=f"share must be between 0 and 1, got {share}"):
        split([], share=share)


def test_docstrings_are_distinct_and_stand_under_their_signature():
    documents = list(docstring_documents())
    texts = [d.text for d in documents]
    assert len(set(texts)) == len(texts)
    assert any(text.startswith(b"len(obj, /)\n\n") for text in texts)


def test_character_names_leave_out_those_that_are_computed():
    assert character_lines(range(0x1F600, 0x1F601)) == ["U+1F600 GRINNING FACE"]
    assert character_lines(range(0x4E00, 0x4E01)) == []  # CJK UNIFIED IDEOGRAPH-4E00
    assert character_lines(range(0xAC00, 0xAC01)) == []  # HANGUL SYLLABLE GA
    assert character_lines(range(0x0378, 0x0379)) == []  # not assigned
    assert next(unicode_name_documents()).text.startswith(b"U+0020 SPACE\nU+0021 EXCLAMATION MARK\n")


def test_bytes_become_a_tensor_also_when_there_are_none():
    assert as_bytes_tensor(b"\x00\xff").tolist() == [0, 255]
    assert as_bytes_tensor(b"").shape == (0,)


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_corpus().record.sha256 = "0"
