"""The explorers, driven from Python: every control moves every other, and the learner's own decode is shown."""

import math

import pytest

from qlab import formats
from qlab.checks.learner import STUB_MESSAGE
from qlab.formats import E2M1, E4M3, FP16, FP32
from qlab.widgets import BitExplorer, FormatDesigner


def digits(explorer):
    return "".join(toggle.description for toggle in explorer.bits.children)


def test_value_code_bits_and_drawing_move_together():
    explorer = BitExplorer(fmt=FP16)
    assert (explorer.code.value, digits(explorer)) == (0x3C00, "0011110000000000")
    explorer.value.value = 300.0
    assert explorer.code.value == 23728 and "code 23728 is 300" in explorer.drawing.value
    explorer.bits.children[0].value = True
    assert explorer.value.value == -300.0 and digits(explorer)[0] == "1"
    explorer.code.value = 1
    assert explorer.value.value == 2.0**-24


@pytest.mark.parametrize("fmt", formats.FORMATS.values(), ids=lambda f: f.name)
def test_every_format_can_be_chosen(fmt):
    explorer = BitExplorer()
    explorer.format.value = fmt
    assert len(explorer.bits.children) == fmt.bits and explorer.value.value == 1.0
    for code in (0, 1, 2**fmt.bits - 1, 2 ** (fmt.bits - 1)):
        explorer.code.value = code
        assert int(digits(explorer), 2) == code


def test_values_past_the_end_saturate_or_overflow_and_nan_is_left_alone():
    explorer = BitExplorer(fmt=E2M1)
    explorer.value.value = 100.0
    assert explorer.value.value == 6.0
    explorer.value.value = math.nan
    assert explorer.code.value == E2M1.max_code
    explorer.format.value = FP16
    explorer.value.value = 1e6
    assert "∞" in explorer.drawing.value
    explorer.format.value = FP32
    explorer.value.value = 0.1
    assert "0.1" in explorer.drawing.value


def test_the_learners_own_decode_is_run_and_compared():
    def wrong_above_one(code, exponent_bits, mantissa_bits):
        return 1.0

    explorer = BitExplorer(decode=wrong_above_one)
    assert "✓ as it should be" in explorer.drawing.value
    explorer.value.value = 2.0
    assert "your decode: 1  ✗ expected 2" in explorer.drawing.value
    assert E4M3 not in dict(explorer.format.options).values()


def test_a_decode_that_is_missing_or_breaks_is_one_line():
    def stub(code, exponent_bits, mantissa_bits):
        raise NotImplementedError(STUB_MESSAGE)

    assert "your decode: not answered yet" in BitExplorer(decode=stub).drawing.value
    assert "your decode: ZeroDivisionError" in BitExplorer(decode=lambda *_: 1 / 0).drawing.value
    assert "returned None" in BitExplorer(decode=lambda *_: None).drawing.value
    assert "expected ()" in BitExplorer(decode=lambda *_: [1, 2]).drawing.value


def test_the_designer_draws_each_split():
    designer = FormatDesigner(bits=8)
    for exponent_bits in range(2, 7):
        designer.exponent_bits.value = exponent_bits
        assert f"{exponent_bits} exponent and {7 - exponent_bits} mantissa bits" in designer.drawing.value
