"""Sparsity: fewer weights. By magnitude, in a 2:4 pattern, by whole units, and as lottery tickets."""

from qlab.sparsity.lottery import LotteryRound, iterative_pruning, reinitialize, rewind
from qlab.sparsity.magnitude import (
    Masks,
    apply_masks,
    global_masks,
    magnitude_mask,
    masks_kept,
    per_layer_masks,
    prunable_weights,
    random_masks,
    sparsity_of,
)
from qlab.sparsity.storage import (
    bitmap_parts,
    break_even_sparsity,
    csr_parts,
    entropy_bits,
    file_bytes,
    to_csr,
    two_four_parts,
)
from qlab.sparsity.structured import largest_units, remove_ffn_units, remove_units, unit_scores
from qlab.sparsity.two_four import TwoFourCodes, two_four_codes, two_four_mask

__all__ = [
    "LotteryRound",
    "Masks",
    "TwoFourCodes",
    "apply_masks",
    "bitmap_parts",
    "break_even_sparsity",
    "csr_parts",
    "entropy_bits",
    "file_bytes",
    "global_masks",
    "iterative_pruning",
    "largest_units",
    "magnitude_mask",
    "masks_kept",
    "per_layer_masks",
    "prunable_weights",
    "random_masks",
    "reinitialize",
    "remove_ffn_units",
    "remove_units",
    "rewind",
    "sparsity_of",
    "to_csr",
    "two_four_codes",
    "two_four_mask",
    "two_four_parts",
    "unit_scores",
]
