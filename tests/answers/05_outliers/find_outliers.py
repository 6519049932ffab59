"""Answers to `find_outliers`."""

import numpy as np
import torch

from qlab import outliers
from tests.answers.bank import Bank

BANK = Bank("find-outliers")


def shares(layers, magnitude):
    """Return the share of layers and that of tokens for each dimension."""
    large = torch.stack([x.abs() >= magnitude for x, _ in layers])
    return large.any(1).float().mean(0), large.float().mean((0, 1))


@BANK.right
def with_shares(layers, magnitude, layer_share, token_share):
    by_layer, by_token = shares(layers, magnitude)
    return ((by_layer >= layer_share) & (by_token >= token_share)).nonzero().flatten()


@BANK.right
def by_qlab(layers, magnitude, layer_share, token_share):
    rule = outliers.OutlierRule(magnitude=float(magnitude), layer_share=layer_share, token_share=token_share)
    return outliers.find_outliers([x for x, _ in layers], rule)


@BANK.right
def by_counting(layers, magnitude, layer_share, token_share):
    found = []
    for j in range(layers[0][0].shape[1]):
        counts = [sum(abs(value) >= magnitude for value in x[:, j].tolist()) for x, _ in layers]
        enough_layers = sum(count > 0 for count in counts) >= layer_share * len(layers)
        if enough_layers and sum(counts) >= token_share * sum(len(x) for x, _ in layers):
            found.append(j)
    return found


@BANK.right
def in_numpy_from_the_last(layers, magnitude, layer_share, token_share):
    x = np.abs(np.stack([x.numpy() for x, _ in layers])) >= magnitude
    return np.flatnonzero((x.any(1).mean(0) >= layer_share) & (x.mean((0, 1)) >= token_share))[::-1].copy()


@BANK.right
def as_a_mask(layers, magnitude, layer_share, token_share):
    by_layer, by_token = shares(layers, magnitude)
    return (by_layer >= layer_share) & (by_token >= token_share)


@BANK.right
def as_torch_where_gives_it(layers, magnitude, layer_share, token_share):
    return torch.where(as_a_mask(layers, magnitude, layer_share, token_share))


@BANK.right
def as_a_set(layers, magnitude, layer_share, token_share):
    return set(by_counting(layers, magnitude, layer_share, token_share))


@BANK.wrong("looks-at-weights")
def the_weights(layers, magnitude, layer_share, token_share):
    return with_shares([(weight, x) for x, weight in layers], magnitude, layer_share, token_share)


@BANK.wrong("looks-at-signed-values")
def without_magnitudes(layers, magnitude, layer_share, token_share):
    return with_shares([(x.clamp(min=0), weight) for x, weight in layers], magnitude, layer_share, token_share)


@BANK.wrong("one-token-decides")
def the_layers_only(layers, magnitude, layer_share, token_share):
    return (shares(layers, magnitude)[0] >= layer_share).nonzero().flatten()


@BANK.wrong("one-layer-decides")
def the_tokens_only(layers, magnitude, layer_share, token_share):
    return (shares(layers, magnitude)[1] >= token_share).nonzero().flatten()


@BANK.wrong("one-layer-decides")
def enough_tokens_of_any_layer(layers, magnitude, layer_share, token_share):
    found = set()
    for x, _ in layers:
        found |= set(((x.abs() >= magnitude).float().mean(0) >= token_share).nonzero().flatten().tolist())
    return sorted(found)


@BANK.wrong("one-value-decides")
def any_value(layers, magnitude, layer_share, token_share):
    return (torch.cat([x for x, _ in layers]).abs().amax(0) >= magnitude).nonzero().flatten()


@BANK.wrong("either-share-decides")
def one_of_the_two(layers, magnitude, layer_share, token_share):
    by_layer, by_token = shares(layers, magnitude)
    return ((by_layer >= layer_share) | (by_token >= token_share)).nonzero().flatten()


@BANK.wrong("excludes-the-limits")
def strict_shares(layers, magnitude, layer_share, token_share):
    by_layer, by_token = shares(layers, magnitude)
    return ((by_layer > layer_share) & (by_token > token_share)).nonzero().flatten()


@BANK.wrong("excludes-the-limits")
def strict_magnitude(layers, magnitude, layer_share, token_share):
    return with_shares(layers, magnitude * (1 + 1e-6), layer_share, token_share)


@BANK.wrong("mean-magnitude")
def means(layers, magnitude, layer_share, token_share):
    large = torch.stack([x.abs().mean(0) >= magnitude for x, _ in layers])
    return (large.float().mean(0) >= layer_share).nonzero().flatten()


@BANK.wrong("needs-every-layer")
def all_layers(layers, magnitude, layer_share, token_share):
    by_layer, by_token = shares(layers, magnitude)
    return ((by_layer == 1) & (by_token >= token_share)).nonzero().flatten()


@BANK.wrong("shares-within-a-layer")
def enough_tokens_in_each(layers, magnitude, layer_share, token_share):
    large = torch.stack([(x.abs() >= magnitude).float().mean(0) >= token_share for x, _ in layers])
    return (large.float().mean(0) >= layer_share).nonzero().flatten()


@BANK.wrong("ignores-the-arguments")
def the_papers_numbers(layers, magnitude, layer_share, token_share):
    return with_shares(layers, 6.0, 0.25, 0.06)


@BANK.wrong("names-the-others")
def the_rest(layers, magnitude, layer_share, token_share):
    return ~as_a_mask(layers, magnitude, layer_share, token_share)


@BANK.wrong("returns-shares")
def share_of_tokens(layers, magnitude, layer_share, token_share):
    return shares(layers, magnitude)[1]


@BANK.wrong("finds-nothing")
def an_empty_list(layers, magnitude, layer_share, token_share):
    return []


@BANK.wrong("wrong-value")
def the_first_found(layers, magnitude, layer_share, token_share):
    return with_shares(layers, magnitude, layer_share, token_share)[:1]


@BANK.wrong("returns-nothing")
def forgets_to_return(layers, magnitude, layer_share, token_share):
    with_shares(layers, magnitude, layer_share, token_share)


@BANK.crashes
def forgets_that_a_layer_is_a_pair(layers, magnitude, layer_share, token_share):
    return torch.stack(layers).abs().amax((0, 1)) >= magnitude
