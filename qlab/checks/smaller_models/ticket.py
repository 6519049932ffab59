"""Check of `find_ticket`: rounds of training and pruning, each begun again from the initial weights that are left."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qlab import sparsity as reference
from qlab.checks import probe
from qlab.checks.handed import handed_named
from qlab.checks.learner import LearnerFunction
from qlab.checks.report import Refused, check, part, require
from qlab.checks.smaller_models.reading import State, as_mask, as_state, copied
from qlab.checks.smaller_models.topic import TOPIC
from qlab.checks.smaller_models.trainer import SHAPES, Trainer

CALL = "find_ticket(initial, train, rounds, share)"
KEEPS = "`share` is what a round cuts: 0.25 leaves three quarters of what was left."
MOVES = "One weight too many or too few goes in a round: does the one at the threshold stay?"


@check(TOPIC, "lottery-rewind", reference.iterative_pruning, points=5, forbids=("torch.nn.utils.prune",))
def check_find_ticket(find_ticket: LearnerFunction, draw: torch.Generator) -> None:
    """Check `find_ticket(initial, train, rounds, share)`, which returns the ticket's weights and its masks."""
    with part("one round: the smallest trained weights go, the others are as they began"):
        _require_ticket(find_ticket, draw, rounds=1, share=0.25)
    with part("each round cuts its share of what is left, and nothing comes back"):
        _require_ticket(find_ticket, draw, rounds=3, share=0.5)
    with part("every round trains what is left of the initial weights"):
        _require_rounds(find_ticket, draw, rounds=3, share=0.5)
    with part("another share"):
        _require_ticket(find_ticket, draw, rounds=2, share=0.25)
    with part("no rounds: everything stays, nothing is trained"):
        _require_ticket(find_ticket, draw, rounds=0, share=0.5)


def _initial(draw: torch.Generator) -> State:
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def _run(
    find_ticket: LearnerFunction, draw: torch.Generator, rounds: int, share: float
) -> tuple[State, Trainer, State, State]:
    initial, trainer = _initial(draw), Trainer(draw)
    returned, given = probe.with_what_is_left(find_ticket, copied(initial), trainer, rounds, share)
    require(
        isinstance(returned, tuple | list) and len(returned) == 2,
        f"`{CALL}` returned {type(returned).__name__}, expected (weights, masks)",
        misconception="returns-nothing" if returned is None else "returns-wrong-type",
        thought="Return two dicts, the ticket's weights and its masks: `return weights, masks`.",
    )
    require(
        not (_is_mask(returned[0]) and not _is_mask(returned[1])),
        f"`{CALL}` returned masks first, expected (weights, masks)",
        misconception="swaps-the-results",
        thought="The ticket's weights come first, then its masks: `return weights, masks`.",
    )
    weights = as_state(returned[0], initial, call=CALL)
    masks = as_state(returned[1], initial, call=CALL)
    masks = {name: as_mask(masks[name], initial[name], call=CALL) for name in SHAPES}
    require(
        all(torch.equal(given[name], initial[name]) for name in SHAPES),
        "the initial weights you were given have changed",
        misconception="changes-the-initial",
        thought="Every round goes back to them: multiply into a new tensor, never in place.",
    )
    require(
        trainer.calls == rounds,
        f"`train` was called {trainer.calls} times in {rounds} rounds",
        misconception="trains-another-number-of-times",
        thought="Train once in each round, then cut. The ticket itself is returned untrained.",
    )
    return initial, trainer, {name: weights[name].float() for name in SHAPES}, masks


def _is_mask(state: Any) -> bool:
    try:
        values = handed_named(state, SHAPES, what="the masks", floating=False).values()
    except (ValueError, TypeError, RuntimeError):  # other names or shapes, or no numbers: refused by their own names
        return False
    return all(bool(((tensor == 0) | (tensor == 1)).all()) for tensor in values)


def _require_ticket(find_ticket: LearnerFunction, draw: torch.Generator, *, rounds: int, share: float) -> None:
    initial, trainer, weights, masks = _run(find_ticket, draw, rounds, share)
    want = _masks_of(trainer, initial, share)
    _require_masks(masks, want[-1], trainer, initial, share)
    _require_rewound(weights, masks, trainer, initial)


def _masks_of(trainer: Trainer, initial: State, share: float) -> list[Tensor]:
    """Return the mask after each round that follows from the trained weights, all layers in one row."""
    masks = [torch.ones(sum(t.numel() for t in initial.values()), dtype=torch.bool)]
    for ended in trainer.ended:
        masks.append(_cut(_row(ended).abs(), masks[-1], share))
    return masks


def _row(state: State) -> Tensor:
    return torch.cat([state[name].reshape(-1) for name in SHAPES])


def _cut(scores: Tensor, mask: Tensor, share: float, more: int = 0) -> Tensor:
    """Return the mask without the `share` of what it holds that has the smallest scores, and a few `more`."""
    cut = round(share * int(mask.sum())) + more
    smallest = scores.masked_fill(~mask, torch.inf).argsort()[:cut]
    return mask.clone().index_fill_(0, smallest, False)


def _require_masks(masks: State, want: Tensor, trainer: Trainer, initial: State, share: float) -> None:
    got = _row(masks).bool()
    if torch.equal(got, want):
        return
    message = (
        f"after {len(trainer.ended)} rounds {int(got.sum())} of {len(got)} weights stay, expected {int(want.sum())}"
    )
    if int(got.sum()) == int(want.sum()):
        message = f"{int((got != want).sum()) // 2} of the {int(want.sum())} weights that stay are not those expected"
    for misconception, thought, fits in _mask_slips(trainer, initial, share):
        if fits(got):
            raise Refused(message, misconception=misconception, thought=thought)
    raise Refused(
        message,
        misconception="wrong-value",
        thought="Print after each round how many weights are left, and the largest trained magnitude that went.",
    )


