"""Text for fine-tuning: a bad line is named, nothing held out is trained on, and no prompt is learned."""

import json
import re

import pytest
import torch

from qlab.finetune import data
from qlab.finetune.data import IGNORED, Document


class Letters:
    """A tokenizer whose tokens are bytes, 1 before and 2 after a text."""

    eos_token_id = 2

    def __call__(self, text, *, add_special_tokens, verbose):
        return {"input_ids": [1] * add_special_tokens + list(text.encode())}


def test_a_text_is_one_document_and_a_byte_order_mark_is_none_of_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo \xe2\x82\xac\n")
    assert data.read_documents(path) == (Document("one\ntwo €\n"),)


def test_json_lines_hold_texts_and_prompts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028half"}\r\n\n{"prompt": "q", "completion": "a", "other": 1}\n{"text": "two"}')
    assert data.read_documents(path) == (Document("one\u2028half"), Document("a", prompt="q"), Document("two"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes, at character 2"),
        ("[" * 100_000, "is not JSON"),
        ('{"text": ' + "1" * 5_000 + "}", "is not JSON"),
        ('["text"]', "holds list, not an object"),
        ('{"words": "a"}', "has no string 'prompt'"),
        ('{"prompt": "a"}', "has no string 'completion'"),
        ('{"text": 3}', "has no string 'text'"),
        ('{"text": null}', "has no string 'text'"),
        ('{"text": ""}', "'text' is empty"),
        ('{"prompt": "a", "completion": ""}', "'completion' is empty"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
    ids=range(11),
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "good"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 3\b.*{re.escape(said)}"):
        data.read_documents(path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nth\xffree")
    with pytest.raises(ValueError, match=r"a\.txt, line 3: byte 0xff is not UTF-8"):
        data.read_documents(tmp_path / "a.txt")


@pytest.mark.parametrize(("name", "content"), [("a.txt", " \n"), ("a.jsonl", "\n\n"), ("a.json", "[]")])
def test_a_file_without_text(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"holds no text|is JSON"):
        data.read_documents(tmp_path / name)


def test_no_file_and_a_folder(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="is not a file"):
            data.read_documents(path)


def test_documents_with_one_prompt_or_one_text_are_held_out_together():
    documents = [Document(f"answer {i}", prompt=f"question {i % 7}") for i in range(50)]
    documents += [Document("again")] * 5 + [Document(f"text {i}") for i in range(20)]
    kept, held_out = data.hold_out(documents)
    assert sorted(map(repr, kept + held_out)) == sorted(map(repr, documents))
    assert kept and held_out
    assert not {d.prompt or d.text for d in kept} & {d.prompt or d.text for d in held_out}
    assert data.hold_out(documents[::-1])[1] == held_out[::-1]  # the order of the lines does not matter


def test_a_single_text_is_cut_at_a_line():
    ((kept,), (held_out,)) = data.hold_out([Document("".join(f"line {i}\n" for i in range(100)))])
    assert kept.text.endswith("\n") and held_out.text.startswith("line ")
    assert 0.85 < len(kept.text) / len(kept.text + held_out.text) < 0.95
    ((kept,), (held_out,)) = data.hold_out([Document("x" * 100)])
    assert len(kept.text) == 90


@pytest.mark.parametrize("documents", [[Document("a")], [Document("a", prompt="b")], [Document("a")] * 3])
def test_too_little_to_hold_out(documents):
    with pytest.raises(ValueError, match=r"hold|held"):
        data.hold_out(documents)


def test_windows_predict_the_next_token_and_no_prompt_is_learned():
    documents = [Document("abcd"), Document("XY", prompt="pq"), Document("efg")]
    cut = data.windows(documents, Letters(), sequence=5)
    stream = [1, *b"abcd", 2, 1, *b"pq", *b"XY", 2, 1, *b"efg", 2]
    learned = [1] * 6 + [0] * 3 + [1] * 8
    assert cut.inputs.flatten().tolist() == stream[:15]
    expected = [t if m else IGNORED for t, m in zip(stream, learned, strict=True)][1:16]
    assert cut.targets.flatten().tolist() == expected
    assert cut.bytes_per_target == (4 + 2 + 3) / sum(learned)


def test_a_window_of_prompts_alone_is_left_out():
    documents = [Document("X", prompt="p" * 11), Document("abcdefg")]
    cut = data.windows(documents, Letters(), sequence=4)
    assert len(cut) == 3 and (cut.targets != IGNORED).any(dim=1).all()
    assert len(cut.first(2)) == 2 and torch.equal(cut.first(2).inputs, cut.inputs[:2])
    with pytest.raises(ValueError, match="the prompts are longer, raise --sequence"):
        data.windows([Document("X", prompt="p" * 20)], Letters(), sequence=9)


def test_too_few_tokens_for_a_window():
    with pytest.raises(ValueError, match="5 tokens are too few for a window of 5 and the one after"):
        data.windows([Document("abc")], Letters(), sequence=5)
    assert len(data.windows([Document("abcd")], Letters(), sequence=5)) == 1


def test_json_of_many_lines_keeps_their_numbers(tmp_path):
    lines = [json.dumps({"text": f"t{i}"}) for i in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "?"]))
    with pytest.raises(ValueError, match="line 101"):
        data.read_documents(tmp_path / "a.jsonl")
