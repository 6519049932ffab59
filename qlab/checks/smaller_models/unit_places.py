"""Which units of a large pair of layers a smaller pair holds, and what that proves about a wrong output."""

from collections.abc import Callable

from torch import Tensor, nn

from qlab.checks.report import Refused

Pair = tuple[nn.Linear, nn.Linear]


def refuse_what_is_proved(
    smaller: Pair, pair: Pair, message: str, *, right: Callable[[Callable[[Tensor], Tensor]], bool]
) -> None:
    """Name what is wrong with a smaller pair, if its weights are copies of the large pair's and tell it.

    Errors:  Refused, with the misconception `invents-a-bias`, `loses-the-bias` or `orders-differ`.
    """
    rows = _places(smaller[0].weight, pair[0].weight)
    columns = _places(smaller[1].weight.t(), pair[1].weight.t())
    if rows is None or columns is None:
        return
    if sorted(rows) == sorted(columns) and rows != columns:
        raise Refused(
            message,
            misconception="orders-differ",
            thought="Unit 0 of the first layer must be unit 0 of the second: index both with the same row of places.",
        )
    if rows != columns or not right(_with_biases_of(pair, smaller, rows)):
        return
    if pair[0].bias is None:
        raise Refused(
            message,
            misconception="invents-a-bias",
            thought="A new `nn.Linear` draws a bias unless you say `bias=False`: these layers had none.",
        )
    raise Refused(
        message,
        misconception="loses-the-bias",
        thought="A new `nn.Linear` needs the kept units' own biases, and the second layer's bias as it was.",
    )


def holds_rows_of(smaller: Pair, pair: Pair) -> bool:
    """Tell whether the smaller first layer holds rows of the large one's."""
    return _places(smaller[0].weight, pair[0].weight) is not None


def _places(few: Tensor, many: Tensor) -> list[int] | None:
    """Return where each of a few rows stands among many; None if one of them is not there."""
    equal = (few.detach()[:, None].to(many.dtype) == many.detach()[None]).all(dim=2)
    return equal.int().argmax(dim=1).tolist() if bool(equal.any(dim=1).all()) else None


def _with_biases_of(pair: Pair, smaller: Pair, units: list[int]) -> Callable[[Tensor], Tensor]:
    """Return what the smaller pair computes with the large one's biases in the place of its own."""

    def output(x: Tensor) -> Tensor:
        bias = None if pair[0].bias is None else pair[0].bias[units]
        hidden = nn.functional.linear(x, smaller[0].weight.to(x.dtype), bias).relu()
        return nn.functional.linear(hidden, smaller[1].weight.to(x.dtype), pair[1].bias)

    return output
