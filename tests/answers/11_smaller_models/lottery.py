"""Answers to `find_ticket`, exercise `lottery_rewind`."""

import copy

import torch

from qlab import sparsity
from tests.answers.bank import Bank

BANK = Bank("lottery-rewind")


def ones(weights):
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


def times(weights, masks):
    return {name: weight * masks[name] for name, weight in weights.items()}


def row(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def split(kept, like):
    parts = kept.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}


def cut(scores, masks, share):
    """Return masks without the share of what they hold with the smallest scores."""
    kept, values = row(masks).bool(), row(scores)
    gone = values.masked_fill(~kept, torch.inf).argsort()[: round(share * int(kept.sum()))]
    kept = kept.clone()
    kept[gone] = False
    return split(kept, masks)


def sizes(weights):
    return {name: weight.abs() for name, weight in weights.items()}


@BANK.right
def round_by_round(initial, train, rounds, share):
    masks = ones(initial)
    for _ in range(rounds):
        trained = train(times(initial, masks), masks)
        masks = cut(sizes(trained), masks, share)
    return times(initial, masks), masks


@BANK.right
def by_qlabs_masks(initial, train, rounds, share):
    masks = ones(initial)
    for done in range(1, rounds + 1):
        trained = train(times(initial, masks), masks)
        masks = sparsity.global_masks(trained, 1 - (1 - share) ** done, within=masks)
    return times(initial, masks), masks


@BANK.right
def initial_and_masks_apart(initial, train, rounds, share):
    masks = {name: torch.ones_like(weight) for name, weight in initial.items()}
    for _ in range(rounds):
        trained = train(initial, masks)
        left = torch.cat([trained[name][masks[name] == 1].abs() for name in initial])
        limit = left.sort().values[int(share * len(left))]
        masks = {name: masks[name] * (trained[name].abs() >= limit) for name in initial}
    return [times(initial, masks), masks]


@BANK.right
def by_recursion(initial, train, rounds, share):
    if rounds == 0:
        return {name: weight.clone() for name, weight in initial.items()}, ones(initial)
    weights, masks = by_recursion(initial, train, rounds - 1, share)
    masks = cut(sizes(train(weights, masks)), masks, share)
    return times(weights, masks), masks


@BANK.right
def by_quantiles_of_what_is_left(initial, train, rounds, share):
    masks = ones(initial)
    for _ in range(rounds):
        trained = train(copy.deepcopy(times(initial, masks)), masks)
        left = row(trained)[row(masks)].abs().double()
        masks = {name: masks[name] & (trained[name].abs().double() > left.quantile(share)) for name in masks}
    return times(initial, masks), masks


def loop(*, scores=lambda trained, initial: sizes(trained), start=times, after=None, prune=cut, end=None):
    """Make an answer from its pieces: how a round starts, what is pruned by, and what is returned."""

    def answer(initial, train, rounds, share):
        masks, weights, trained = ones(initial), {k: v.clone() for k, v in initial.items()}, initial
        for _ in range(rounds):
            trained = train(weights, masks)
            masks = prune(scores(trained, initial), masks, share)
            weights = start(initial if after is None else after(trained, initial), masks)
        return (times(initial, masks) if end is None else end(initial, trained, masks)), masks

    return answer


def random_like(_, initial):
    return {name: torch.randn(weight.shape) for name, weight in initial.items()}


def each_layer(scores, masks, share):
    return {name: cut({name: scores[name]}, {name: masks[name]}, share)[name] for name in masks}


def of_all(scores, masks, share):
    left = row(masks).sum().item()
    return cut(scores, masks, min(1.0, share * len(row(masks)) / max(left, 1)))


def anew(scores, masks, share):
    return cut(scores, ones(masks), share)


def wrong(name, misconception, **pieces):
    BANK.add(name, loop(**pieces), misconception=misconception)


