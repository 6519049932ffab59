"""The ledger: kept for all topics, drawn on one picture, honest about what was not measured."""

import matplotlib as mpl
import pytest

from qlab.corpus import load_corpus
from qlab.ledger import LedgerEntry, entries_so_far, held_out_quality, pareto, show_ledger
from qlab.model import load_course_model
from qlab.scoring import held_out_bits

mpl.use("agg")
FULL = LedgerEntry(
    name="FP32", predicted_bytes=4_000_000, measured_bytes=4_100_000, step_ms=12.0, joules=0.5, bits_per_byte=1.25
)
BARE = LedgerEntry(
    name="elsewhere", predicted_bytes=None, measured_bytes=None, step_ms=None, joules=None, bits_per_byte=None
)


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    (tmp_path / "lessons").mkdir()
    (tmp_path / "labs").mkdir()
    monkeypatch.setenv("QLAB_ROOT", str(tmp_path))
    yield tmp_path
    mpl.pyplot.close("all")


def test_a_card_shows_megabytes_and_says_what_was_not_measured():
    text = show_ledger("02_memory", [FULL, BARE]).data
    assert "| FP32 | 4.0 | 4.1 | 12 | 0.5 | 1.250 |" in text
    assert "| elsewhere |" + " not measured |" * 5 in text


def test_entries_survive_and_a_second_run_replaces_the_first():
    show_ledger("02_memory", [FULL, BARE])
    show_ledger("03_quantization", [FULL])
    show_ledger("02_memory", [FULL])
    assert entries_so_far() == {"02_memory": (FULL,), "03_quantization": (FULL,)}


def test_what_cannot_be_read_is_left_out(course):
    show_ledger("02_memory", [FULL])
    folder = course / "work" / ".qlab" / "ledger"
    (folder / "03_quantization.json").write_text("{")
    (folder / "04_calibration.json").write_text('{"entries": [{"name": "of another version"}]}')
    assert list(entries_so_far()) == ["02_memory"]


def test_the_picture_has_a_series_for_each_topic_with_numbers():
    show_ledger("02_memory", [FULL, BARE])
    show_ledger("03_quantization", [BARE])
    (line,) = pareto().lines
    assert line.get_label() == "02 memory"
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([4.1], [1.25])


def test_an_empty_ledger_is_an_empty_picture():
    assert not pareto().lines


@pytest.mark.slow
def test_every_topic_scores_on_the_same_windows():
    model = load_course_model()
    quality = held_out_quality(model)
    text = load_corpus().validation[: 16 * 512 + 1]
    assert quality == pytest.approx(held_out_bits(model, text, sequence=512).mean().item())
