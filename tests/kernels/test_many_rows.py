from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from martlet.compression.absmax import quantize_rows
from martlet.kernels.cuda import many_rows, panels
from martlet.kernels.cuda.few_rows import Epilogue
from martlet.kernels.cuda.gemm_route import Dequantized, FromTiles, Route
from martlet.kernels.ops import ACTIVATIONS
from martlet.quantization.packing import pack_tiles
from martlet.quantization.scheme import TiledTensor, tiled

FLOATS = [torch.float16, torch.bfloat16, torch.float32]
# One rounding of the result. float32: matrix units cut off each of the up to 320 sums of two parts
# x 2560 inputs, at up to 2**-23 of it.
ROUNDING = {torch.float16: 5e-4, torch.bfloat16: 3e-3, torch.float32: 3e-5}


# What follows models in numpy which number lies where in memory and in the registers of a lane, by
# the same arithmetic as the kernels, and multiplies by what a matrix unit does with registers.


def _packed_rows(x: np.ndarray) -> np.ndarray:
    """pack_rows.cu for float16: words of 8 slots, [chunk][token tile][lane]."""
    tokens, columns = x.shape
    words = np.zeros((columns // 32, tokens // 8, 32, 8), dtype=np.float16)
    for chunk in range(columns // 32):
        for tile in range(tokens // 8):
            for lane in range(32):
                q, half = lane >> 4, lane >> 3 & 1
                start = chunk * 32 + q * 16 + half * 2
                for i in range(4):
                    pair = x[tile * 8 + (lane & 7), start + 4 * i : start + 4 * i + 2]
                    words[chunk, tile, lane, 2 * i : 2 * i + 2] = pair
    return words


def _left_registers(tile: np.ndarray, lane: int) -> np.ndarray:
    """``operands`` of gemm_output.cuh: [step][register][low, high] from a tile's 512 bytes."""
    words = tile[16 * lane : 16 * lane + 16].reshape(4, 4)  # x, y, z, w; then bytes
    halves = (0x6400 | words.astype(np.uint16)).view(np.float16) - np.float16(1152)
    x, y, z, w = halves
    return np.array([[x[:2], y[:2], x[2:], y[2:]], [z[:2], w[:2], z[2:], w[2:]]])


def _right_registers(core: np.ndarray, lane: int) -> np.ndarray:
    """ldmatrix.x4 with the address of row ``lane``: [step][register][low, high]."""
    rows = core.reshape(4, 8, 8)  # matrix, row, slot
    loaded = rows[:, lane >> 2, 2 * (lane & 3) : 2 * (lane & 3) + 2]
    return loaded.reshape(2, 2, 2)


def _matrix_unit(left: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
    """mma.m16n8k16 by the tables of the PTX manual: registers of 32 lanes -> (16, 8) sums."""
    a, b = np.zeros((16, 16)), np.zeros((16, 8))
    for lane in range(32):
        g, c = lane >> 2, lane & 3
        for register, (row, slot) in enumerate([(g, 0), (g + 8, 0), (g, 8), (g + 8, 8)]):
            a[row, slot + 2 * c : slot + 2 * c + 2] = left[lane][register]
        for register, slot in enumerate([0, 8]):
            b[slot + 2 * c : slot + 2 * c + 2, g] = right[lane][register]
    return a @ b


def test_registers_of_both_operands_meet_in_the_right_slots() -> None:
    random = np.random.default_rng(1)
    weight = random.integers(-127, 128, (32, 96)).astype(np.int8)
    x = random.standard_normal((16, 96)).astype(np.float16)
    tiles = pack_tiles(torch.from_numpy(weight)).numpy().reshape(2, 3, 512)
    packed = _packed_rows(x)
    sums = np.zeros((32, 16))
    for row_tile in range(2):
        for token_tile in range(2):
            for chunk in range(3):
                left = [_left_registers(tiles[row_tile, chunk], lane) for lane in range(32)]
                right = [_right_registers(packed[chunk, token_tile], lane) for lane in range(32)]
                for step in range(2):
                    block = _matrix_unit([a[step] for a in left], [b[step] for b in right])
                    rows, tokens = slice(row_tile * 16, None), slice(token_tile * 8, None)
                    sums[rows, tokens][:16, :8] += block
    # float64 sums of exact products: only their order differs.
    np.testing.assert_allclose(sums, weight.astype(float) @ x.astype(float).T, rtol=0, atol=1e-9)


def test_the_descriptor_of_the_warpgroup_product_walks_the_packed_rows() -> None:
    random = np.random.default_rng(2)
    x = random.standard_normal((64, 32)).astype(np.float16)
    memory = _packed_rows(x).reshape(-1)
    for step in range(2):
        for token in range(64):
            for slot in range(16):
                # Start of the step, 8 tokens 512 bytes apart, halves of the slots 128.
                byte = step * 256 + token // 8 * 512 + slot // 8 * 128 + token % 8 * 16
                column = 16 * step + 4 * (slot % 8 // 2) + 2 * (slot // 8) + slot % 2
                assert memory[byte // 2 + slot % 8] == x[token, column]


def _weight(out_features: int, in_features: int, seed: int = 0) -> TiledTensor:
    random = torch.Generator().manual_seed(seed)
    dense = torch.randn(out_features, in_features, generator=random)
    return tiled(quantize_rows(dense).to("cuda"))


def _x(tokens: int, in_features: int, dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, in_features, generator=random).to("cuda", dtype)


def _exact(x: Tensor, weight: TiledTensor) -> Tensor:
    quantized = weight.untiled()
    return x.double() @ quantized.data.double().T * quantized.scale.double()


def _assert_near(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    assert ((ours.double() - exact).norm() / exact.norm()).item() < tolerance


def _routes() -> list[Route]:
    routes: list[Route] = [Dequantized(1 << 16), Dequantized()]
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability >= (8, 0):
            routes += [FromTiles(tokens, 0, n) for tokens in (32, 64, 128) for n in (1, 3)]
        if capability == (9, 0):
            routes += [
                FromTiles(tokens, groups, n)
                for tokens in (64, 128)
                for groups in (2, 3, 4)
                for n in (1, 2)
            ]
    return routes


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(40, 96), (16, 32), (100, 2560), (4096, 200)], ids=str)
def test_dequantizing_gives_the_weight_bit_for_bit(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight = _weight(*shape)
    out = torch.full(shape, float("nan"), dtype=dtype, device="cuda")
    assert torch.equal(panels.dequantize(weight, out), weight.dequantize(dtype))
    part = torch.full((shape[0] - 16, shape[1]), float("nan"), dtype=dtype, device="cuda")
    if part.shape[0]:
        assert torch.equal(panels.dequantize(weight, part, 16), weight.dequantize(dtype)[16:])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sizes", [(48, 20), (96, 96, 96), (20, 48, 7, 300)], ids=str)
@pytest.mark.parametrize("panel_bytes", [1 << 14, 1 << 16, 1 << 24])
def test_a_panel_may_hold_rows_of_several_weights(
    dtype: torch.dtype, sizes: tuple[int, ...], panel_bytes: int
) -> None:
    x = _x(33, 200, dtype)
    weights = [_weight(size, 200, seed) for seed, size in enumerate(sizes)]
    ours = many_rows.linear(x, weights, [None] * len(sizes), route=Dequantized(panel_bytes))
    exact = torch.cat([_exact(x, weight) for weight in weights], dim=1)
    _assert_near(ours, exact, 2 * ROUNDING[dtype])  # the weights are rounded too


@pytest.mark.gpu
@pytest.mark.parametrize("route", _routes(), ids=str)
def test_a_product_may_be_float32_where_its_input_is_not(route: Route) -> None:
    x, weight = _x(33, 192, torch.bfloat16), _weight(100, 192)
    ours = many_rows.linear(x, [weight], [None], Epilogue(dtype=torch.float32), route)
    assert ours.dtype == torch.float32
    _assert_near(ours, _exact(x, weight), 2 * ROUNDING[x.dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("route", _routes(), ids=str)
@pytest.mark.parametrize("shape", [(40, 96), (272, 160), (1000, 2560)], ids=str)
@pytest.mark.parametrize("tokens", [17, 100, 300])
def test_every_route_gives_the_product(
    dtype: torch.dtype, route: Route, shape: tuple[int, int], tokens: int
) -> None:
    if isinstance(route, FromTiles) and route.splits > -(-shape[1] // 64):
        pytest.skip("more parts than inputs")
    x, weight = _x(tokens, shape[1], dtype), _weight(*shape)
    ours = many_rows.linear(x, [weight], [None], route=route)
    # Weights that were rounded to the half types add their own rounding.
    tolerance = ROUNDING[dtype] * (2 if isinstance(route, Dequantized) else 1)
    _assert_near(ours, _exact(x, weight), tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("route", _routes(), ids=str)
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu", "silu"])
def test_bias_activation_and_residual_of_several_weights(
    route: Route, activation: str | None
) -> None:
    x, weights = _x(33, 192, torch.bfloat16), [_weight(48, 192, 1), _weight(20, 192, 2)]
    biases = [_x(1, 48, x.dtype)[0], None]
    residual = _x(33, 68, x.dtype)
    exact = torch.cat([_exact(x, weight) for weight in weights], dim=1)
    exact[:, :48] += biases[0].double()
    if activation is not None:
        exact = ACTIVATIONS[activation](exact)
    exact += residual.double()
    ours = many_rows.linear(x, weights, biases, Epilogue(activation, residual), route)
    _assert_near(ours, exact, 3 * ROUNDING[x.dtype])  # torch's way rounds after each operation


@pytest.mark.gpu
@pytest.mark.parametrize("route", _routes(), ids=str)
def test_a_gated_product(route: Route) -> None:
    if isinstance(route, FromTiles) and route.splits > 1:
        pytest.skip("no route of gated products")
    x, gate, up = _x(70, 320, torch.float16), _weight(136, 320, 1), _weight(136, 320, 2)
    exact = ACTIVATIONS["gelu_new"](_exact(x, gate)) * _exact(x, up)
    ours = many_rows.gated_linear(x, gate, up, "gelu_new", route)
    _assert_near(ours, exact, 4 * ROUNDING[x.dtype])  # torch's way rounds after each operation


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("magnitude", [1e-30, 1e-5, 1e6, 1e30])
def test_activations_beyond_the_range_of_float16(dtype: torch.dtype, magnitude: float) -> None:
    x, weight = _x(20, 128, dtype) * magnitude, _weight(64, 128)
    _assert_near(many_rows.linear(x, [weight], [None]), _exact(x, weight), ROUNDING[dtype])


@pytest.mark.gpu
def test_rows_of_zeros_and_of_what_is_no_number_stay_what_they_are() -> None:
    x, weight = _x(20, 128, torch.bfloat16), _weight(64, 128)
    x[3], x[5, 7] = 0, float("nan")
    ours = many_rows.linear(x, [weight], [None])
    assert (ours[3] == 0).all()
    assert ours[5].isnan().all()
    others = torch.ones(20, dtype=torch.bool, device="cuda")
    others[5] = False
    assert ours[others].isfinite().all()
