import math

import pytest
import torch
from torch import nn

from qlab.config import COURSE_MODEL
from qlab.scoring import bits_per_token, generate, held_out_bits


class NextByteIsOneMore(nn.Module):
    """Predicts byte + 1 with `confidence` in logits, and looks at nothing else."""

    def __init__(self, confidence: float):
        super().__init__()
        self.confidence = nn.Parameter(torch.tensor(confidence))
        self.config = COURSE_MODEL

    def forward(self, tokens):
        return self.confidence * nn.functional.one_hot((tokens + 1) % 256, 256)


def test_uniform_logits_cost_eight_bits_a_byte():
    bits = bits_per_token(torch.zeros(2, 3, 256), torch.randint(256, (2, 3)))
    assert bits.shape == (2, 3)
    # log 256 / log 2 in FP32: two roundings of 2^-24 relative, in a number of size 8
    assert torch.allclose(bits, torch.full((2, 3), 8.0), rtol=2**-22, atol=0)


def test_a_doubled_probability_saves_one_bit():
    logits = torch.tensor([[[0.5, 0.25, 0.125, 0.125]] * 3]).log()
    assert torch.allclose(bits_per_token(logits, torch.tensor([[0, 1, 2]])), torch.tensor([[1.0, 2.0, 3.0]]))


@pytest.mark.parametrize("sequence", [1, 7, 64])
def test_every_byte_but_the_first_is_scored_once(sequence):
    text = torch.arange(1 + 5 * sequence).remainder(256).to(torch.uint8)
    bits = held_out_bits(NextByteIsOneMore(2.0), text, sequence=sequence, batch=2)
    expected = math.log2(math.exp(2) + 255) - 2 / math.log(2)
    assert torch.allclose(bits, torch.full((5,), expected))


def test_a_ragged_end_is_left_out_and_a_short_text_refused():
    text = torch.zeros(25, dtype=torch.uint8)
    assert held_out_bits(NextByteIsOneMore(1.0), text, sequence=10).shape == (2,)
    with pytest.raises(ValueError, match="a window of 25 needs at least 26 bytes, got 25"):
        held_out_bits(NextByteIsOneMore(1.0), text, sequence=25)


def test_generation_continues_the_prompt_and_repeats_with_its_seed():
    assert generate(NextByteIsOneMore(100.0), b"abc", new_bytes=4) == b"abcdefg"
    drawn = [
        generate(NextByteIsOneMore(0.0), b"a", new_bytes=20, generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_low_temperature_makes_the_likely_certain():
    assert generate(NextByteIsOneMore(1.0), b"a", new_bytes=5, temperature=0.01) == b"abcdef"


def test_generation_refuses_an_empty_prompt_and_a_zero_temperature():
    with pytest.raises(ValueError, match="prompt must hold at least one byte, got none"):
        generate(NextByteIsOneMore(1.0), b"", new_bytes=1)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        generate(NextByteIsOneMore(1.0), b"a", new_bytes=1, temperature=0)
