"""Handwritten digits that scikit-learn carries with it: 1,797 images of 8 × 8 pixels, split once and for all."""

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

VALIDATION, TEST = 350, 350
LARGEST_PIXEL = 16
SPLIT_SEED = 0


class LabeledImages(NamedTuple):
    """Images, one in each row, and the digit on each.

    Units:   pixels are 0 (paper) to 1 (ink).
    """

    images: Float[Tensor, "n 64"]
    labels: Int[Tensor, " n"]


class Digits(NamedTuple):
    """What is trained on, what is chosen on, and what is only reported on."""

    train: LabeledImages
    validation: LabeledImages
    test: LabeledImages


@functools.cache
def load_digits_split() -> Digits:
    """Return the digits in a fixed, shuffled split of 1,097, 350 and 350 images; nothing is downloaded.

    Source:  Alpaydin and Kaynak 1998, *Optical recognition of handwritten digits*, UCI, doi:10.24432/C50P49.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second, and few need it

    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(pixels).float() / LARGEST_PIXEL, torch.from_numpy(labels).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    parts = order.split([len(order) - VALIDATION - TEST, VALIDATION, TEST])
    return Digits(*(LabeledImages(images[part], labels[part]) for part in parts))
