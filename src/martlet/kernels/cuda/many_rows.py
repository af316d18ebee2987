"""Products of many rows with tiled weights on a GPU: encoders, and the prompt of a decoder.

Two ways (``gemm_route`` chooses): panels of the weight become floats and the float library
multiplies them, on any card and in any dtype; or our own kernels read the tiles, which spares the
float weights the trip through memory. For these the activations become float16, scaled token by
token, which loses nothing of bfloat16 but what is 2**29 times smaller than the largest number of
its token; float32 is multiplied as the sum of two float16 numbers, 22 bits of it. Sums are float32,
but matrix units cut off where other units round.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.kernels.cuda import panels
from martlet.kernels.cuda.driver import device_limits, load_kernels
from martlet.kernels.cuda.few_rows import ACTIVATION_NUMBERS, ACTIVATION_TYPES, Epilogue
from martlet.kernels.cuda.gemm_route import Dequantized, FromTiles, Route, Size, choose_route
from martlet.kernels.cuda.linear_arguments import format_defines
from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.packing import TILE_COLUMNS, TILE_ROWS, tile_columns
from martlet.quantization.scheme import TiledTensor

__all__ = ["gated_linear", "kernel_choice", "linear"]

_STAGE_CHUNKS = 2  # gemm_hopper reads two chunks at a time
_PLAIN = Epilogue()
_WARPS = 8  # of a block of pack_rows


class _Product(ctypes.Structure):
    """The structure of the same name in gemm_output.cuh."""

    _fields_ = (
        ("tiles", ctypes.c_void_p * 2),
        ("groups", ctypes.c_void_p * 2),
        ("scale", ctypes.c_void_p * 2),
        *((name, ctypes.c_void_p) for name in ("x", "token_scale", "bias", "residual", "y")),
        ("partial", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("num_tiles", "chunks", "x_chunks", "parts")),
        *((name, ctypes.c_int) for name in ("tokens", "padded_tokens", "rows", "y_stride")),
        *((name, ctypes.c_int) for name in ("residual_stride", "padded_rows", "activation")),
        *((name, ctypes.c_int) for name in ("is_y_float", "is_aligned")),
    )


@dataclass(frozen=True)
class _PackedRows:
    """Activations in the order of the matrix units (see pack_rows.cu).

    Shapes:
        data: (parts * chunks, padded tokens, 32) float16
        scale: (padded tokens,) float32

    ``dtype`` is what the activations were before.
    """

    data: Tensor
    scale: Tensor
    chunks: int
    parts: int
    dtype: torch.dtype


def linear(
    x: Tensor,
    weights: Sequence[TiledTensor],
    biases: Sequence[Tensor | None],
    epilogue: Epilogue = _PLAIN,
    route: Route | None = None,
) -> Tensor:
    """``act(x @ W.T + bias) + residual`` for weights side by side, which share the input.

    Shapes:
        x: (tokens, in_features)
        biases: one a weight, (out_features,), dtype of ``x``
        return: (tokens, sum of out_features)

    ``route`` is chosen for the first weight if it is not given.
    """
    tokens, in_features = x.shape
    assert tokens > 0
    assert len(weights) == len(biases) > 0
    assert all(weight.shape[1] == in_features for weight in weights)
    route = route or _route(x, weights[0], is_gated=False)
    if isinstance(route, Dequantized):
        return panels.linear(x, weights, biases, epilogue, route.panel_bytes)
    width = sum(weight.shape[0] for weight in weights)
    y = torch.empty((tokens, width), dtype=epilogue.dtype or x.dtype, device=x.device)
    packed = _pack_rows(x, route)
    start = 0
    for weight, bias in zip(weights, biases, strict=True):
        stop = start + weight.shape[0]
        residual = None if epilogue.residual is None else epilogue.residual[:, start:stop]
        part = Epilogue(epilogue.activation, residual)
        _from_tiles(packed, (weight,), bias, part, y[:, start:stop], route)
        start = stop
    return y


def gated_linear(
    x: Tensor, gate: TiledTensor, up: TiledTensor, activation: str, route: Route | None = None
) -> Tensor:
    """``act(x @ gate.T) * (x @ up.T)``.

    Shapes:
        x: (tokens, in_features)
        return: (tokens, out_features)
    """
    assert gate.shape == up.shape
    assert gate.shape[1] == x.shape[1]
    route = route or _route(x, gate, is_gated=True)
    if isinstance(route, Dequantized):
        return panels.gated_linear(x, gate, up, activation, route.panel_bytes)
    y = torch.empty((x.shape[0], gate.shape[0]), dtype=x.dtype, device=x.device)
    packed = _pack_rows(x, route)
    _from_tiles(packed, (gate, up), None, Epilogue(activation), y, route)
    return y


def _route(x: Tensor, weight: TiledTensor, is_gated: bool) -> Route:
    tokens, in_features = x.shape
    out_features = weight.shape[0] * (2 if is_gated else 1)
    # Two parts are twice the inputs.
    size = Size(
        tokens,
        out_features,
        in_features * _parts(x.dtype),
        is_gated,
        is_half=x.dtype != torch.float32,
        has_groups=weight.groups is not None,
    )
    return _route_of(x.device, size)


@functools.lru_cache(maxsize=512)
def _route_of(device: torch.device, size: Size) -> Route:
    limits = device_limits(device)
    return choose_route(limits.capability, limits.num_multiprocessors, size)


def _parts(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.float32 else 1


def _pack_rows(x: Tensor, route: FromTiles) -> _PackedRows:
    tokens, columns = x.shape
    if columns % TILE_COLUMNS:
        x = F.pad(x, (0, -columns % TILE_COLUMNS))
    if x.stride(1) != 1 or x.stride(0) * x.element_size() % 16 or x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    chunks = -(-x.shape[1] // (TILE_COLUMNS * _STAGE_CHUNKS)) * _STAGE_CHUNKS
    padded_tokens = -(-tokens // route.tokens) * route.tokens
    parts = _parts(x.dtype)
    shape = (parts * chunks, padded_tokens, TILE_COLUMNS)
    data = torch.empty(shape, dtype=torch.float16, device=x.device)
    scale = torch.empty(padded_tokens, dtype=torch.float32, device=x.device)
    tiles = padded_tokens // 8
    # Two blocks a multiprocessor, as far as there is a chunk for each of their warps.
    wanted = -(-2 * device_limits(x.device).num_multiprocessors // tiles)
    ranges = max(1, min(wanted, chunks // _WARPS))
    load_kernels("pack_rows", {"ACTIVATION_TYPE": ACTIVATION_TYPES[x.dtype]}, x.device)[
        "pack_rows"
    ](
        (tiles, ranges, 1),
        _WARPS * 32,
        *(x, data, scale),
        *(tokens, x.shape[1], x.stride(0), chunks, parts),
    )
    return _PackedRows(data, scale, chunks, parts, x.dtype)


def _from_tiles(
    packed: _PackedRows,
    weights: tuple[TiledTensor, ...],
    bias: Tensor | None,
    epilogue: Epilogue,
    y: Tensor,
    route: FromTiles,
) -> None:
    product = _product(packed, weights, bias, epilogue, y)
    is_gated = len(weights) == 2
    assert not is_gated or route.splits == 1
    assert route.splits <= packed.chunks * packed.parts // _STAGE_CHUNKS
    row_blocks = -(-weights[0].shape[0] * len(weights) // route.block_rows)
    padded_tokens = packed.scale.shape[0]
    product.padded_rows = row_blocks * route.block_rows
    partial = None
    if route.splits > 1:
        shape = (route.splits, padded_tokens, product.padded_rows)
        partial = torch.empty(shape, dtype=torch.float32, device=y.device)
        product.partial = partial.data_ptr()
    name, defines, shared_bytes = kernel_choice(
        route, ACTIVATION_TYPES[packed.dtype], is_gated, weights[0].format
    )
    module = load_kernels(name, defines, y.device)
    grid = (padded_tokens // route.tokens, row_blocks, route.splits)
    threads = 128 * (route.groups or 1)
    module[name](grid, threads, product, shared_bytes=shared_bytes)
    if partial is not None:
        grid = (-(-product.rows // 1024), product.tokens, 1)
        module["gemm_finish"](grid, 256, product, route.splits)


def kernel_choice(
    route: FromTiles, activation_type: int, is_gated: bool, format: WeightFormat = INT8
) -> tuple[str, dict[str, int], int]:
    """(source and kernel, its definitions, dynamic shared memory in bytes)."""
    defines = {"ACTIVATION_TYPE": activation_type, "TOKENS": route.tokens, "GATED": int(is_gated)}
    if not route.groups:
        halves = tile_columns(format.bits) // TILE_COLUMNS
        shared_bytes = 4 * (route.block_rows * 32 + halves * route.tokens * 64)
        return "gemm", defines | format_defines(format), shared_bytes
    assert format == INT8
    stage_bytes = route.block_rows * 64 + route.tokens * 128
    # Ten stages or what fits into 200 KiB, of the 227 that a block of Hopper may have.
    stages = min(10, (200 << 10) // stage_bytes)
    defines |= {"GROUPS": route.groups, "STAGES": stages}
    return "gemm_hopper", defines, 256 + stages * stage_bytes


def _product(
    packed: _PackedRows,
    weights: tuple[TiledTensor, ...],
    bias: Tensor | None,
    epilogue: Epilogue,
    y: Tensor,
) -> _Product:
    assert y.stride(1) == 1
    product = _Product(
        x=packed.data.data_ptr(),
        token_scale=packed.scale.data_ptr(),
        y=y.data_ptr(),
        num_tiles=weights[0].scale.shape[0] // TILE_ROWS,
        chunks=-(-weights[0].shape[1] // tile_columns(weights[0].format.bits)),
        x_chunks=packed.chunks,
        parts=packed.parts,
        tokens=y.shape[0],
        padded_tokens=packed.scale.shape[0],
        rows=y.shape[1],
        y_stride=y.stride(0),
        activation=ACTIVATION_NUMBERS[epilogue.activation],
        is_y_float=int(y.dtype == torch.float32),
        is_aligned=int(y.stride(0) % 4 == 0 and y.data_ptr() % (4 * y.element_size()) == 0),
    )
    for i, weight in enumerate(weights):
        assert weight.data.data_ptr() % 16 == 0
        assert weight.scale.data_ptr() % 16 == 0
        product.tiles[i], product.scale[i] = weight.data.data_ptr(), weight.scale.data_ptr()
        if weight.groups is not None:
            product.groups[i] = weight.groups.data_ptr()
    if bias is not None:
        assert bias.is_contiguous()
        product.bias = bias.data_ptr()
    if epilogue.residual is not None:
        assert epilogue.residual.shape == y.shape
        assert epilogue.residual.stride(1) == 1
        product.residual = epilogue.residual.data_ptr()
        product.residual_stride = epilogue.residual.stride(0)
    return product
