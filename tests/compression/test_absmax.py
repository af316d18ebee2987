import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from martlet.compression.absmax import quantize_rows
from martlet.errors import ModelFileError


def test_a_worked_example_rounds_half_to_even() -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, -2.5], [-254.0, 3.0, 1.0, 0.0]])
    result = quantize_rows(weight)
    assert result.data.tolist() == [[127, 0, 2, -2], [-127, 2, 0, 0]]
    assert result.scale.tolist() == [1.0, 2.0]
    assert (result.data.dtype, result.scale.dtype) == (torch.int8, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (700, 1000), (5, 600_000)])
def test_every_weight_is_off_by_at_most_half_a_step(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    weight = (torch.randn(shape) * torch.logspace(-6, 3, shape[0])[:, None]).to(dtype)
    result = quantize_rows(weight)
    error = (result.dequantize(torch.float64) - weight.double()).abs()
    # half a step; 1e-5 of a step for the float32 rounding of quotient, scale and product
    assert bool((error <= result.scale.double()[:, None] * 0.50002).all())
    assert int(result.data.abs().max()) == 127


def test_rows_without_magnitude_become_zeros_with_a_scale_that_divides() -> None:
    weight = torch.zeros(3, 4)
    weight[1] = 1e-45  # its scale would underflow to zero
    weight[2, 0] = 5.0
    result = quantize_rows(weight)
    assert result.data[:2].eq(0).all()
    assert result.scale[:2].tolist() == [1.0, 1.0]
    assert result.data[2].tolist() == [127, 0, 0, 0]


def test_a_transposed_view_gives_what_its_copy_gives() -> None:
    torch.manual_seed(2)
    weight = torch.randn(300, 900).half()
    view, copy = quantize_rows(weight.T), quantize_rows(weight.T.contiguous())
    assert torch.equal(view.data, copy.data)
    assert torch.equal(view.scale, copy.scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name_and_row(bad: float) -> None:
    weight = torch.ones(2000, 300)
    weight[1234, 5] = bad
    with pytest.raises(ModelFileError, match=r"encoder\.q: row 1234 "):
        quantize_rows(weight, "encoder.q")


def test_a_double_beyond_float32_is_refused() -> None:
    with pytest.raises(ModelFileError):
        quantize_rows(torch.tensor([[1e300, 1.0]], dtype=torch.float64))


def test_the_source_is_not_changed() -> None:
    weight = torch.randn(4, 4)
    copy = weight.clone()
    quantize_rows(weight)
    assert torch.equal(weight, copy)


@given(
    st.lists(
        st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=3, max_size=3),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_finite_matrix_stays_in_range(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows)
    result = quantize_rows(weight)
    assert int(result.data.min()) >= -127
    error = (result.dequantize() - weight).abs()
    # As above; where steps are denormal numbers, one denormal of rounding may come on top.
    assert bool((error <= result.scale[:, None] * 0.50002 + 1e-44).all())
