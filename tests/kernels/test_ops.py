"""Every operation against its definition in plain torch."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from martlet.compression.absmax import quantize_rows
from martlet.kernels import ops, reference, tiled
from martlet.kernels.cpu.int8_linear import MAX_ROWS_INTEGER, has_integer_kernel
from martlet.quantization.scheme import QuantizedTensor, Weight
from martlet.quantization.vectors import quantize_vectors

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# Relative to the largest value of the result: the definition rounds once, a body may round the
# operands too; two units in the last place of each type. float32 sums in another order.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2 * 2**-10, torch.bfloat16: 2 * 2**-7}
SHAPES = [(1, 1), (5, 7), (48, 64), (33, 100), (16, 384), (700, 1024)]


def _randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def _assert_near(ours: Tensor, definition: Tensor, tolerance: float) -> None:
    assert ours.dtype == definition.dtype
    assert ours.shape == definition.shape
    error = (ours.double() - definition.double()).abs().max()
    assert error <= tolerance * definition.double().abs().max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("stored", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("has_bias", [False, True], ids=["", "bias"])
def test_linear_with_a_float_weight_of_any_type(
    shape: tuple[int, int], rows: int, stored: torch.dtype, dtype: torch.dtype, has_bias: bool
) -> None:
    x, weight = _randn(rows, shape[1], dtype=dtype), _randn(*shape, dtype=stored)
    bias = _randn(shape[0], dtype=stored) if has_bias else None
    wide_bias = None if bias is None else bias.double()
    definition = reference.linear(x.double(), weight.to(dtype), wide_bias).to(dtype)
    _assert_near(ops.linear(x, weight, bias), definition, ROUNDING[dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5, MAX_ROWS_INTEGER, MAX_ROWS_INTEGER + 1, 50])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_linear_with_an_int8_weight(
    shape: tuple[int, int], rows: int, scale_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    weight = quantize_rows(_randn(*shape))
    weight = QuantizedTensor(weight.data, weight.scale.to(scale_dtype))
    x, bias = _randn(rows, shape[1], dtype=dtype), _randn(shape[0])
    definition = reference.linear(x.float(), weight, bias)
    ours = ops.linear(x, weight, bias)
    assert ours.dtype == dtype
    # Few rows: activation and product are rounded to bfloat16, at worst 2**-8 of the product of
    # the magnitudes together; more rows are float32, rounded to the activation's type at the end.
    magnitude = reference.linear(x.float().abs(), weight_of_magnitudes(weight), bias.abs())
    is_integer = rows <= MAX_ROWS_INTEGER and shape[1] % 16 == 0
    tolerance = (2**-8 if is_integer else 0.0) + ROUNDING[dtype]
    assert ((ours.float() - definition).abs() <= tolerance * magnitude).all()


def weight_of_magnitudes(weight: QuantizedTensor) -> QuantizedTensor:
    return QuantizedTensor(weight.data.abs(), weight.scale)


def test_the_scale_of_a_row_is_not_rounded_to_bfloat16() -> None:
    data = torch.ones(64, 64, dtype=torch.int8)
    scale = torch.linspace(1, 2, 64)  # bfloat16 would be off by up to 2**-9
    ours = ops.linear(torch.ones(1, 64), QuantizedTensor(data, scale))
    torch.testing.assert_close(ours[0], 64 * scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("in_features", range(1, 67))
def test_no_width_reads_beyond_an_int8_weight(in_features: int) -> None:
    # What stands behind the weight is not zero: a kernel that runs over the end gives itself away.
    memory = torch.full((9 * in_features + 64,), 127, dtype=torch.int8)
    memory[: 9 * in_features] = 1
    weight = QuantizedTensor(memory[: 9 * in_features].view(9, in_features), torch.ones(9))
    ours = ops.linear(torch.ones(2, in_features), weight)
    assert torch.equal(ours, torch.full((2, 9), float(in_features)))


def test_an_int8_weight_at_an_odd_address_is_read_right() -> None:
    weight = quantize_rows(_randn(8, 32))
    memory = torch.zeros(8 * 32 + 1, dtype=torch.int8)
    shifted = memory[1:].view(8, 32).copy_(weight.data)
    ours = ops.linear(_randn(2, 32), QuantizedTensor(shifted, weight.scale))
    _assert_near(ours, reference.linear(_randn(2, 32), weight), 2e-6)


def test_an_int8_weight_that_is_a_part_of_another_is_read_right() -> None:
    weight = quantize_rows(_randn(8, 64))
    part = QuantizedTensor(weight.data[:, 16:48], weight.scale)
    _assert_near(ops.linear(_randn(2, 32), part), reference.linear(_randn(2, 32), part), 2e-6)


def _missing(*_: object) -> Tensor:
    raise AttributeError("module 'torch' has no attribute '_weight_int8pack_mm'")


def _of_another_signature(rows: Tensor, data: Tensor) -> Tensor:
    return rows


def _of_another_layout(rows: Tensor, data: Tensor, scales: Tensor) -> Tensor:
    return rows @ data.view(data.shape[1], -1).to(rows.dtype)


@pytest.mark.parametrize("kernel", [_missing, _of_another_signature, _of_another_layout])
def test_without_torchs_private_kernel_tiles_do_its_work(
    kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_integer_kernel(), "the kernel of the torch that is tested with"
    monkeypatch.setattr(torch, "_weight_int8pack_mm", kernel)
    has_integer_kernel.cache_clear()
    try:
        weight, x = quantize_rows(_randn(48, 64)), _randn(2, 64)
        # Tiles are float32 throughout: far nearer than bfloat16 would be.
        _assert_near(ops.linear(x, weight), reference.linear(x, weight), 2e-6)
        assert not has_integer_kernel()
    finally:
        has_integer_kernel.cache_clear()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_tiles_join_up(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "_TILE_BYTES", {"cpu": 1000})
    weight, x = quantize_rows(_randn(101, 24)), _randn(3, 24, dtype=dtype)
    definition = reference.linear(x.double(), weight.dequantize(dtype)).to(dtype)
    _assert_near(tiled.linear(x, weight), definition, ROUNDING[dtype])


@pytest.mark.parametrize("stored", [*FLOATS, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_embedding_gives_the_rows(stored: torch.dtype, dtype: torch.dtype) -> None:
    table = _randn(20, 12)
    weight = quantize_rows(table) if stored == torch.int8 else table.to(stored)
    token_ids = torch.tensor([[0, 19, 3], [3, 7, 19]])
    ours = ops.embedding(weight, token_ids, dtype)
    assert torch.equal(ours, reference.embedding(weight, token_ids, dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (2, 3, 40), (5, 384)], ids=str)
def test_norms(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (3 * _randn(*shape) + 1).to(dtype)
    weight, bias = _randn(shape[-1], dtype=dtype), _randn(shape[-1] + 1, dtype=dtype)[1:]
    # float32: sums in another order; half types: one unit in the last place of the quotient, which
    # the weight then multiplies.
    norms = (ops.Norm(weight, bias, 1e-5), ops.Norm(weight, None, 1e-6))
    for parameters in (*norms, ops.Norm(weight, None, 1e-6, offset=1.0)):
        definition = reference.norm(x, parameters)
        _assert_near(ops.norm(x, parameters), definition, ROUNDING[dtype])
        added = reference.add_norm(x, parameters, x + 1)
        _assert_near(ops.add_norm(x, parameters, x + 1), added, ROUNDING[dtype])


def test_a_norm_around_one_rounds_once_after_the_weight() -> None:
    x, weight = (_randn(*shape, dtype=torch.bfloat16) for shape in ((1, 64), (64,)))
    ours = ops.norm(x, ops.Norm(weight, None, 1e-6, offset=1.0))
    normal = x.double() / (x.double().square().mean() + 1e-6).sqrt()
    assert torch.equal(ours, (normal * (1 + weight.double())).bfloat16())
    assert not torch.equal(ours, normal.bfloat16() * (1 + weight))


def test_rms_norm_of_large_half_values_does_not_overflow() -> None:
    x = torch.full((1, 16), 60000.0, dtype=torch.float16)  # the square is beyond float16
    ours = ops.norm(x, ops.Norm(torch.ones(16, dtype=torch.float16), None, 1e-6))
    assert torch.equal(ours, torch.ones_like(x))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activations(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-8, 8, 999).to(dtype)
    _assert_near(ops.ACTIVATIONS[name](x), reference.ACTIVATIONS[name](x), ROUNDING[dtype])


def test_every_activation_has_a_definition() -> None:
    assert ops.ACTIVATIONS.keys() == reference.ACTIVATIONS.keys()


def _weight(stored: torch.dtype, rows: int, columns: int) -> Weight:
    # Scaled so that a product of a normal row is of the order of 1, where activations bend.
    weight = _randn(rows, columns) * columns**-0.5
    return quantize_rows(weight) if stored == torch.int8 else weight.to(stored)


def _norm(kind: str, width: int) -> ops.Norm | None:
    weight, bias = 1 + 0.3 * _randn(width), _randn(width + 1)[1:]
    return {
        "none": None,
        "layer": ops.Norm(weight, bias, 1e-5),
        "rms": ops.Norm(weight, None, 1e-6),
    }[kind]


def _fused_tolerance(dtype: torch.dtype, stored: torch.dtype, rows: int) -> float:
    """Of the largest value, for a result that was rounded after each of four steps.

    Few int8 rows also round activation and product to bfloat16, by 2**-9 each.
    """
    is_integer = stored == torch.int8 and rows <= MAX_ROWS_INTEGER
    return 4 * ROUNDING[dtype] + (2 * 2**-9 if is_integer else 0.0)


def _fused(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test for every type of activation and weight, number of rows and kind of norm."""
    for name, values in {
        "kind": ["none", "layer", "rms"],
        "rows": [1, 5, 40],
        "stored": [*FLOATS, torch.int8],
        "dtype": FLOATS,
    }.items():
        test = pytest.mark.parametrize(name, values, ids=str)(test)
    return test


