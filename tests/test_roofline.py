import math

import pytest

from qlab.roofline import H200_BF16, H200_INT8, Rates, Work, linear_work


def test_the_datasheet_of_an_h200():
    assert (H200_BF16.operations_per_s, H200_BF16.bytes_per_s) == (989e12, 4.8e12)
    assert (H200_INT8.operations_per_s, H200_INT8.bytes_per_s) == (1979e12, 4.8e12)
    assert H200_BF16.ridge == pytest.approx(206, abs=0.1)  # operations for each byte


def test_the_work_of_a_layer_counts_two_operations_a_multiply_add_and_each_byte_once():
    work = linear_work(3, 10, weight_bits=4.5, activation_bits=16)
    assert work.operations == 2 * 3 * 10 * 10
    assert work.bytes == (100 * 4.5 + 30 * 16 + 30 * 16) / 8
    assert linear_work(3, 10, weight_bits=8, activation_bits=8, out_bits=32).bytes == 100 + 30 + 120
    assert work.intensity == work.operations / work.bytes


def test_the_slower_of_arithmetic_and_traffic_sets_the_time():
    machine = Rates("a machine", 100.0, 10.0)
    assert machine.ridge == 10
    assert Work(50, 1).least_seconds(machine) == 0.5
    assert Work(50, 20).least_seconds(machine) == 2
    at_ridge = Work(70, 7)
    assert at_ridge.least_seconds(machine) == at_ridge.operations / 100 == at_ridge.bytes / 10


def test_one_token_is_bound_by_traffic_and_many_by_arithmetic():
    bf16 = {tokens: linear_work(tokens, 8192, weight_bits=16, activation_bits=16) for tokens in (1, 4096)}
    int4 = {tokens: linear_work(tokens, 8192, weight_bits=4.25, activation_bits=16) for tokens in (1, 4096)}
    gain = {tokens: bf16[tokens].least_seconds(H200_BF16) / int4[tokens].least_seconds(H200_BF16) for tokens in bf16}
    assert gain[1] == pytest.approx(16 / 4.25, rel=0.01)
    assert gain[4096] == 1
    assert bf16[1].least_seconds(H200_BF16) == pytest.approx(2 * 8192**2 / 4.8e12, rel=0.001)


@pytest.mark.parametrize(("tokens", "width"), [(0, 8), (8, 0), (-1, 8)])
def test_counts_below_one_are_refused(tokens, width):
    with pytest.raises(ValueError, match=f"tokens and width must be at least 1, got {tokens} and {width}"):
        linear_work(tokens, width, weight_bits=4, activation_bits=16)


@pytest.mark.parametrize("bits", [0, -4, math.nan])
def test_bits_of_nothing_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be above 0, got {bits}, 16 and 16"):
        linear_work(1, 8, weight_bits=bits, activation_bits=16)
    with pytest.raises(ValueError, match="bits must be above 0"):
        linear_work(1, 8, weight_bits=4, activation_bits=16, out_bits=bits)
