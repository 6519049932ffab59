"""The roofline: no kernel is faster than its arithmetic, nor faster than its traffic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What a machine can do at most in a second: operations of one kind, and bytes from and to its memory.

    Units:   a multiply-add is two operations; TB is 10¹² bytes.
    """

    name: str
    operations_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """Operations per byte at which arithmetic and traffic take equally long."""
        return self.operations_per_s / self.bytes_per_s


# NVIDIA 2024, H200 Tensor Core GPU datasheet (SXM): dense rates, half of those it prints "with sparsity"
H200_BF16 = Rates("H200, BF16", 989e12, 4.8e12)
H200_INT8 = Rates("H200, int8", 1979e12, 4.8e12)


@dataclass(frozen=True)
class Work:
    """What a kernel has to do: operations, and bytes that must cross the memory bus at least once."""

    operations: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes

    def least_seconds(self, rates: Rates) -> float:
        """Return the time below which no kernel can do this work on such a machine.

        Source:  Williams, Waterman and Patterson 2009, "Roofline", Communications of the ACM 52(4).
        """
        return max(self.operations / rates.operations_per_s, self.bytes / rates.bytes_per_s)


def linear_work(tokens: int, width: int, *, weight_bits: float, activation_bits: float, out_bits: float = 16) -> Work:
    """Return the work of a square linear layer: weight and input read once, output written once.

    Units:   bits of one stored value, constants of a quantized weight included where `weight_bits` includes them.
    Errors:  ValueError if `tokens` or `width` is below 1, or a number of bits is not above 0.
    """
    if min(tokens, width) < 1:
        raise ValueError(f"tokens and width must be at least 1, got {tokens} and {width}")
    if not all(bits > 0 for bits in (weight_bits, activation_bits, out_bits)):
        raise ValueError(f"bits must be above 0, got {weight_bits}, {activation_bits} and {out_bits}")
    bits = width * width * weight_bits + tokens * width * (activation_bits + out_bits)
    return Work(2.0 * tokens * width * width, bits / 8)