@_fused
@pytest.mark.parametrize("activation", [None, "gelu_new", "relu"])
@pytest.mark.parametrize("has_residual", [False, True], ids=["", "residual"])
def test_linear_with_a_norm_an_activation_and_a_residual(
    dtype: torch.dtype,
    stored: torch.dtype,
    rows: int,
    kind: str,
    activation: str | None,
    has_residual: bool,
) -> None:
    x, weight, bias = _randn(2, rows, 48, dtype=dtype), _weight(stored, 33, 48), _randn(33)
    residual = _randn(2, rows, 33, dtype=dtype) if has_residual else None
    kept = None if residual is None else residual.clone()
    steps = {"norm": _norm(kind, 48), "activation": activation, "residual": residual}
    ours = ops.linear(x, weight, bias, **steps)
    definition = reference.linear(x, weight, bias, **steps)
    _assert_near(ours, definition, _fused_tolerance(dtype, stored, 2 * rows))
    assert residual is None or torch.equal(residual, kept)  # it is the caller's own hidden state


def test_a_residual_of_another_type_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        ops.linear(_randn(2, 5), _randn(4, 5), residual=_randn(2, 4, dtype=torch.float16))


@_fused
def test_linears_are_the_products_of_one_input(
    dtype: torch.dtype, stored: torch.dtype, rows: int, kind: str
) -> None:
    x, parameters = _randn(rows, 48, dtype=dtype), _norm(kind, 48)
    weights = [_weight(stored, width, 48) for width in (33, 16, 17)]
    biases = [_randn(33), None, _randn(17)]
    ours = ops.linears(x, weights, biases, norm=parameters)
    definition = reference.linears(x, weights, biases, norm=parameters)
    assert len(ours) == 3
    for one, defined in zip(ours, definition, strict=True):
        _assert_near(one, defined, _fused_tolerance(dtype, stored, rows))


