import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from martlet.quantization.vectors import SCALE_DTYPE, Int8Vectors, parts_of, quantize_vectors


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from([1, 8, 80]), st.floats(-30, 30))
def test_no_component_is_further_off_than_half_of_the_scale(
    seed: int, size: int, magnitude: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, size, generator=generator) * 10.0**magnitude
    vectors = quantize_vectors(x)
    assert vectors.data.dtype == torch.int8
    assert vectors.scale.dtype == SCALE_DTYPE
    assert int(vectors.data.to(torch.int32).abs().max()) <= 127
    error = (vectors.dequantize(torch.float32) - x).abs()
    assert (error <= 0.502 * vectors.scale.float()[..., None]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_stay_zeros_beside_others(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 16, dtype=dtype)
    x[1, 3] = -2.0
    vectors = quantize_vectors(x)
    assert torch.equal(vectors.dequantize(dtype)[0], x[0])
    assert vectors.data[1].tolist() == [0, 0, 0, -127] + [0] * 12
    assert vectors.dequantize(dtype)[1, 3].item() == pytest.approx(-2.0, rel=4e-3)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so_in_its_own_vector(odd: float) -> None:
    x = torch.ones(3, 8)
    x[1, 5] = odd
    got = quantize_vectors(x).dequantize(torch.float32)
    assert not got[1].isfinite().any()
    assert torch.allclose(got[[0, 2]], torch.ones(2, 8), rtol=4e-3)


def test_an_index_gives_views_of_integers_and_scales() -> None:
    vectors = Int8Vectors.zeros((2, 3, 4, 8), torch.device("cpu"))
    assert vectors.nbytes == 2 * 3 * 4 * (8 + 2)
    assert vectors.is_contiguous()
    first, second = vectors[:, 1:, :2].unbind()
    assert first.shape == (2, 2, 8)
    for part in parts_of(second):
        part.fill_(3)
    assert torch.equal(vectors.dequantize(torch.float32)[1, 1:, :2], torch.full((2, 2, 8), 9.0))
    assert not vectors.data[0].any()