def _mask_slips(trainer: Trainer, initial: State, share: float) -> list[tuple[str, str, Callable[[Tensor], bool]]]:
    everything = torch.ones(len(_row(initial)), dtype=torch.bool)

    def repeated(
        scores: Callable[[State], Tensor], start_anew: bool = False, share: float = share, more: int = 0
    ) -> Tensor:
        mask = everything
        for ended in trainer.ended:
            mask = _cut(scores(ended), everything if start_anew else mask, share, more)
        return mask

    def per_layer() -> Tensor:
        mask = everything
        for ended in trainer.ended:
            sizes = [ended[name].numel() for name in SHAPES]
            layers = zip(_row(ended).abs().split(sizes), mask.split(sizes), strict=True)
            mask = torch.cat([_cut(scores, of_layer, share) for scores, of_layer in layers])
        return mask

    def of_all() -> Tensor:
        mask = everything
        for ended in trainer.ended:
            left, cut = int(mask.sum()), share * len(everything)
            mask = _cut(_row(ended).abs(), mask, min(1.0, cut / left)) if left else mask
        return mask

    fits = (
        (
            "prunes-by-initial-magnitude",
            "You cut by the magnitudes the weights began with: training decides which of them matter.",
            lambda: repeated(lambda _: _row(initial).abs()),
        ),
        ("cuts-the-largest", "The smallest trained magnitudes go.", lambda: repeated(lambda e: -_row(e).abs())),
        (
            "ignores-the-sign",
            "Compare magnitudes: a weight of −3 is a large one.",
            lambda: repeated(_row),
        ),
        ("keeps-the-share", KEEPS, lambda: repeated(lambda e: _row(e).abs(), share=1 - share)),
        ("threshold-moves-the-count", MOVES, lambda: repeated(lambda e: _row(e).abs(), more=1)),
        ("threshold-moves-the-count", MOVES, lambda: repeated(lambda e: _row(e).abs(), more=-1)),
        (
            "per-layer-threshold",
            "The share is of all layers together: one threshold for all.",
            per_layer,
        ),
        (
            "share-of-all",
            "A round cuts its share of the weights that are *left*, not of all there were.",
            of_all,
        ),
        (
            "forgets-earlier-rounds",
            "What an earlier round cut must stay away: start each round from the mask of the last.",
            lambda: repeated(lambda e: _row(e).abs(), start_anew=True),
        ),
    )
    found = [(name, thought, lambda got, slip=slip: torch.equal(got, slip())) for name, thought, slip in fits]
    right = _masks_of(trainer, initial, share)[-1]
    return [*found, ("inverted-mask", "True stands for a weight that stays.", lambda got: torch.equal(~got, right))]


def _require_rewound(weights: State, masks: State, trainer: Trainer, initial: State) -> None:
    got, kept, began = _row(weights), _row(masks).bool(), _row(initial)
    if torch.equal(got, began * kept):
        return
    thought = "Rewinding means: the weights that stay get the values they began with, and the others are zero."
    message = f"{int((got != began * kept).sum())} of {len(got)} weights of the ticket are not their initial value or 0"
    if torch.equal(got[kept], began[kept]):
        raise Refused(
            message, misconception="leaves-the-cut-weights", thought="Multiply by the mask: what is cut is 0."
        )
    if any(torch.equal(got[kept], _row(ended)[kept]) for ended in trainer.ended):
        raise Refused(message, misconception="keeps-the-trained-weights", thought=thought)
    raise Refused(message, misconception="re-initializes", thought=thought)


def _require_rounds(find_ticket: LearnerFunction, draw: torch.Generator, *, rounds: int, share: float) -> None:
    initial, trainer, _, _ = _run(find_ticket, draw, rounds, share)
    began = _row(initial)
    for number, begun in enumerate(map(_row, trainer.begun)):
        alive = begun != 0
        given = trainer.masks[number]
        require(
            given is None or number == 0 or torch.equal(_row(given), alive),
            f"round {number + 1} of {rounds} got masks with {0 if given is None else int(_row(given).sum())} weights"
            f" True, where {int(alive.sum())} are left",
            misconception="trains-without-its-masks",
            thought="Hand `train` the masks of this round: under a mask of True, what was cut would grow back.",
        )
        message = f"round {number + 1} of {rounds} trained other values than the initial ones that are left"
        if torch.equal(begun, began * alive):
            left = round(len(began) * (1 - share) ** number)
            require(
                int(alive.sum()) == left or number == 0,
                f"round {number + 1} trained {int(alive.sum())} weights, expected {left} that are left",
                misconception="trains-cut-weights",
                thought="What was cut is zero when the next round begins: multiply the initial weights by the mask.",
            )
            continue
        before = _row(trainer.ended[number - 1]) if number else began
        if torch.equal(begun[alive], before[alive]):
            raise Refused(
                message,
                misconception="keeps-the-trained-weights",
                thought="The next round begins from the initial weights, not from where training ended: rewind.",
            )
        raise Refused(
            message,
            misconception="re-initializes",
            thought="New random weights lose the ticket: keep the initial ones, and go back to them each round.",
        )
