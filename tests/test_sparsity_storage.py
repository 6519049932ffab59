"""2:4 codes and the bytes of sparse forms: they come back, and their size is what was written."""

import re

import pytest
import torch
from safetensors.torch import load_file, save

from qlab.sparsity import (
    bitmap_parts,
    break_even_sparsity,
    csr_parts,
    entropy_bits,
    file_bytes,
    magnitude_mask,
    to_csr,
    two_four_codes,
    two_four_mask,
    two_four_parts,
)


def test_two_of_each_four_stay_and_they_are_the_largest():
    weight = torch.randn(5, 3, 16)
    mask = two_four_mask(weight)
    groups = mask.unflatten(-1, (-1, 4))
    assert (groups.sum(-1) == 2).all()
    magnitudes = weight.abs().unflatten(-1, (-1, 4))
    smallest_kept = magnitudes.masked_fill(~groups, torch.inf).amin(-1)
    assert (smallest_kept >= magnitudes.masked_fill(groups, 0).amax(-1)).all()


def test_of_equal_magnitudes_the_first_two_stay():
    assert two_four_mask(torch.tensor([1.0, -1.0, 1.0, -1.0])).tolist() == [True, True, False, False]
    assert two_four_mask(torch.zeros(4)).tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_codes_bring_the_pruned_weight_back_bit_for_bit(dtype):
    weight = torch.randn(6, 20).to(dtype)
    pruned = weight * two_four_mask(weight)
    codes = two_four_codes(weight)
    assert torch.equal(codes.dense(), pruned) and torch.equal(two_four_codes(pruned).dense(), pruned)
    assert codes.nbytes == 60 * weight.element_size() + 16  # 60 places of 2 bits are 15 bytes, packed by eight: 16


def test_the_codes_of_a_large_weight_take_9_16_of_bf16_and_17_32_of_fp32():
    for dtype, share in ((torch.bfloat16, 9 / 16), (torch.float32, 17 / 32)):
        weight = torch.randn(64, 64).to(dtype)
        assert two_four_codes(weight).nbytes == share * weight.nbytes


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.93, 1])
def test_compressed_rows_and_bitmaps_hold_all_that_is_not_zero(sparsity):
    weight = torch.randn(17, 23)
    weight = weight * magnitude_mask(weight, sparsity)
    parts = csr_parts(weight)
    kept = int((weight != 0).sum())
    assert torch.equal(to_csr(weight).to_dense(), weight)
    assert sum(part.nbytes for part in parts.values()) == 8 * kept + 4 * 18
    bitmap = bitmap_parts(weight)
    assert sum(part.nbytes for part in bitmap.values()) == 4 * kept + -(-17 * 23 // 8)
    assert torch.equal(bitmap["values"], weight[weight != 0])


def test_compressed_rows_pay_from_the_break_even_sparsity_on():
    weight = torch.randn(256, 256)
    for value_bits, dtype in ((32, torch.float32), (16, torch.bfloat16)):
        at = break_even_sparsity(value_bits=value_bits)
        for sparsity, smaller in ((at - 0.02, False), (at + 0.02, True)):
            pruned = (weight * magnitude_mask(weight, sparsity)).to(dtype)
            parts = csr_parts(pruned)
            assert (parts["values"].nbytes + parts["columns"].nbytes < pruned.nbytes) == smaller
    assert break_even_sparsity(value_bits=32) == 0.5 and break_even_sparsity(value_bits=16) == pytest.approx(2 / 3)


def test_the_places_need_at_least_their_entropy():
    assert entropy_bits(0.5) == 1 and entropy_bits(0) == entropy_bits(1) == 0
    assert entropy_bits(0.9) == pytest.approx(0.469, abs=1e-3)


def test_a_file_is_as_large_as_it_says_and_shared_memory_is_written_once(tmp_path):
    weight = torch.randn(30, 20)
    (tmp_path / "one").write_bytes(save({"a": weight}))
    assert file_bytes({"a": weight}) == (tmp_path / "one").stat().st_size
    assert file_bytes({"a": weight, "b": weight}) < 1.2 * weight.nbytes
    assert file_bytes({"a": weight, "b": weight.clone()}) > 2 * weight.nbytes
    assert file_bytes({"a": weight.T, "b": weight[:5]}) > weight.nbytes
    assert list(load_file(tmp_path / "one")) == ["a"]


def test_a_masked_dense_file_is_no_smaller():
    weight = torch.randn(64, 64)
    assert file_bytes({"w": weight * magnitude_mask(weight, 0.9)}) == file_bytes({"w": weight})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_four_mask(torch.randn(3, 6)), "2:4 needs a width that is a multiple of 4, got 6"),
        (lambda: two_four_codes(torch.randn(3, 0)), "2:4 needs a width that is a multiple of 4, got 0"),
        (lambda: two_four_mask(torch.tensor([1.0, torch.nan, 1, 1])), "must be finite, and holds 1 NaN"),
        (lambda: two_four_parts(torch.ones(1, 4)), "two of each four weights can be stored, and 2 more are not zero"),
        (lambda: to_csr(torch.ones(4)), "compressed rows are those of a matrix, got shape (4,)"),
        (lambda: file_bytes({}), "a file is written of at least one tensor, got 0"),
        (lambda: break_even_sparsity(value_bits=0), "widths must be at least 1 bit, got 0 and 32"),
        (lambda: entropy_bits(1.5), "sparsity must be 0 to 1, got 1.5"),
    ],
)
def test_what_cannot_be_stored_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
