import random

import pytest

from qlab.allocator import Allocate, Free, Heap, OutOfMemory, best_fit, first_fit, interleaved_trace, replay, two_ended

POLICIES = [first_fit, best_fit, two_ended]
TRACE = interleaved_trace(10, brief_bytes=5, lasting_bytes=4, buffer_bytes=30)


def test_first_fit_fails_with_twice_the_bytes_free():
    result = replay(TRACE, capacity_bytes=100)
    assert result.failed == TRACE[-1]
    assert result.free_bytes == 60 >= 2 * result.failed.size_bytes
    assert result.largest_hole_bytes < result.failed.size_bytes


def test_keeping_what_lasts_apart_cures_it():
    result = replay(TRACE, capacity_bytes=100, place=two_ended)
    assert result.failed is None
    assert result.free_bytes == result.largest_hole_bytes == 30


def test_a_smaller_hole_is_not_a_cure():
    assert replay(TRACE, capacity_bytes=100, place=best_fit).failed is not None


def test_the_message_tells_free_bytes_and_the_largest_hole():
    heap = Heap(10)
    heap.allocate(Allocate("a", 3))
    heap.allocate(Allocate("b", 3))
    heap.free("a")
    sentence = "'c' asks for 5 bytes: 7 of 10 are free, but the largest hole has 4"
    with pytest.raises(OutOfMemory, match=sentence):
        heap.allocate(Allocate("c", 5))


def test_policies_choose_their_hole():
    def start(place):
        heap = Heap(100)
        for name, size in (("a", 30), ("b", 10), ("c", 10), ("d", 10)):
            heap.allocate(Allocate(name, size))
        heap.free("a")  # holes: 0–30, 40–50 after the next line, 60–100
        heap.free("c")
        heap.place = place
        return heap.allocate(Allocate("new", 10)).start

    assert [start(place) for place in POLICIES] == [0, 40, 90]


@pytest.mark.parametrize("place", POLICIES)
@pytest.mark.parametrize("seed", range(5))
def test_blocks_never_overlap_and_bytes_are_never_lost(place, seed):
    draw, heap, alive = random.Random(seed), Heap(1000, place=place), []
    for i in range(300):
        if alive and draw.random() < 0.45:
            heap.free(alive.pop(draw.randrange(len(alive))))
            continue
        request = Allocate(f"block {i}", draw.randint(1, 120), long_lived=draw.random() < 0.5)
        fits = heap.largest_hole_bytes >= request.size_bytes
        try:
            heap.allocate(request)
        except OutOfMemory:
            assert not fits
        else:
            assert fits
            alive.append(request.name)
        used = [byte for block in heap.blocks for byte in range(block.start, block.end)]
        assert len(used) == len(set(used)) == heap.capacity_bytes - heap.free_bytes
        assert {block.name for block in heap.blocks} == set(alive)
        assert all(0 <= byte < 1000 for byte in used)


def test_a_full_heap_has_no_holes_and_a_freed_one_is_whole():
    heap = Heap(8)
    heap.allocate(Allocate("all", 8))
    assert (heap.holes, heap.free_bytes, heap.largest_hole_bytes) == ([], 0, 0)
    heap.free("all")
    assert heap.largest_hole_bytes == 8


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda heap: heap.allocate(Allocate("zero", 0)), "size_bytes must be at least 1, got 0 for 'zero'"),
        (lambda heap: heap.allocate(Allocate("a", 1)), "'a' is allocated already"),
        (lambda heap: heap.free("b"), "'b' is not allocated"),
        (lambda heap: Heap(0), "capacity_bytes must be at least 1, got 0"),
    ],
)
def test_bad_input_gets_a_sentence(act, sentence):
    heap = Heap(10)
    heap.allocate(Allocate("a", 1))
    with pytest.raises(ValueError, match=sentence):
        act(heap)


def test_a_trace_may_free_and_ask_again():
    result = replay([Allocate("a", 6), Free("a"), Allocate("a", 6)], capacity_bytes=6)
    assert result.failed is None
    assert result.free_bytes == 0
