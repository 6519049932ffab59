"""The digits: a fixed split that is disjoint, whole and balanced."""

import torch

from qlab.digits import load_digits_split


def test_the_split_is_whole_disjoint_and_the_same_each_time():
    digits = load_digits_split()
    assert [len(part.labels) for part in digits] == [1097, 350, 350]
    images = torch.cat([part.images for part in digits])
    assert images.shape == (1797, 64) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert len(images.unique(dim=0)) == 1797
    load_digits_split.cache_clear()
    assert all(torch.equal(a.images, b.images) for a, b in zip(digits, load_digits_split(), strict=True))


def test_each_part_has_every_digit():
    for part in load_digits_split():
        counts = torch.bincount(part.labels, minlength=10)
        assert part.labels.dtype == torch.int64 and counts.min() > 0.06 * len(part.labels)