@_fused
@pytest.mark.parametrize("activation", ["gelu_new", "silu"])
def test_gated_linear(
    dtype: torch.dtype, stored: torch.dtype, rows: int, kind: str, activation: str
) -> None:
    x, parameters = _randn(rows, 48, dtype=dtype), _norm(kind, 48)
    gate, both = _weight(stored, 33, 48), _weight(stored, 66, 48)
    up = (
        QuantizedTensor(both.data[33:], both.scale[33:])
        if isinstance(both, QuantizedTensor)
        else both[33:]
    )
    ours = ops.gated_linear(x, gate, up, activation, norm=parameters)
    definition = reference.gated_linear(x, gate, up, activation, norm=parameters)
    _assert_near(ours, definition, 2 * _fused_tolerance(dtype, stored, rows))  # of two products


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 30), (7, 7), (7, 30), (40, 40)])
@pytest.mark.parametrize("bias_shape", [None, (1, 3), (2, 1), (2, 3)], ids=str)
def test_attention(
    dtype: torch.dtype,
    scale: float,
    num_queries: int,
    num_keys: int,
    bias_shape: tuple[int, int] | None,
) -> None:
    q, k = _randn(2, 3, num_queries, 10, dtype=dtype), _randn(2, 3, num_keys, 10, dtype=dtype)
    v = _randn(2, 3, num_keys + 1, 10, dtype=dtype)[:, :, 1:]  # a slice, as from a cache
    bias = None if bias_shape is None else _randn(*bias_shape, num_queries, num_keys, dtype=dtype)
    definition = reference.attention(q, k, v, bias, scale=scale)
    _assert_near(ops.attention(q, k, v, bias, scale=scale), definition, 2 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
@pytest.mark.parametrize("mask", ["none", "bias", "causal"])
def test_attention_with_fewer_key_and_value_heads(
    dtype: torch.dtype, num_kv_heads: int, mask: str
) -> None:
    q = _randn(2, 6, 7, 10, dtype=dtype)
    k, v = (_randn(2, num_kv_heads, 8 + i, 10, dtype=dtype)[:, :, -7:] for i in range(2))
    bias = _randn(2, 1, 7, 7, dtype=dtype) if mask == "bias" else None
    is_causal = mask == "causal"
    definition = reference.attention(q, k, v, bias, scale=0.3, is_causal=is_causal)
    ours = ops.attention(q, k, v, bias, scale=0.3, is_causal=is_causal)
    _assert_near(ours, definition, 2 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rows", [1, 2])
def test_rotary(dtype: torch.dtype, rows: int) -> None:
    x, angle = _randn(2, 3, 5, 12, dtype=dtype), 9 * _randn(rows, 1, 5, 6)
    definition = reference.rotary(x, angle.cos(), angle.sin())
    _assert_near(ops.rotary(x, angle.cos(), angle.sin()), definition, ROUNDING[dtype])


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_rotary_of_some_components(is_interleaved: bool) -> None:
    x, angle = _randn(2, 3, 5, 12), 9 * _randn(1, 1, 5, 4)
    cos, sin = 1.2 * angle.cos(), 1.2 * angle.sin()
    ours = ops.rotary(x, cos, sin, is_interleaved)
    _assert_near(ours, reference.rotary(x, cos, sin, is_interleaved), ROUNDING[torch.float32])
    assert torch.equal(ours[..., 8:], x[..., 8:])
    pair = (0, 1) if is_interleaved else (0, 4)
    expected = x[..., pair[0]] * cos[..., 0] - x[..., pair[1]] * sin[..., 0]
    torch.testing.assert_close(ours[..., 0], expected)


@pytest.mark.parametrize("num_keys", [1, 7, 5000])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_attention_over_int8_keys_and_values(
    num_queries: int, num_heads: int, num_kv_heads: int, num_keys: int
) -> None:
    q = _randn(2, num_heads, num_queries, 32)
    k, v = (quantize_vectors(_randn(2, num_kv_heads, num_keys, 32)) for _ in range(2))
    for bias in (
        None,
        _randn(1, num_heads, num_queries, num_keys),
        _randn(2, 1, 1, num_keys),
    ):
        for cap in (None, 2.0):
            definition = reference.attention(q, k, v, bias, scale=0.3, softcap=cap)
            ours = ops.attention(q, k, v, bias, scale=0.3, softcap=cap)
            _assert_near(ours, definition, 4e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scores_at_once", [1, 200, 1 << 24])
@pytest.mark.parametrize("mask", ["none", "bias", "causal"])
def test_capped_attention_some_queries_at_a_time(
    dtype: torch.dtype, scores_at_once: int, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("martlet.kernels.attention._SCORES_AT_ONCE", scores_at_once)
    q, k, v = (
        _randn(2, heads, 7 + i, 10, dtype=dtype)[:, :, i:] for i, heads in enumerate((6, 2, 2))
    )
    options = {"scale": 2.0, "is_causal": mask == "causal"}
    bias = _randn(2, 1, 7, 7, dtype=dtype) if mask == "bias" else None
    capped = reference.attention(q, k, v, bias, softcap=1.5, **options)
    _assert_near(ops.attention(q, k, v, bias, softcap=1.5, **options), capped, 2 * ROUNDING[dtype])
    assert (capped - reference.attention(q, k, v, bias, **options)).abs().max() > 0.1


def test_causal_attention() -> None:
    q, k, v = (_randn(2, 3, 9, 10 + i)[..., :10] for i in range(3))
    definition = reference.attention(q, k, v, scale=0.5, is_causal=True)
    _assert_near(ops.attention(q, k, v, scale=0.5, is_causal=True), definition, 4e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logits_are_float32_with_the_bias_of_the_head(dtype: torch.dtype) -> None:
    x, weight, bias = (_randn(*shape, dtype=dtype) for shape in ((3, 12), (20, 12), (20,)))
    ours = ops.logits(x, weight, bias)
    assert ours.dtype == torch.float32
    _assert_near(ours, reference.logits(x, weight, bias), 2 * ROUNDING[dtype])
    _assert_near(ours - ops.logits(x, weight), bias.float().expand(3, 20), 1e-5)


def test_a_weight_of_the_wrong_width_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="does not fit"):
        ops.linear(_randn(2, 5), _randn(4, 6))
