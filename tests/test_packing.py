"""Two signed 4-bit codes in a byte, and codes of any width in a row."""

import pytest
import torch

from qlab.packing import pack_codes, pack_int4, packed_bytes, unpack_codes, unpack_int4


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


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 1001])
def test_codes_of_any_width_lie_as_in_one_large_integer(bits, count):
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    packed = pack_codes(codes, bits=bits)
    assert packed.numel() == packed_bytes(count, bits=bits) == bits * -(-count // 8)
    number = sum(code << bits * place for place, code in enumerate(codes.tolist()))
    assert int.from_bytes(bytes(packed.tolist()), "little") == number
    assert torch.equal(unpack_codes(packed, bits=bits, count=count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_views_of_codes_and_of_bytes_are_read_as_they_are(bits):
    codes = torch.randint(0, 2**bits, (16,), dtype=torch.uint8)[::2]
    packed = pack_codes(codes, bits=bits)
    spread = torch.zeros(2 * bits + 1, dtype=torch.uint8)
    spread[1::2] = packed
    assert torch.equal(unpack_codes(spread[1::2], bits=bits, count=8), codes)
    shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), packed])[1:]
    assert torch.equal(unpack_codes(shifted, bits=bits, count=8), codes)


def test_unpacked_codes_are_no_view_of_the_bytes():
    packed = torch.arange(8, dtype=torch.uint8)
    unpack_codes(packed, bits=8, count=8).zero_()
    assert packed.tolist() == list(range(8))


def test_bad_widths_codes_and_counts_get_one_sentence():
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"bits must be 1 to 8, got {bits}"):
            packed_bytes(8, bits=bits)
    with pytest.raises(ValueError, match="codes of 3 bits must be below 8, got 8"):
        pack_codes(torch.tensor([1, 8], dtype=torch.uint8), bits=3)
    with pytest.raises(ValueError, match="9 codes of 3 bits take 6 bytes, got 3"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), bits=3, count=9)
