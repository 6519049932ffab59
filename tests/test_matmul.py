"""Products in every data type: their errors are those their mantissas allow."""

import pytest
import torch

from qlab.matmul import MatmulResult, Unavailable, measure_products

# an input rounded with relative error at most u gives, over a random product, an error of about u / √1.5
HALF_STEP = {"FP32": 2.0**-24, "TF32": 2.0**-11, "BF16": 2.0**-8, "FP16": 2.0**-11, "FP8": 2.0**-4}


def assert_plausible(results):
    for result in results:
        if isinstance(result, MatmulResult) and result.name in HALF_STEP:
            # both inputs and the result are rounded, and FP32 rounds each of its n sums
            assert 0 < result.relative_error <= 3 * HALF_STEP[result.name] * (8 if result.name == "FP32" else 1)
            assert result.tera_per_s > 0


def test_products_on_the_cpu():
    before = torch.backends.cuda.matmul.fp32_precision
    results = measure_products(n=64, device="cpu")
    assert {r.name: type(r) for r in results}["TF32"] is Unavailable
    assert_plausible(results)
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_the_same_seed_gives_the_same_error():
    first, second = (measure_products(n=32, device="cpu", seed=3)[0] for _ in range(2))
    assert first.relative_error == second.relative_error


@pytest.mark.parametrize("n", [0, 8, 17, -16])
def test_bad_sizes_get_one_sentence(n):
    with pytest.raises(ValueError, match=f"n must be a positive multiple of 16, got {n}"):
        measure_products(n=n, device="cpu")


@pytest.mark.gpu
def test_products_on_the_gpu():
    results = measure_products(n=1024, device="cuda")
    assert_plausible(results)
    assert isinstance(results[0], MatmulResult)
