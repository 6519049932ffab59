"""Softmax in pieces: it never overflows, never makes NaN of a masked row, and merges in any order."""

import itertools
import re

import pytest
import torch

from qlab.attention import Partial, merge, partial, safe_softmax
from qlab.attention.softmax import nothing_seen

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_is_torchs(dtype):
    scores = (10 * draw(3, 5, 7)).to(dtype)
    torch.testing.assert_close(safe_softmax(scores), torch.softmax(scores, -1))


def test_softmax_of_scores_whose_exponentials_overflow():
    found = safe_softmax(torch.tensor([[60000.0, 60000.0, 59968.0, -60000.0]], dtype=torch.float16))
    assert found.tolist() == [[0.5, 0.5, 0.0, 0.0]]  # e⁻³² rounds to 0 in FP16


def test_a_row_with_every_key_masked_has_weights_of_zero():
    scores = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf]])
    assert safe_softmax(scores).tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert safe_softmax(torch.zeros(3, 0)).shape == (3, 0)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_scores_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=re.escape("scores must be below +inf and no NaN")):
        safe_softmax(torch.tensor([0.0, wrong]))


def test_softmax_has_torchs_gradient():
    scores = draw(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(safe_softmax, scores)


def pieces(scale: float = 1.0) -> tuple[list[Partial], torch.Tensor, torch.Tensor]:
    q, k, v = scale * draw(2, 5, 8), draw(2, 12, 8, seed=1), draw(2, 12, 8, seed=2)
    parts = [partial(q, k[:, cut], v[:, cut]) for cut in (slice(0, 3), slice(3, 4), slice(4, 12))]
    scores = q @ k.mT / 8**0.5
    return parts, torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1, keepdim=True)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_pieces_merge_to_the_whole_in_any_order(scale, order):
    parts, expected, log_sum_exp = pieces(scale)
    a, b, c = (parts[place] for place in order)
    for merged in (merge(merge(a, b), c), merge(a, merge(b, c))):
        output, found = merged.finish()
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(found, log_sum_exp)


def test_nothing_merges_to_the_other_side_and_masked_rows_make_no_nan():
    (a, *_), *_ = pieces()
    q = draw(2, 5, 8)
    empty = nothing_seen(q)
    assert torch.equal(partial(q, q[:, :0], q[:, :0]).maximum, empty.maximum)
    for merged in (merge(a, empty), merge(empty, a)):
        assert all(torch.equal(x, y) for x, y in zip(vars(merged).values(), vars(a).values(), strict=True))
    output, log_sum_exp = merge(empty, empty).finish()
    assert not output.any() and bool((log_sum_exp == -torch.inf).all())


def test_a_hidden_key_is_as_if_it_were_not_there():
    q, k, v = draw(1, 4, 8), draw(1, 6, 8, seed=1), draw(1, 6, 8, seed=2)
    hidden = torch.arange(6) >= 4
    with_mask, without = partial(q, k, v, hidden=hidden), partial(q, k[:, :4], v[:, :4])
    for x, y in zip(vars(with_mask).values(), vars(without).values(), strict=True):
        torch.testing.assert_close(x, y)
    masked = partial(q, k, v, hidden=torch.ones(4, 6, dtype=torch.bool))
    assert bool((masked.maximum == -torch.inf).all()) and not masked.total.any() and not masked.output.any()


def test_the_scale_can_be_given_and_leading_axes_are_free():
    q, k, v = draw(2, 3, 4, 8), draw(2, 3, 6, 8, seed=1), draw(2, 3, 6, 8, seed=2)
    output, _ = partial(q, k, v, scale=0.5).finish()
    torch.testing.assert_close(output, torch.softmax(q @ k.mT * 0.5, -1) @ v)
