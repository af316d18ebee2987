"""The GPU's kernels against float64, and against the plain definition of each operation."""

import pytest
import torch

from martlet.kernels import ops, reference
from martlet.kernels.cache_view import IDLE, CacheView
from martlet.kernels.cuda import few_rows, several_rows
from martlet.kernels.norm import Norm
from martlet.kernels.step_state import StepState
from martlet.kernels.turn import Turn
from martlet.quantization.scheme import QuantizedTensor, tiled
from martlet.quantization.vectors import Int8Vectors, parts_of, quantize_vectors

pytestmark = pytest.mark.gpu
CUDA = "cuda"
# The rounding of the result: 11, 8 bits of it; float32 activations are rounded to float16 under
# a power of two for the matrix units. Errors of many inputs average out.
PRODUCT_ERROR = {torch.float16: 1e-3, torch.bfloat16: 6e-3, torch.float32: 6e-4}
# int8 activations with a scale for 32 inputs: half a step of 1/127 of the largest of 32.
INT8_ACTIVATION_ERROR = 2e-2
DTYPES = list(PRODUCT_ERROR)


@pytest.fixture(params=["matrix units", "matrix units, several rows", "dp4a"])
def product_error(request, monkeypatch):
    """The allowed error by dtype; run once for each of the three kinds of products."""
    is_several = request.param.endswith("several rows")
    monkeypatch.setattr(few_rows, "SEVERAL_FROM_ROWS", 1 if is_several else few_rows.MAX_ROWS + 1)
    if request.param != "dp4a":
        return PRODUCT_ERROR
    monkeypatch.setattr(few_rows, "matrix_units_off", True)
    return dict.fromkeys(DTYPES, INT8_ACTIVATION_ERROR)


@pytest.fixture(params=["staged", "streamed"])
def several_rows_only(request, monkeypatch):
    """All products by the kernel for several rows, with inputs that stay or that are streamed."""
    if not several_rows.can_run(torch.cuda.get_device_capability()):
        pytest.skip("the kernel for several rows needs capability 8.0")
    monkeypatch.setattr(few_rows, "SEVERAL_FROM_ROWS", 1)
    # What does not fit into shared memory is streamed in either case.
    forms = (True,) if request.param == "streamed" else (False, True)
    monkeypatch.setattr(several_rows, "_forms", lambda *_: forms)
    several_rows._shape.cache_clear()
    yield
    several_rows._shape.cache_clear()


def _weight(out_features, in_features):
    data = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8, device=CUDA)
    return QuantizedTensor(data, torch.rand(out_features, device=CUDA) * 0.01 / in_features**0.5)


def _error(out, expected):
    assert out.shape == expected.shape
    assert torch.isfinite(out).all()
    return ((out.double() - expected).norm() / expected.norm()).item()


def _exact(x, weight):
    return x.double() @ (weight.data.double() * weight.scale.double()[:, None]).T


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 16])
@pytest.mark.parametrize(
    ("out_features", "in_features"),
    [(16, 32), (40, 96), (33, 64), (512, 4096), (4096, 10240), (2145, 1096)],
)
def test_products_of_few_rows(product_error, rows, out_features, in_features):
    for dtype in DTYPES:
        x = torch.randn(rows, in_features, device=CUDA).to(dtype)
        weight = _weight(out_features, in_features)
        assert _error(ops.linear(x, tiled(weight)), _exact(x, weight)) < product_error[dtype]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu", "silu"])