wrong("new_random_weights", "re-initializes", after=random_like, end=lambda i, t, m: times(random_like(0, i), m))
wrong("new_random_weights_each_round", "re-initializes", after=random_like)
wrong("goes_on_from_trained", "keeps-the-trained-weights", after=lambda t, i: t, end=lambda i, t, m: times(t, m))
wrong("rewinds_at_the_end_only", "keeps-the-trained-weights", after=lambda t, i: t)
wrong("returns_trained", "keeps-the-trained-weights", end=lambda i, t, m: times(t, m))
wrong("returns_uncut", "leaves-the-cut-weights", end=lambda i, t, m: dict(i))
wrong("by_initial_magnitude", "prunes-by-initial-magnitude", scores=lambda t, i: sizes(i))
wrong("the_largest_go", "cuts-the-largest", scores=lambda t, i: {k: -v.abs() for k, v in t.items()})
wrong("signed", "ignores-the-sign", scores=lambda t, i: t)
wrong("layer_by_layer", "per-layer-threshold", prune=each_layer)
wrong("share_of_all", "share-of-all", prune=of_all)
wrong("forgets_the_old_mask", "forgets-earlier-rounds", prune=anew)
wrong(
    "by_movement",
    "wrong-value",
    scores=lambda t, i: {k: (t[k] - i[k]).abs() for k in t},
)


@BANK.wrong("inverted-mask")
def marks_what_goes(initial, train, rounds, share):
    weights, masks = round_by_round(initial, train, rounds, share)
    return weights, {name: ~mask for name, mask in masks.items()}


@BANK.wrong("trains-another-number-of-times")
def one_shot(initial, train, rounds, share):
    masks = cut(sizes(train(initial, ones(initial))), ones(initial), 1 - (1 - share) ** rounds)
    return times(initial, masks), masks


@BANK.wrong("trains-another-number-of-times")
def trains_the_ticket_too(initial, train, rounds, share):
    weights, masks = round_by_round(initial, train, rounds, share)
    train(weights, masks)
    return weights, masks


@BANK.wrong("changes-the-initial")
def in_place(initial, train, rounds, share):
    masks = ones(initial)
    for _ in range(rounds):
        masks = cut(sizes(train(initial, masks)), masks, share)
        for name, weight in initial.items():
            weight.mul_(masks[name])
    return initial, masks


@BANK.wrong("returns-wrong-type")
def only_the_weights(initial, train, rounds, share):
    return round_by_round(initial, train, rounds, share)[0]["first"]


@BANK.wrong("trains-without-its-masks")
def masks_of_the_first_round(initial, train, rounds, share):
    every = ones(initial)
    return round_by_round(initial, lambda weights, masks: train(weights, every), rounds, share)


@BANK.wrong("swaps-the-results")
def masks_first(initial, train, rounds, share):
    return round_by_round(initial, train, rounds, share)[::-1]


@BANK.wrong("keeps-the-share")
def share_is_what_stays(initial, train, rounds, share):
    return round_by_round(initial, train, rounds, 1 - share)


@BANK.wrong("threshold-moves-the-count")
def at_the_threshold_too(initial, train, rounds, share):
    masks = ones(initial)
    for _ in range(rounds):
        trained = train(times(initial, masks), masks)
        left = row(trained)[row(masks)].abs()
        limit = left.sort().values[int(share * len(left))]
        masks = {name: masks[name] & (trained[name].abs() > limit) for name in masks}
    return times(initial, masks), masks


@BANK.right
def in_place_on_its_own_copies(initial, train, rounds, share):
    weights = {name: weight.clone() for name, weight in initial.items()}
    masks = {name: torch.ones_like(weight) for name, weight in initial.items()}
    for _ in range(rounds):
        trained = train(weights, masks)
        kept = cut(sizes(trained), {name: mask.bool() for name, mask in masks.items()}, share)
        for name, mask in masks.items():
            mask.mul_(kept[name])
            weights[name].mul_(kept[name])
    return weights, masks


@BANK.wrong("trains-cut-weights")
def trains_all_again(initial, train, rounds, share):
    masks = ones(initial)
    for _ in range(rounds):
        masks = cut(sizes(train(initial, ones(initial))), masks, share)
    return times(initial, masks), masks


@BANK.wrong("returns-nothing")
def returns_nothing(initial, train, rounds, share):
    round_by_round(initial, train, rounds, share)


@BANK.crashes
def multiplies_dicts(initial, train, rounds, share):
    return initial * ones(initial), ones(initial)
