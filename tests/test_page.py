"""Page furniture: predictions that survive, try-outs that never stop a page, tables, recordings."""

import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from qlab import page
from qlab.checks.learner import STUB_MESSAGE
from qlab.page import Prediction, attempt, how_to_get, missing, provenance_line, recorded, table

mpl.use("agg")


@pytest.fixture
def course(tmp_path, monkeypatch):
    (tmp_path / "lessons" / "recorded").mkdir(parents=True)
    (tmp_path / "labs").mkdir()
    monkeypatch.setenv("QLAB_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def shown(monkeypatch):
    """Collect what a page displays."""
    pieces = []

    class Handle:
        def update(self, piece):
            pieces[-1] = piece

    def display(piece, **_):
        pieces.append(piece)
        return Handle()

    monkeypatch.setattr(page, "display", display)
    return pieces


def test_a_prediction_is_compared_with_what_was_measured(course, shown):
    prediction = Prediction("01_data_types", "codes", "How many?", unit="codes")
    prediction.reconcile(15_360)
    assert "You made no prediction" in shown[-1].data
    prediction.field.value = 30_000
    prediction.button.click()
    assert "Measured: 15,360 codes." in shown[-1].data and "95.3% off" in shown[-1].data


@pytest.mark.parametrize(
    ("guess", "measured", "gap"),
    [
        (4, 4, "exactly as you said"),
        (1, 8, "by a factor of 8"),
        (-3, 5, "off by 8"),
        (0, 2, "off by 2"),
        (9, 10, "10.0% off"),
    ],
)
def test_how_far_the_guess_was(course, shown, guess, measured, gap):
    prediction = Prediction("01_data_types", "gap", "?")
    prediction.commit(guess)
    prediction.reconcile(measured)
    assert gap in shown[-1].data


def test_a_prediction_survives_a_restart(course, shown):
    Prediction("01_data_types", "kept", "?", unit="bits").commit(7.5)
    again = Prediction("01_data_types", "kept", "?", unit="bits")
    assert again.value == again.field.value == 7.5
    assert "You committed to 7.5 bits." in again.said.value


def test_a_try_out_turns_errors_into_one_line(capsys):
    with attempt():
        raise NotImplementedError(STUB_MESSAGE)
    with attempt():
        _ = 1 / 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Not answered yet") and said[1].startswith("It stopped: ZeroDivisionError")


def test_a_try_out_that_fails_leaves_no_half_drawn_figure(capsys):
    kept = plt.figure()
    with attempt():
        plt.figure()
        raise NotImplementedError(STUB_MESSAGE)
    assert plt.get_fignums() == [kept.number]
    plt.close(kept)


def test_a_table_shows_four_digits_and_thousands():
    text = table(["name", "n", "x"], [("a", 65536, 0.123456), ("b", 1, 3.4e38)]).data
    assert "| a | 65,536 | 0.1235 |" in text and "3.4e+38" in text


def test_a_recording_comes_with_its_provenance_or_says_that_there_is_none(course):
    assert recorded("01_data_types") is None
    assert "Not recorded yet" in provenance_line(None, command="make bench").data
    source = {"device": "GPU X", "driver": "1.2", "torch": "2.13.0", "seed": 0, "date": "2026-11-22"}
    parts = {"gpu": {"provenance": source}, "damage": {"provenance": source | {"driver": "none", "processor": "CPU Y"}}}
    (course / "lessons" / "recorded" / "01_data_types.json").write_text(json.dumps(parts))
    line = provenance_line(recorded("01_data_types"), command="make bench").data
    assert all(str(value) in line for value in source.values())
    line = provenance_line(recorded("01_data_types", "damage"), command="make bench").data
    assert "CPU Y" in line and "driver" not in line and "GPU" not in line
    assert recorded("01_data_types", "speed") is None


def test_shown_source_is_the_source(shown):
    page.show_source(page.table)
    assert "`qlab/page.py`, line" in shown[-1].data and "def table(" in shown[-1].data


def test_a_package_that_is_not_there_is_named_with_the_command_that_brings_it():
    assert missing("torch", "json") == []
    absent = missing("torch", "a_package_that_nobody_made")
    assert absent == ["a_package_that_nobody_made"]
    line = how_to_get("onnx", absent).data
    assert "a_package_that_nobody_made is not installed" in line and '-e ".[onnx]"' in line