def test_bias_activation_and_residual_join_the_product(product_error, rows, activation):
    dtype = torch.float16
    weight = _weight(100, 256)
    x, bias, residual = (
        torch.randn(shape, device=CUDA).to(dtype) for shape in ((rows, 256), (100,), (rows, 100))
    )
    out = ops.linear(x, tiled(weight), bias, activation=activation, residual=residual)
    expected = _exact(x, weight) + bias.double()
    if activation is not None:
        expected = reference.ACTIVATIONS[activation](expected)
    assert _error(out, expected + residual.double()) < product_error[dtype]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_joins_the_products(product_error, has_bias, dtype):
    x = (3 * torch.randn(2, 320, device=CUDA) + 1).to(dtype)
    parameters = Norm(
        torch.rand(320, device=CUDA).to(dtype),
        torch.randn(320, device=CUDA).to(dtype) if has_bias else None,
        1e-5,
    )
    weights = [_weight(size, 320) for size in (64, 48, 20)]
    outs = ops.linears(x, [tiled(w) for w in weights], [None] * 3, norm=parameters)
    wide = Norm(
        *(None if t is None else t.double() for t in (parameters.weight, parameters.bias)), 1e-5
    )
    normal = x.double()
    if has_bias:
        normal = torch.nn.functional.layer_norm(normal, (320,), wide.weight, wide.bias, 1e-5)
    else:
        normal = normal * (normal.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * wide.weight
    for out, weight in zip(outs, weights, strict=True):
        assert _error(out, _exact(normal, weight)) < 2 * product_error[dtype]


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_the_gated_product(product_error, rows):
    dtype = torch.float16
    x = torch.randn(rows, 512, device=CUDA).to(dtype)
    gate, up = _weight(200, 512), _weight(200, 512)
    out = ops.gated_linear(x, tiled(gate), tiled(up), "gelu_new")
    expected = reference.gelu_tanh(_exact(x, gate)) * _exact(x, up)
    assert _error(out, expected) < 3 * product_error[dtype]


@pytest.mark.usefixtures("several_rows_only")
@pytest.mark.parametrize("in_features", [24, 1096, 2048])
@pytest.mark.parametrize("rows", range(1, 17))
def test_several_rows_with_all_that_joins_a_product(rows, in_features):
    # Odd numbers of tiles, and more of them than multiprocessors: blocks take several turns.
    weights = [_weight(size, in_features) for size in (2500, 33, 70)]
    gate, up = _weight(2145, in_features), _weight(2145, in_features)
    for dtype in DTYPES:
        x = (3 * torch.randn(rows, in_features, device=CUDA) + 1).to(dtype)
        scale, shift = (torch.randn(in_features, device=CUDA).to(dtype) for _ in range(2))
        parameters = Norm(scale, shift, 1e-5)
        normal = torch.nn.functional.layer_norm(
            x.double(), (in_features,), scale.double(), shift.double(), 1e-5
        )
        bias, residual = (torch.randn(s, device=CUDA).to(dtype) for s in ((2500,), (rows, 2500)))
        out = ops.linear(x, tiled(weights[0]), bias, activation="gelu", residual=residual)
        expected = reference.ACTIVATIONS["gelu"](_exact(x, weights[0]) + bias.double())
        assert _error(out, expected + residual.double()) < PRODUCT_ERROR[dtype]
        assert _error(ops.logits(x, tiled(weights[0])), _exact(x, weights[0])) < 6e-4
        outs = ops.linears(x, [tiled(w) for w in weights], [bias, None, None], norm=parameters)
        for number, (out, weight) in enumerate(zip(outs, weights, strict=True)):
            expected = _exact(normal, weight) + (0 if number else bias.double())
            assert _error(out, expected) < 2 * PRODUCT_ERROR[dtype]
        out = ops.gated_linear(x, tiled(gate), tiled(up), "silu", norm=parameters)
        expected = reference.ACTIVATIONS["silu"](_exact(normal, gate)) * _exact(normal, up)
        assert _error(out, expected) < 3 * PRODUCT_ERROR[dtype]


@pytest.mark.usefixtures("several_rows_only")
@pytest.mark.parametrize("in_features", [96, 4096, 10240])
def test_a_captured_chain_of_several_rows_computes_the_same_each_time(in_features):
    wide, narrow = tiled(_weight(in_features, 4096)), tiled(_weight(4096, in_features))
    norm = Norm(torch.rand(4096, device=CUDA).half(), None, 1e-6)
    start = torch.randn(16, 4096, device=CUDA).half()

    def chain():
        hidden = start
        for _ in range(4):
            inner = ops.gated_linear(hidden, wide, wide, "gelu_new", norm=norm)
            hidden = ops.linear(inner, narrow, residual=hidden)
        return hidden

    expected = chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain()
    for _ in range(20):
        graph.replay()
        assert torch.equal(out, expected)


def test_logits_are_float32(product_error):
    x = torch.randn(1, 1, 256, device=CUDA).to(torch.float16)
    weight = _weight(1000, 256)
    out = ops.logits(x, tiled(weight))
    assert out.dtype == torch.float32
    assert _error(out, _exact(x, weight)) < product_error[torch.float32]


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [96, 4096, 8192 + 64])
def test_a_norm_around_one_comes_before_the_product(rows, dtype, in_features, product_error):
    x = torch.randn(rows, in_features, device=CUDA).to(dtype)
    weight = _weight(80, in_features)
    norm = Norm((0.3 * torch.randn(in_features, device=CUDA)).to(dtype), None, 1e-6, offset=1.0)
    normal = x.double() * (x.double().square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    expected = _exact(normal * (1 + norm.weight.double()), weight)
    out = ops.linear(x, tiled(weight), norm=norm)
    assert _error(out, expected) < 2 * product_error[dtype]


def test_inputs_beyond_the_range_of_float16_keep_their_precision():
    x = torch.randn(2, 256, device=CUDA, dtype=torch.float32) * torch.tensor(
        [[1e7], [1e-9]], device=CUDA
    )
    weight = _weight(64, 256)
    out, expected = ops.linear(x, tiled(weight)), _exact(x, weight)
    for row in range(2):
        assert _error(out[row], expected[row]) < PRODUCT_ERROR[torch.float32]


def test_every_output_is_written():
    weight = tiled(_weight(70, 64))
    poison = torch.full((4, 70), float("nan"), device=CUDA, dtype=torch.float16)
    del poison  # the allocator hands the same memory out again
    assert torch.isfinite(ops.linear(torch.randn(4, 64, device=CUDA).half(), weight)).all()


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 64), (8, 2, 128), (3, 3, 80), (2, 1, 16)]
)
@pytest.mark.parametrize("capacity", [40, 300, 1500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_a_step_is_that_of_the_definition(
    num_heads, num_kv_heads, head_dim, capacity, dtype
):
    slots = 3
    shape = (slots, num_kv_heads, capacity, head_dim)
    keys, values = (torch.randn(shape, device=CUDA).to(dtype) for _ in range(2))
    lengths = torch.tensor([0, capacity // 2, capacity - 1], dtype=torch.int32, device=CUDA)
    widths = [num_heads * head_dim] + 2 * [num_kv_heads * head_dim]
    fused = torch.randn(slots, sum(widths), device=CUDA).to(dtype)
    qkv = fused.split(widths, dim=-1)
    frequency = torch.rand(head_dim // 2, device=CUDA)
    bias = torch.randn(num_heads, 65, device=CUDA)
    for options in ({}, {"turn": Turn(frequency)}, {"bias": bias}):
        mine = CacheView(keys.clone(), values.clone(), lengths)
        theirs = CacheView(keys.float(), values.float(), lengths)
        out = ops.step_attention(qkv, mine, head_dim**-0.5, **options)
        expected = reference.step_attention(
            [t.float() for t in qkv], theirs, head_dim**-0.5, **options
        )
        # Keys and values were rounded to the dtype as they went into the cache.
        assert _error(out, expected.double()) < {torch.float32: 1e-5}.get(
            dtype, PRODUCT_ERROR[dtype] * 2
        )
        assert torch.allclose(mine.keys.float(), theirs.keys, rtol=1e-2, atol=1e-2)
        assert torch.allclose(mine.values.float(), theirs.values, rtol=1e-2, atol=1e-2)


def _copy(vectors):
    return Int8Vectors(*(part.clone() for part in parts_of(vectors)))


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(4, 4, 64), (8, 2, 128), (16, 2, 128), (3, 3, 80), (2, 1, 16), (4, 2, 256)],
)
@pytest.mark.parametrize("capacity", [40, 300, 1500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_an_int8_cache_is_that_of_the_definition(
    num_heads, num_kv_heads, head_dim, capacity, dtype
):
    slots = 4
    shape = (slots, num_kv_heads, capacity, head_dim)
    keys, values = (quantize_vectors(torch.randn(shape, device=CUDA).to(dtype)) for _ in range(2))
    places = [0, capacity // 2, IDLE, capacity - 1]
    lengths = torch.tensor(places, dtype=torch.int32, device=CUDA)
    widths = [num_heads * head_dim] + 2 * [num_kv_heads * head_dim]
    qkv = torch.randn(slots, sum(widths), device=CUDA).to(dtype).split(widths, dim=-1)
    frequency = torch.rand(head_dim // 2, device=CUDA)
    bias = torch.randn(num_heads, 65, device=CUDA)
    kept = [slot for slot, place in enumerate(places) if place != IDLE]
    for options in ({}, {"turn": Turn(frequency)}, {"bias": bias}):
        mine = CacheView(_copy(keys), _copy(values), lengths)
        theirs = CacheView(_copy(keys), _copy(values), lengths)
        out = ops.step_attention(qkv, mine, head_dim**-0.5, **options)
        expected = reference.step_attention(qkv, theirs, head_dim**-0.5, **options)
        error = _error(out[kept], expected[kept].double())
        # A turned component that lies between two integers may go to either.
        limit = {torch.float32: 1e-5}.get(dtype, PRODUCT_ERROR[dtype] * 2)
        assert error < (max(limit, 3e-3) if "turn" in options else limit)
        for got, want in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            assert torch.equal(got.scale, want.scale) or "turn" in options
            assert torch.allclose(got.scale.float(), want.scale.float(), rtol=1e-2)
            off = (got.data.int() - want.data.int()).abs()
            assert int(off.max()) <= (2 if "turn" in options else 0)


def test_a_slot_over_an_int8_cache_gets_the_same_bits_alone_and_beside_others():
    slots, capacity = 5, 700
    shape = (slots, 2, capacity, 64)
    keys, values = (quantize_vectors(torch.randn(shape, device=CUDA)) for _ in range(2))
    lengths = torch.tensor([3, 699, IDLE, 64, 300], dtype=torch.int32, device=CUDA)
    qkv = [torch.randn(slots, 2 * 64, device=CUDA).half() for _ in range(3)]
    together = CacheView(_copy(keys), _copy(values), lengths)
    out = ops.step_attention(qkv, together, 0.125)
    for slot in (0, 1, 3, 4):
        own = slice(slot, slot + 1)
        alone = CacheView(_copy(keys[own]), _copy(values[own]), lengths[own])
        assert torch.equal(ops.step_attention([t[own] for t in qkv], alone, 0.125), out[own])
        for part, whole in zip(parts_of(alone.keys), parts_of(together.keys), strict=True):
            assert torch.equal(part, whole[own])


def test_a_number_that_is_not_finite_shows_through_an_int8_cache():
    keys, values = (quantize_vectors(torch.randn(2, 1, 40, 64, device=CUDA)) for _ in range(2))
    lengths = torch.tensor([7, 7], dtype=torch.int32, device=CUDA)
    qkv = [torch.randn(2, 64, device=CUDA).half() for _ in range(3)]
    qkv[1][1, 60] = qkv[2][1, 60] = float("nan")
    view = CacheView(keys, values, lengths)
    out = ops.step_attention(qkv, view, 0.125)
    assert torch.isfinite(out[0]).all()
    assert keys.scale[:, 0, 7].isnan().tolist() == [False, True]
    assert values.scale[:, 0, 7].isnan().tolist() == [False, True]


@pytest.mark.parametrize("is_int8", [False, True])
def test_cross_attention_reads_as_many_keys_as_there_are(is_int8):
    keys, values = (torch.randn(3, 4, 100, 64, device=CUDA).half() for _ in range(2))
    lengths = torch.tensor([100, IDLE, 37], dtype=torch.int32, device=CUDA)
    if is_int8:
        keys, values = quantize_vectors(keys), quantize_vectors(values)
    q = torch.randn(3, 256, device=CUDA).half()
    view = CacheView(keys, values, lengths)
    out = ops.step_attention((q, None, None), view, 0.125)
    expected = reference.step_attention((q.float(), None, None), view, 0.125)
    assert _error(out[[0, 2]], expected[[0, 2]].double()) < 2e-3


def test_attention_without_new_keys_leaves_the_cache_alone():
    keys, values = (torch.randn(2, 4, 100, 64, device=CUDA).half() for _ in range(2))
    view = CacheView(
        keys.clone(), values.clone(), torch.tensor([100, 37], dtype=torch.int32, device=CUDA)
    )
    q = torch.randn(2, 256, device=CUDA).half()
    out = ops.step_attention((q, None, None), view, 1.0)
    wide = CacheView(keys.float(), values.float(), view.lengths)
    expected = reference.step_attention((q.float(), None, None), wide, 1.0)
    assert _error(out, expected.double()) < 2e-3
    assert torch.equal(view.keys, keys)
    assert torch.equal(view.values, values)


def test_embedding_rows_are_those_of_the_table():
    weight = _weight(1000, 320)
    token_ids = torch.tensor([[0], [999], [517]], device=CUDA)
    dense = weight.dequantize(torch.float16)
    assert torch.equal(ops.embedding(tiled(weight), token_ids, torch.float16), dense[token_ids])
    positions = torch.randn(20, 320, device=CUDA).half()
    places = torch.tensor([0, 19, 25], dtype=torch.int32, device=CUDA)
    out = ops.step_embedding(tiled(weight), token_ids, torch.float16, positions, places)
    assert torch.equal(out, dense[token_ids] + positions[[0, 19, 19]][:, None])


def test_the_most_probable_token_is_chosen_and_noted():
    states = []
    logits = torch.randn(3, 5003)
    logits[1, [7, 4000]] = 9.0  # the first among equals
    suppressed = torch.zeros(5003, dtype=torch.bool)
    suppressed[logits[0].argmax()] = True
    ending = torch.tensor([7], dtype=torch.int32)
    for device in ("cpu", CUDA):
        state = StepState.allocate(torch.tensor([5, 6, 7], dtype=torch.int32, device=device), 4)
        for _ in range(2):
            ops.most_probable(logits.to(device), suppressed.to(device), state)
            ops.finish_step(state, ending.to(device))
        states.append(state)
    ours, theirs = states[1], states[0]
    for name in ("token_ids", "lengths", "num_output", "output_ids", "is_done", "status"):
        assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)), name
    assert torch.allclose(ours.output_logprobs.cpu(), theirs.output_logprobs, atol=1e-5)
    assert ours.num_output.tolist() == [2, 1, 2]


def test_a_logit_that_is_not_finite_sets_the_status():
    state = StepState.allocate(torch.zeros(1, dtype=torch.int32, device=CUDA), 4)
    logits = torch.zeros(1, 100, device=CUDA)
    ops.most_probable(logits, None, state)
    assert state.status.item() == 0
    logits[0, 50] = float("nan")
    ops.most_probable(logits, None, state)
    assert state.status.item() == 1
