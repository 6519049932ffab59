"""Two signed 4-bit codes in a byte."""

import pytest
import torch

from qlab.packing import pack_int4, unpack_int4


def test_every_pair_of_codes_survives():
    codes = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).reshape(-1).to(torch.int8)
    packed = pack_int4(codes)
    assert packed.dtype == torch.uint8 and packed.numel() == codes.numel() // 2
    assert torch.equal(unpack_int4(packed, count=codes.numel()), codes)


def test_the_first_code_is_in_the_high_nibble():
    assert pack_int4(torch.tensor([1, -2, -8, 7], dtype=torch.int8)).tolist() == [0x1E, 0x87]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_odd_and_empty_lengths(count):
    codes = torch.arange(count, dtype=torch.int8) - 4
    assert torch.equal(unpack_int4(pack_int4(codes), count=count), codes)


def test_views_are_packed_as_they_read():
    codes = torch.arange(-8, 8, dtype=torch.int8)[::3]
    assert torch.equal(unpack_int4(pack_int4(codes), count=6), codes)


def test_bad_input_gets_one_sentence():
    with pytest.raises(ValueError, match="int4 codes must be -8 to 7, got -9 to 3"):
        pack_int4(torch.tensor([-9, 3], dtype=torch.int8))
    with pytest.raises(ValueError, match="count must be 3 or 4, got 5"):
        unpack_int4(torch.zeros(2, dtype=torch.uint8), count=5)
