"""The GPU's kernels with weights whose groups have scales of their own, against float64."""

import pytest
import torch

from martlet.kernels import ops, reference
from martlet.kernels.cuda import few_rows, many_rows, one_row, several_rows
from martlet.kernels.cuda.gemm_route import Dequantized, FromTiles
from martlet.kernels.cuda.panels import dequantize
from martlet.kernels.norm import Norm
from martlet.quantization.formats import WeightFormat, parse_format
from martlet.quantization.nibbles import pack_nibbles
from martlet.quantization.scheme import GroupedTensor, tiled

pytestmark = pytest.mark.gpu
CUDA = "cuda"
# See test_cuda_kernels.py: the rounding of the result, and int8 activations.
PRODUCT_ERROR = {torch.float16: 1e-3, torch.bfloat16: 6e-3, torch.float32: 6e-4}
INT8_ACTIVATION_ERROR = 2e-2
DTYPES = list(PRODUCT_ERROR)
FORMATS = [
    "int4-g32",
    "int4-g64",
    "int4-g128",
    "int4-g32-asym",
    "int4-g64-asym",
    "int4-g128-asym",
    "int8-g32",
    "int8-g64",
    "int8-g128",
]


def _weight(out_features, in_features, format: WeightFormat) -> GroupedTensor:
    groups = -(-in_features // format.group_size)
    size = (out_features, in_features)
    if format.bits == 4:
        data = pack_nibbles(torch.randint(0, 16, size, dtype=torch.uint8, device=CUDA))
    else:
        data = torch.randint(-127, 128, size, dtype=torch.int8, device=CUDA)
    scale = torch.rand(out_features, groups, device=CUDA) + 0.2
    scale *= torch.where(torch.rand_like(scale) < 0.3, -1.0, 1.0)
    zero = torch.rand(out_features, groups, device=CUDA) * 15 if format.has_zeros else None
    return GroupedTensor(
        data,
        scale.half(),
        (torch.rand(out_features, device=CUDA) + 0.5) * 0.01 / in_features**0.5,
        torch.Size(size),
        format,
        None if zero is None else zero.half(),
    )


def _exact(x, weight):
    return x.double() @ weight.dequantize(torch.float64).T


def _error(out, expected):
    assert out.shape == expected.shape
    assert torch.isfinite(out).all()
    return ((out.double() - expected).norm() / expected.norm()).item()


@pytest.fixture(params=FORMATS)
def format(request):
    return parse_format(request.param)


@pytest.fixture(
    params=["matrix units", "older matrix units", "several rows", "several rows, streamed", "dp4a"]
)
def product_error(request, monkeypatch):
    """The allowed error by dtype; run once for each kind of product."""
    is_several = request.param.startswith("several")
    if is_several and not several_rows.can_run(torch.cuda.get_device_capability()):
        pytest.skip("the kernel for several rows needs capability 8.0")
    monkeypatch.setattr(few_rows, "SEVERAL_FROM_ROWS", 1 if is_several else few_rows.MAX_ROWS + 1)
    if request.param != "matrix units":
        monkeypatch.setattr(one_row, "can_run", lambda *_: False)
    forms = (True,) if request.param.endswith("streamed") else (False, True)
    monkeypatch.setattr(several_rows, "_forms", lambda *_: forms)
    several_rows._shape.cache_clear()
    if request.param == "dp4a":
        monkeypatch.setattr(few_rows, "matrix_units_off", True)
        yield dict.fromkeys(DTYPES, INT8_ACTIVATION_ERROR)
    else:
        yield PRODUCT_ERROR
    several_rows._shape.cache_clear()


@pytest.mark.parametrize(
    ("out_features", "in_features", "rows"),
    [(16, 64, 1), (40, 96, 3), (33, 72, 16), (512, 4096, 1), (2145, 1096, 9), (4096, 10240, 2)],
)
def test_products_of_few_rows(product_error, format, out_features, in_features, rows):
    weight = _weight(out_features, in_features, format)
    tiles = tiled(weight)
    for dtype in DTYPES:
        x = torch.randn(rows, in_features, device=CUDA).to(dtype)
        assert _error(ops.linear(x, tiles), _exact(x, weight)) < product_error[dtype]


def test_all_that_joins_a_product(product_error, format):
    # Odd numbers of tiles, and more of them than multiprocessors: blocks take several turns.
    rows, inputs, dtype = 5, 328, torch.bfloat16
    weights = [_weight(size, inputs, format) for size in (2500, 33, 70)]
    gate, up = _weight(2145, inputs, format), _weight(2145, inputs, format)
    x = (3 * torch.randn(rows, inputs, device=CUDA) + 1).to(dtype)
    scale, shift = (torch.randn(inputs, device=CUDA).to(dtype) for _ in range(2))
    parameters = Norm(scale, shift, 1e-5)
    normal = torch.nn.functional.layer_norm(
        x.double(), (inputs,), scale.double(), shift.double(), 1e-5
    )
    bias, residual = (torch.randn(s, device=CUDA).to(dtype) for s in ((2500,), (rows, 2500)))
    out = ops.linear(x, tiled(weights[0]), bias, activation="gelu", residual=residual)
    expected = reference.ACTIVATIONS["gelu"](_exact(x, weights[0]) + bias.double())
    assert _error(out, expected + residual.double()) < product_error[dtype]
    assert _error(ops.logits(x, tiled(weights[0])), _exact(x, weights[0])) < product_error[dtype]
    outs = ops.linears(x, [tiled(w) for w in weights], [bias, None, None], norm=parameters)
    for number, (out, weight) in enumerate(zip(outs, weights, strict=True)):
        expected = _exact(normal, weight) + (0 if number else bias.double())
        assert _error(out, expected) < 2 * product_error[dtype]
    out = ops.gated_linear(x, tiled(gate), tiled(up), "silu", norm=parameters)
    expected = reference.ACTIVATIONS["silu"](_exact(normal, gate)) * _exact(normal, up)
    assert _error(out, expected) < 3 * product_error[dtype]


def test_matrices_of_different_formats_share_an_input():
    names = ("int4-g32", "int8-g128", "int4-g32")
    weights = [_weight(48, 256, parse_format(name)) for name in names]
    x = torch.randn(3, 256, device=CUDA).half()
    parameters = Norm(torch.rand(256, device=CUDA).half(), None, 1e-6)
    normal = reference.norm(x.double(), Norm(parameters.weight.double(), None, 1e-6))
    outs = ops.linears(x, [tiled(w) for w in weights], [None] * 3, norm=parameters)
    for out, weight in zip(outs, weights, strict=True):
        assert _error(out, _exact(normal, weight)) < 2e-3
    out = ops.gated_linear(x, tiled(weights[0]), tiled(weights[1]), "gelu", norm=parameters)
    expected = reference.gelu(_exact(normal, weights[0])) * _exact(normal, weights[1])
    assert _error(out, expected) < 3e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_features", "in_features"), [(16, 32), (100, 328), (1024, 2048)])
def test_dequantizing_gives_the_weight_bit_for_bit(format, dtype, out_features, in_features):
    weight = _weight(out_features, in_features, format)
    first_row = 16 if out_features > 16 else 0
    out = torch.full((out_features - first_row, in_features), torch.nan, dtype=dtype, device=CUDA)
    dequantize(tiled(weight), out, first_row)
    assert torch.equal(out, weight.dequantize(dtype)[first_row:])


@pytest.mark.parametrize("tokens", [17, 100, 300])
def test_products_of_many_rows(format, tokens):
    weights = [_weight(size, 328, format) for size in (1000, 40)]
    for dtype in DTYPES:
        x = torch.randn(tokens, 328, device=CUDA).to(dtype)
        outs = ops.linears(x, [tiled(w) for w in weights], [None, None])
        for out, weight in zip(outs, weights, strict=True):
            # The weights are rounded to the type of the activations as well.
            assert _error(out, _exact(x, weight)) < 2 * PRODUCT_ERROR[dtype]
        gate, up = _weight(600, 328, format), _weight(600, 328, format)
        out = ops.gated_linear(x, tiled(gate), tiled(up), "gelu")
        expected = reference.gelu(_exact(x, gate)) * _exact(x, up)
        assert _error(out, expected) < 4 * PRODUCT_ERROR[dtype]


@pytest.mark.parametrize(
    "route",
    [FromTiles(32, 0, 1), FromTiles(64, 0, 3), FromTiles(128, 0, 1), Dequantized()],
    ids=str,
)
def test_every_route_of_many_rows_gives_the_product(format, route):
    if isinstance(route, FromTiles) and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("tiles are multiplied from capability 8.0 on")
    weight, gate, up = (_weight(size, 1608, format) for size in (300, 200, 200))
    for dtype in DTYPES:
        x = torch.randn(70, 1608, device=CUDA).to(dtype)
        out = many_rows.linear(x, [tiled(weight)], [None], route=route)
        assert _error(out, _exact(x, weight)) < 2 * PRODUCT_ERROR[dtype]
        if isinstance(route, FromTiles) and route.splits > 1:
            continue
        out = many_rows.gated_linear(x, tiled(gate), tiled(up), "silu", route=route)
        expected = reference.silu(_exact(x, gate)) * _exact(x, up)
        assert _error(out, expected) < 4 * PRODUCT_ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_rows_are_those_of_the_table(format, dtype):
    weight = _weight(1000, 328, format)
    token_ids = torch.tensor([[0], [999], [517], [8]], device=CUDA)
    dense = weight.dequantize(dtype)
    assert torch.equal(ops.embedding(tiled(weight), token_ids, dtype), dense[token_ids])
    positions = torch.randn(20, 328, device=CUDA).to(dtype)
    places = torch.tensor([0, 19, 25, 3], dtype=torch.int32, device=CUDA)
    out = ops.step_embedding(tiled(weight), token_ids, dtype, positions, places)
    assert torch.equal(out, dense[token_ids] + positions[[0, 19, 19, 3]][:, None])


def test_scales_beyond_the_range_of_float16_are_those_of_rows():
    format = parse_format("int4-g32")
    weight = _weight(64, 256, format)
    for size in (1e-20, 1e12):
        sized = GroupedTensor(
            weight.data, weight.scale, weight.row_scale * size, weight.shape, format
        )
        x = torch.randn(1, 256, device=CUDA)
        assert _error(ops.linear(x, tiled(sized)), _exact(x, sized)) < 6e-4
