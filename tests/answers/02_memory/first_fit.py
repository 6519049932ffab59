"""Answers to `first_fit` and `place`."""

import numpy as np
import torch

from qlab import allocator
from tests.answers.bank import Bank

BANK = Bank("first-fit")


def holes(blocks, capacity):
    found, at = [], 0
    for start, end in [*sorted(blocks), (capacity, capacity)]:
        if start > at:
            found.append((at, start))
        at = end
    return found


def fitting(blocks, capacity, size):
    return [hole for hole in holes(blocks, capacity) if hole[1] - hole[0] >= size]


def first_fit(blocks, capacity, size):
    found = fitting(blocks, capacity, size)
    return found[0][0] if found else -1


def last_fit(blocks, capacity, size):
    found = fitting(blocks, capacity, size)
    return found[-1][1] - size if found else -1


def two_ended(blocks, capacity, size, long_lived):
    return (first_fit if long_lived else last_fit)(blocks, capacity, size)


def other_way_round(blocks, capacity, size, long_lived):
    return (last_fit if long_lived else first_fit)(blocks, capacity, size)


def on_a_map_of_bytes(blocks, capacity, size):
    used = np.zeros(capacity, dtype=bool)
    for start, end in blocks:
        used[start:end] = True
    for start in range(capacity - size + 1):
        if not used[start : start + size].any():
            return np.int64(start)
    return -1


def by_candidates(blocks, capacity, size):
    starts = sorted({0} | {end for _, end in blocks})
    for start in starts:
        if start + size <= capacity and all(start + size <= a or b <= start for a, b in blocks):
            return torch.tensor(start)
    return -1


def by_recursion(blocks, capacity, size, at=0):
    hit = next((end for start, end in blocks if start < at + size and at < end), None)
    return by_recursion(blocks, capacity, size, hit) if hit else at if at + size <= capacity else -1


def in_a_string(blocks, capacity, size):
    drawing = ["."] * capacity
    for start, end in blocks:
        drawing[start:end] = "x" * (end - start)
    return "".join(drawing).find("." * size)


def lowest_or_highest_start(blocks, capacity, size, long_lived):
    starts = range(capacity - size + 1)
    legal = [at for at in starts if all(at + size <= start or end <= at for start, end in blocks)]
    return [(min if long_lived else max)(legal, default=-1)]


def sorts_in_place(blocks, capacity, size):
    blocks.sort()
    return first_fit(blocks, capacity, size)


def by_qlab(blocks, capacity, size, long_lived, policy=allocator.two_ended):
    found = [allocator.Hole(*hole) for hole in fitting(blocks, capacity, size)]
    return policy(found, allocator.Allocate("asked for", size, long_lived)) if found else -1


def qlab_first_fit(blocks, capacity, size):
    return by_qlab(blocks, capacity, size, False, allocator.first_fit)


def best_for_what_lasts(blocks, capacity, size, long_lived):
    """Keep to the ends, in the tightest hole that touches what is there."""
    return on_a_map_of_bytes(blocks, capacity, size) if long_lived else last_fit(blocks, capacity, size)


BANK.add("two_ended", first_fit, two_ended)
BANK.add("by_qlab", qlab_first_fit, by_qlab)
BANK.add("on_a_map_of_bytes", on_a_map_of_bytes, best_for_what_lasts)
BANK.add("by_candidates_and_the_other_way_round", by_candidates, other_way_round)
BANK.add("by_recursion", by_recursion, lowest_or_highest_start)
BANK.add("in_a_string", in_a_string, two_ended)
BANK.add("sorts_what_it_is_given", sorts_in_place, two_ended)


def answer(name, misconception, function, policy=two_ended):
    BANK.add(name, function, policy, misconception=misconception)


