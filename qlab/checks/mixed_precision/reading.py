"""What the checks of topic 06 share: the topic, and reading truth values."""

from typing import Any

from qlab.checks.expect import as_number
from qlab.checks.report import require

TOPIC = "06_mixed_precision"


def as_truth(value: Any, *, call: str) -> bool:
    """Read a truth value from a bool, a number 0 or 1, or a tensor or array of one.

    Errors:  Refused, with the misconception `returns-nothing` or `returns-wrong-type`.
    """
    number = as_number(value, call=call)
    require(
        number in (0.0, 1.0),
        f"`{call}` returned {number:g}, expected True or False",
        misconception="returns-wrong-type",
        thought="Return a bool, as the signature says.",
    )
    return bool(number)
