from __future__ import annotations

import pytest
import torch
from torch import Tensor

from martlet.kernels import ops
from martlet.kernels.cuda import elementwise
from martlet.kernels.cuda.few_rows import Epilogue

FLOATS = [torch.float16, torch.bfloat16, torch.float32]
# Two units in the last place: ours rounds once or twice, torch's way after each operation.
TOLERANCE = {torch.float16: 2 * 2**-10, torch.bfloat16: 2 * 2**-7, torch.float32: 4e-6}

pytestmark = pytest.mark.gpu


def _randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random).to("cuda", dtype)


def _assert_near(ours: Tensor, definition: Tensor, dtype: torch.dtype) -> None:
    assert ours.shape == definition.shape
    error = (ours.double() - definition.double()).abs()
    assert (error <= TOLERANCE[dtype] * (1 + definition.double().abs())).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("columns", [1, 7, 64, 100, 2048, 4096, 5000])
@pytest.mark.parametrize("has_bias", [False, True], ids=["rms", "layer"])
def test_norms_are_those_of_the_processor(dtype: torch.dtype, columns: int, has_bias: bool) -> None:
    x = _randn(2, 9, columns, dtype=dtype) * 3 + 1
    weight = _randn(columns, dtype=dtype, seed=1)
    bias = _randn(columns, dtype=dtype, seed=2) if has_bias else None
    parameters = ops.Norm(weight, bias, 1e-6)
    assert elementwise.can_norm(x, parameters)
    on_processor = ops.Norm(weight.cpu(), None if bias is None else bias.cpu(), 1e-6)
    _assert_near(ops.norm(x, parameters), ops.norm(x.cpu(), on_processor).cuda(), dtype)
    apart = _randn(9, columns + 8, dtype=dtype)[:, 3 : columns + 3]
    expected = ops.norm(apart.cpu(), on_processor).cuda()
    _assert_near(ops.norm(apart, parameters), expected, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("columns", [7, 64, 4096])
def test_norms_around_one_and_what_they_are_added_to(dtype: torch.dtype, columns: int) -> None:
    x, residual = (_randn(2, 9, columns, dtype=dtype, seed=seed) * 3 for seed in (0, 3))
    weight = 0.2 * _randn(columns, dtype=dtype, seed=1)
    for offset in (0.0, 1.0):
        parameters = ops.Norm(weight, None, 1e-6, offset)
        on_processor = ops.Norm(weight.cpu(), None, 1e-6, offset)
        expected = ops.norm(x.cpu(), on_processor)
        _assert_near(ops.norm(x, parameters), expected.cuda(), dtype)
        ours = ops.add_norm(x, parameters, residual)
        _assert_near(ours, (residual.cpu() + expected).cuda(), dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("head_dim", "num_pairs"), [(128, 64), (64, 16), (80, 40), (256, 32)])
@pytest.mark.parametrize("is_interleaved", [False, True])
def test_heads_are_turned_as_on_the_processor(
    dtype: torch.dtype, head_dim: int, num_pairs: int, is_interleaved: bool
) -> None:
    fused = _randn(2, 9, 5 * head_dim, dtype=dtype)
    x = fused[..., head_dim : 4 * head_dim].unflatten(2, (3, head_dim)).transpose(1, 2)
    angle = 3 * torch.rand(2, 1, 9, num_pairs, device="cuda")
    weight = _randn(head_dim, dtype=dtype, seed=1)
    for shared in (False, True):
        cos, sin = angle[: 1 if shared else 2].cos(), angle[: 1 if shared else 2].sin()
        for norm in (None, ops.Norm(weight, None, 1e-6), ops.Norm(weight, None, 1e-6, 1.0)):
            ours = ops.turn_heads(x, norm, cos, sin, is_interleaved)
            on_processor = norm and ops.Norm(weight.cpu(), None, norm.eps, norm.offset)
            # 80 components in halves of 40 are no whole vectors of the other half's, others are.
            expected = ops.turn_heads(x.cpu(), on_processor, cos.cpu(), sin.cpu(), is_interleaved)
            _assert_near(ours, expected.cuda(), dtype)


def test_a_norm_of_large_numbers_does_not_overflow() -> None:
    x = torch.full((3, 512), 60000.0, dtype=torch.float16, device="cuda")
    ours = ops.norm(x, ops.Norm(torch.ones_like(x[0]), None, 1e-6))
    assert torch.equal(ours, torch.ones_like(x))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("columns", [5, 64, 1000, 4096])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu", "silu"])
def test_what_follows_a_product(dtype: torch.dtype, columns: int, activation: str | None) -> None:
    x, residual = _randn(19, columns, dtype=dtype), _randn(19, columns, dtype=dtype, seed=1)
    bias = _randn(columns, dtype=dtype, seed=2)
    function = ops.ACTIVATIONS[activation] if activation else lambda value: value
    expected = function(x.double() + bias.double()) + residual.double()
    wide = torch.full((19, columns), float("nan"), device="cuda")
    elementwise.finish(x, wide, bias, Epilogue(activation, residual))
    # float32 out of 16 bits is not rounded at all; fast exponentials are off by 1e-6.
    _assert_near(wide, expected, torch.float32)
    elementwise.finish(x, x, bias, Epilogue(activation, residual))
    _assert_near(x, expected, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("columns", [5, 64, 1000])
def test_a_gate_multiplies_the_second_half(dtype: torch.dtype, columns: int) -> None:
    both = _randn(19, 2 * columns, dtype=dtype)
    y = torch.full((19, columns), float("nan"), dtype=dtype, device="cuda")
    elementwise.finish(both, y, None, Epilogue("gelu_new"), is_gated=True)
    gate, up = both.double().chunk(2, dim=1)
    _assert_near(y, ops.gelu_tanh(gate) * up, dtype)
