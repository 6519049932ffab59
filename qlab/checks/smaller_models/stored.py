"""Check of `stored_bytes`: what a pruned weight takes in a file, as it is, with a bitmap, and in rows of indices."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qlab import sparsity as reference
from qlab.checks.expect import Suspect
from qlab.checks.learner import LearnerFunction
from qlab.checks.numbers import doubles, drawn, require_numbers
from qlab.checks.report import check, part, require
from qlab.checks.smaller_models.topic import TOPIC

FORMS = ("dense", "bitmap", "csr")
Sizes = tuple[Tensor, int, int]


@check(TOPIC, "half-the-weights", reference.bitmap_parts, reference.csr_parts, reference.file_bytes, points=4)
def check_stored_bytes(stored_bytes: LearnerFunction, draw: torch.Generator) -> None:
    """Check `stored_bytes(weight, value_bytes, index_bytes)`, which returns bytes dense, with a bitmap, and as CSR."""
    with part("dense: zeros are values too"):
        _require_bytes(stored_bytes, _cases(draw), "dense")
    with part("a bitmap and the values that stay"):
        _require_bytes(stored_bytes, _cases(draw), "bitmap")
    with part("compressed rows: a column for each value, and where rows begin"):
        _require_bytes(stored_bytes, _cases(draw), "csr")
    with part("nothing cut, and everything"):
        full = [(torch.ones(6, 8), 2, 4), (torch.zeros(5, 7), 4, 4)]  # 48 bits are whole bytes
        for form in FORMS:
            _require_bytes(stored_bytes, full, form)


def _cases(draw: torch.Generator) -> list[Sizes]:
    cases = []
    for value_bytes, index_bytes in ((2, 4), (4, 4), (1, 2)):
        weight = torch.randn(drawn(5, 9, draw), 2 * drawn(4, 8, draw) + 1, generator=draw)
        cut = torch.rand(weight.shape, generator=draw) < 0.2 + 0.6 * torch.rand((), generator=draw)
        cases.append((weight.masked_fill(cut, 0.0), value_bytes, index_bytes))
    return cases


def _kept(weight: Tensor) -> int:
    return int(weight.count_nonzero())


def _right(weight: Tensor, value_bytes: int, index_bytes: int) -> dict[str, int]:
    kept = _kept(weight)
    return {
        "dense": weight.numel() * value_bytes,
        "bitmap": kept * value_bytes + -(-weight.numel() // 8),
        "csr": kept * (value_bytes + index_bytes) + (len(weight) + 1) * index_bytes,
    }


def _require_bytes(stored_bytes: LearnerFunction, cases: list[Sizes], form: str) -> None:
    returned = [stored_bytes(*case) for case in cases]
    for value in returned:
        require(
            value is not None,
            "`stored_bytes(weight, value_bytes, index_bytes)` returned None",
            misconception="returns-nothing",
            thought="Your function computes something but does not hand it back: does it end in `return`?",
        )
        require(
            isinstance(value, list | tuple | Tensor | np.ndarray) and len(value) == len(FORMS),
            f"`stored_bytes(weight, value_bytes, index_bytes)` returned {value!r:.60}, expected three numbers",
            misconception="returns-wrong-type",
            thought="Return bytes dense, with a bitmap, and as CSR, in this order.",
        )
    require_numbers(
        [value[FORMS.index(form)] for value in returned],
        [_right(*case)[form] for case in cases],
        calls=[
            f"stored_bytes({w.shape[0]} × {w.shape[1]} with {_kept(w)} left, {v}, {i})[{FORMS.index(form)}]"
            for w, v, i in cases
        ],
        suspects=lambda: _suspects(cases, form),
    )


def _suspects(cases: list[Sizes], form: str) -> list[Suspect]:
    def slip(misconception: str, thought: str, formula: Callable[[Tensor, int, int], float]) -> Suspect:
        return Suspect(misconception, thought, doubles([formula(*case) for case in cases]))

    values_only = slip(
        "zeros-cost-nothing",
        "A file of the kept values alone cannot say where they belong; and a dense tensor stores its zeros.",
        lambda w, v, i: _kept(w) * v,
    )
    common = [
        values_only,
        slip(
            "counts-the-zeros",
            "You count the zeros: the values that are *not* zero are stored.",
            lambda w, v, i: _right((w == 0).float(), v, i)[form],
        ),
        slip(
            "returns-another-order",
            "Return the bytes dense, with a bitmap, and as CSR, in this order.",
            lambda w, v, i: _right(w, v, i)[{"bitmap": "csr", "csr": "bitmap", "dense": "csr"}[form]],
        ),
        slip("counts-values", "The question is bytes: multiply by the bytes of a value.", lambda w, v, i: w.numel()),
    ]
    named = {
        "dense": [
            slip(
                "takes-the-tensors-bytes",
                "A value takes `value_bytes` in the file, whatever it takes in this tensor.",
                lambda w, v, i: w.nbytes,
            ),
        ],
        "bitmap": [
            slip(
                "a-byte-for-a-bit",
                "A bitmap takes one *bit* for each place: eight places a byte.",
                lambda w, v, i: _kept(w) * v + w.numel(),
            ),
            slip(
                "rounds-bits-down",
                "The last byte is begun even if it is not full: round up.",
                lambda w, v, i: _kept(w) * v + w.numel() // 8,
            ),
            slip(
                "begins-a-byte-too-many",
                "n // 8 + 1 begins one more byte where the bits fill whole ones: ⌈n / 8⌉ is `(n + 7) // 8`.",
                lambda w, v, i: _kept(w) * v + w.numel() // 8 + 1,
            ),
            slip(
                "rounds-each-row-up",
                "The bits of all rows stand in one row: round up once, at its end.",
                lambda w, v, i: _kept(w) * v + len(w) * -(-w.shape[1] // 8),
            ),
            slip(
                "bits-of-what-stays",
                "Every place has a bit, the cut ones too: that is how a reader knows.",
                lambda w, v, i: _kept(w) * v + -(-_kept(w) // 8),
            ),
            slip(
                "keeps-the-zeros",
                "Only the values that stay are stored.",
                lambda w, v, i: w.numel() * v + -(-w.numel() // 8),
            ),
        ],
        "csr": [
            slip(
                "forgets-row-starts",
                "Where does a row begin? One index for each row, and one for the end of the last.",
                lambda w, v, i: _kept(w) * (v + i),
            ),
            slip(
                "one-row-start-too-few",
                "Rows + 1: the end of the last row is stored too.",
                lambda w, v, i: _kept(w) * (v + i) + len(w) * i,
            ),
            slip(
                "forgets-columns",
                "Each value has its column beside it.",
                lambda w, v, i: _kept(w) * v + (len(w) + 1) * i,
            ),
            slip(
                "row-and-column-for-each",
                "A row *and* a column for each value is the coordinate form: store where each row begins.",
                lambda w, v, i: _kept(w) * (v + 2 * i),
            ),
            slip(
                "compresses-columns",
                "Row starts: one more than there are rows, not columns.",
                lambda w, v, i: _kept(w) * (v + i) + (w.shape[1] + 1) * i,
            ),
        ],
    }
    return [*named[form], *common]