def below_all(blocks, capacity, size):
    """Go below the lowest block of the upper half, whatever is there."""
    below = min((start for start, _ in blocks if start > capacity // 2), default=capacity)
    return max(0, below - size) if fitting(blocks, capacity, size) else -1


def policy(name, misconception, function):
    BANK.add(name, first_fit, function, misconception=misconception)


def best(blocks, capacity, size):
    return min(fitting(blocks, capacity, size), key=lambda h: (h[1] - h[0], h[0]), default=(-1, 0))[0]


def worst(blocks, capacity, size):
    return max(fitting(blocks, capacity, size), key=lambda h: (h[1] - h[0], -h[0]), default=(-1, 0))[0]


def strictly(blocks, capacity, size):
    return next((a for a, b in holes(blocks, capacity) if b - a > size), -1)


def any_hole(blocks, capacity, size):
    return next((a for a, _ in holes(blocks, capacity)), -1)


def by_the_sum(blocks, capacity, size):
    found = holes(blocks, capacity)
    return found[0][0] if found and sum(b - a for a, b in found) >= size else -1


def by_the_sum_if_nothing_fits(blocks, capacity, size):
    start = first_fit(blocks, capacity, size)
    return by_the_sum(blocks, capacity, size) if start < 0 else start


def in_the_order_given(blocks, capacity, size):
    at = 0
    for start, end in [*blocks, (capacity, capacity)]:
        if start - at >= size:
            return at
        at = end
    return -1


def behind_the_last(blocks, capacity, size):
    at = max((end for _, end in blocks), default=0)
    return at if capacity - at >= size else -1


def no_last_hole(blocks, capacity, size):
    return next((a for a, b in fitting(blocks, capacity, size) if b < capacity), -1)


def last_hole_untested(blocks, capacity, size):
    start = first_fit(blocks, capacity, size)
    return max((end for _, end in blocks), default=0) if start < 0 else start


def end_of_the_hole(blocks, capacity, size):
    found = fitting(blocks, capacity, size)
    return found[0][1] - size if found else -1


answer("best_fit", "best-fit", best)
answer("worst_fit", "worst-fit", worst)
answer("last_hole", "last-fit", lambda b, c, s: (fitting(b, c, s) or [(-1, 0)])[-1][0])
answer("no_exact_fit", "refuses-an-exact-fit", strictly)
answer("any_hole", "takes-any-hole", any_hole)
answer("sum_of_the_holes", "takes-any-hole", by_the_sum)
answer("sum_of_the_holes_at_last", "adds-up-free-bytes", by_the_sum_if_nothing_fits)
answer("blocks_as_they_come", "relies-on-the-order", in_the_order_given)
answer("behind_the_last_block", "only-at-the-end", behind_the_last)
answer("no_hole_below_the_capacity", "forgets-the-last-hole", no_last_hole)
answer("the_end_of_the_hole", "returns-the-end-of-the-hole", end_of_the_hole)
answer("no_test_of_the_last_hole", "takes-the-last-hole-untested", last_hole_untested)
answer("an_empty_heap_is_full", "refuses-an-empty-heap", lambda b, c, s: first_fit(b, c, s) if b else -1)
answer("ends_inside_the_block", "wrong-value", lambda b, c, s: first_fit([(start, end + 1) for start, end in b], c, s))
answer("zero_where_nothing_fits", "takes-any-hole", lambda b, c, s: max(0, first_fit(b, c, s)))
answer("start_and_end", "wrong-shape", lambda b, c, s: (fitting(b, c, s) or [(-1, -1)])[0])
answer(
    "none_where_nothing_fits", "returns-nothing", lambda b, c, s: None if first_fit(b, c, s) < 0 else first_fit(b, c, s)
)

policy("first_fit_again", "does-not-cure", lambda b, c, s, _: first_fit(b, c, s))
policy("best_fit_again", "does-not-cure", lambda b, c, s, _: best(b, c, s))
policy("worst_fit_again", "does-not-cure", lambda b, c, s, _: worst(b, c, s))
policy("last_fit_again", "does-not-cure", lambda b, c, s, _: last_fit(b, c, s))
policy("by_size_alone", "does-not-cure", lambda b, c, s, _: two_ended(b, c, s, s > 20))
policy("always_at_the_bottom", "overlaps", lambda b, c, s, long_lived: 0 if first_fit(b, c, s) >= 0 else -1)
policy("at_the_very_top", "outside-the-heap", lambda b, c, s, lasts: first_fit(b, c, s) if lasts else c)
policy("below_the_highest_block", "overlaps", lambda b, c, s, lasts: (first_fit if lasts else below_all)(b, c, s))
policy("never_anywhere", "refuses-what-fits", lambda b, c, s, long_lived: -1)
policy("the_start_of_the_last_hole", "does-not-cure", lambda b, c, s, lasts: (fitting(b, c, s) or [(-1, 0)])[-1][0])
policy("fits_anything", "places-what-does-not-fit", lambda b, c, s, lasts: max(two_ended(b, c, s, lasts), 0))
policy("none_where_nothing_fits_either", "returns-nothing", lambda b, c, s, lasts: None)


def keeps_a_region_for_each(blocks, capacity, size, long_lived):
    """Halve the heap: what fits into one half only is refused."""
    half = capacity // 2
    inside = [(max(a, half), b) for a, b in blocks if b > half] if not long_lived else blocks
    low, high = (0, half) if long_lived else (half, capacity)
    start = first_fit([(0, low), *inside] if low else inside, high, size)
    return start


policy("a_half_for_each", "refuses-what-fits", keeps_a_region_for_each)
