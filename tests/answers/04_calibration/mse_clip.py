"""Answers to `mse_clip`."""

import numpy as np
import torch

from qlab import calibrate
from tests.answers.bank import Bank

BANK = Bank("mse-clip")


def error(x, clip, bits, *, largest=None):
    largest = largest or 2 ** (bits - 1) - 1
    step = clip / largest
    return ((x / step).round().clamp(-largest, largest) * step - x).square().mean().item()


def search(x, cost, count=100):
    top = x.abs().max().item()
    return min((top * i / count for i in range(1, count + 1)), key=cost)


@BANK.right
def a_hundred_clips(x, bits):
    return search(x, lambda clip: error(x, clip, bits))


@BANK.right
def fifty_clips(x, bits):
    return search(x, lambda clip: error(x, clip, bits), 50)


@BANK.right
def sixty_four_clips_from_one_percent(x, bits):
    clips = torch.linspace(0.01, 1, 64) * x.abs().max()
    return clips[torch.tensor([error(x, clip, bits) for clip in clips]).argmin()]


@BANK.right
def from_a_tenth(x, bits):
    clips = np.linspace(0.1, 1, 60) * float(x.abs().max())
    return min(clips, key=lambda clip: error(x.double(), clip, bits))


@BANK.right
def all_at_once(x, bits):
    largest = 2 ** (bits - 1) - 1
    clips = x.abs().max() * torch.arange(1, 81) / 80
    step = (clips / largest)[:, None]
    values = x.flatten()
    errors = ((values / step).round().clamp(-largest, largest) * step - values).pow(2).sum(1)
    return clips[errors.argmin()].reshape(1)


@BANK.right
def coarse_then_fine(x, bits):
    best = search(x, lambda clip: error(x, clip, bits), 50)
    top = x.abs().max().item()
    finer = [min(best + top * i / 1000, top) for i in range(-20, 21)]
    return min((clip for clip in finer if clip > 0), key=lambda clip: error(x, clip, bits))


@BANK.right
def by_magnitudes_in_numpy(x, bits):
    magnitudes, largest = np.abs(x.numpy().astype(np.float64)).ravel(), 2 ** (bits - 1) - 1
    best = (np.inf, 0.0)
    for clip in magnitudes.max() * np.arange(0.015, 1.001, 0.015):
        codes = np.minimum(np.floor(magnitudes / (clip / largest) + 0.5), largest)
        best = min(best, (np.mean((codes * clip / largest - magnitudes) ** 2), clip))
    return best[1]


@BANK.right
def without_the_largest_itself(x, bits):
    top = x.abs().max().item()
    return min((top * i / 64 for i in range(1, 64)), key=lambda clip: error(x, clip, bits))


@BANK.right
def by_fake_quantize(x, bits):
    largest = 2 ** (bits - 1) - 1

    def cost(clip):
        rounded = torch.fake_quantize_per_tensor_affine(x, clip / largest, 0, -largest, largest)
        return torch.nn.functional.mse_loss(rounded, x).item()

    return search(x, cost, 70)


@BANK.right_but_slow
def by_qlab(x, bits):
    return calibrate.mse_clip(x, bits=bits)


@BANK.right
def changes_x_in_place(x, bits):
    top = x.abs().max().item()
    x /= top
    return top * search(x, lambda clip: error(x, clip, bits), 75)


@BANK.wrong("returns-the-largest")
def returns_the_largest(x, bits):
    return x.abs().max().item()


@BANK.wrong("returns-the-largest")
def counts_only_clipping(x, bits):
    return search(x, lambda clip: -clip + 0 * (x - x.clamp(-clip, clip)).square().mean().item())


@BANK.wrong("only-rounding")
def counts_only_rounding(x, bits):
    def cost(clip):
        inside = x[x.abs() <= clip]
        return error(inside, clip, bits) if len(inside) else float("inf")

    return search(x, cost, 50)


@BANK.wrong("only-rounding")
def forgets_to_clamp(x, bits):
    largest = 2 ** (bits - 1) - 1
    return search(x, lambda clip: ((x * largest / clip).round() * clip / largest - x).square().mean().item())


@BANK.wrong("one-sided")
def clamps_from_above_only(x, bits):
    largest = 2 ** (bits - 1) - 1

    def cost(clip):
        return ((x * largest / clip).round().clamp(max=largest) * clip / largest - x).square().mean().item()

    return search(x, cost)


@BANK.wrong("one-sided")
def up_to_the_largest_value(x, bits):
    return min((x.max().item() * i / 100 for i in range(1, 101)), key=lambda clip: error(x, clip, bits))


@BANK.wrong("one-sided")
def looks_at_positive_values(x, bits):
    return search(x[x > 0], lambda clip: error(x[x > 0], clip, bits))


@BANK.wrong("ignores-bits")
def always_four_bits(x, bits):
    return search(x, lambda clip: error(x, clip, 4))


@BANK.wrong("wrong-number-of-levels")
def unsigned_levels(x, bits):
    return search(x, lambda clip: error(x, clip, bits, largest=2**bits - 1))


@BANK.wrong("returns-a-share")
def returns_a_share(x, bits):
    return a_hundred_clips(x, bits) / x.abs().max().item()


@BANK.wrong("returns-the-scale")
def returns_the_scale(x, bits):
    return a_hundred_clips(x, bits) / (2 ** (bits - 1) - 1)


@BANK.wrong("returns-the-error")
def returns_the_error(x, bits):
    return error(x, a_hundred_clips(x, bits), bits)


@BANK.wrong("wrong-value")
def six_candidates_are_too_few(x, bits):
    return search(x, lambda clip: error(x, clip, bits), 6)


@BANK.wrong("wrong-value")
def three_standard_deviations(x, bits):
    return 3 * x.std().item()


@BANK.wrong("wrong-value")
def a_percentile(x, bits):
    return torch.quantile(x.abs().flatten(), 0.999).item()


@BANK.wrong("only-rounding")
def takes_the_worst(x, bits):
    return search(x, lambda clip: -error(x, clip, bits))


@BANK.wrong("not-a-clip")
def returns_zero(x, bits):
    return 0.0


@BANK.wrong("not-a-clip")
def returns_nan(x, bits):
    return float("nan")


@BANK.wrong("returns-nothing")
def returns_nothing(x, bits):
    a_hundred_clips(x, bits)


@BANK.wrong("wrong-shape")
def returns_the_errors(x, bits):
    return [error(x, clip, bits) for clip in (0.1, 0.2, 0.3)]


@BANK.crashes
def asks_for_a_key(x, bits):
    return min(x.abs().flatten().tolist()[:3], key=lambda clip: error(x, clip, bits)["mean"])
