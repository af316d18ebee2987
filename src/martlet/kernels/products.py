"""Operations with a matrix of weights: see ``ops``, the door to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.kernels import tiled
from martlet.kernels.cpu.grouped_linear import grouped_linear
from martlet.kernels.cpu.int8_linear import int8_linear
from martlet.kernels.cuda import decode, few_rows, many_rows
from martlet.kernels.norm import Norm
from martlet.kernels.pointwise import ACTIVATIONS
from martlet.kernels.pointwise import norm as apply_norm
from martlet.quantization.packing import tile_rows_of
from martlet.quantization.scheme import (
    GroupedTensor,
    ObservedWeight,
    QuantizedTensor,
    TiledTensor,
    Weight,
)

__all__ = ["embedding", "gated_linear", "linear", "linears", "logits"]


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(norm(x) @ weight.T + bias) + residual``; what is None is left out.

    Shapes:
        x: (..., in_features)
        weight: (out_features, in_features), float of any dtype or int8
        bias: (out_features,)
        residual: (..., out_features), dtype of ``x``
        return: (..., out_features), dtype of ``x``
    """
    if residual is not None:
        assert residual.dtype == x.dtype
        assert residual.shape == (*x.shape[:-1], weight.shape[0])
    tiles = _tiles(x, [weight])
    if tiles is not None:
        rows = x.reshape(-1, x.shape[-1])
        added = None if residual is None else residual.reshape(rows.shape[0], -1)
        epilogue = few_rows.Epilogue(activation, added)
        return _tiled_product(rows, tiles, [bias], norm, epilogue).view(*x.shape[:-1], -1)
    out = _product(_normal(x, norm), weight, bias)
    if activation is not None:
        out = ACTIVATIONS[activation](out)
    if residual is None:
        return out
    # A gradient may need what stood there.
    return out + residual if torch.is_grad_enabled() else out.add_(residual)


def logits(
    x: Tensor, weight: Weight, bias: Tensor | None = None, *, norm: Norm | None = None
) -> Tensor:
    """``norm(x) @ weight.T + bias`` in float32: what tokens are chosen by.

    Shapes:
        x: (..., in_features)
        weight: (vocab_size, in_features)
        bias: (vocab_size,)
        return: (..., vocab_size) float32
    """
    tiles = _tiles(x, [weight])
    if tiles is not None:
        rows = x.reshape(-1, x.shape[-1])
        epilogue = few_rows.Epilogue(dtype=torch.float32)
        out = _tiled_product(rows, tiles, [bias], norm, epilogue)
        return out.view(*x.shape[:-1], -1)
    out = _product(_normal(x, norm), weight, None).float()
    return out if bias is None else out + bias.float()


def linears(
    x: Tensor,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    *,
    norm: Norm | None = None,
) -> tuple[Tensor, ...]:
    """``norm(x) @ weight.T + bias`` for several weights, as for queries, keys and values.

    Shapes:
        x: (..., in_features)
        weights: (out_features, in_features) each, with an out_features of their own
        biases: one a weight, (out_features,)
        return: one a weight, (..., out_features), dtype of ``x``
    """
    tiles = _tiles(x, weights)
    if tiles is not None and len(tiles) > few_rows.MAX_SEGMENTS:
        first, rest = slice(few_rows.MAX_SEGMENTS), slice(few_rows.MAX_SEGMENTS, None)
        some = linears(x, weights[first], biases[first], norm=norm)
        return (*some, *linears(x, weights[rest], biases[rest], norm=norm))
    if tiles is not None:
        rows = x.reshape(-1, x.shape[-1])
        out = _tiled_product(rows, tiles, biases, norm, few_rows.Epilogue())
        sizes = [weight.shape[0] for weight in weights]
        return torch.split(out.view(*x.shape[:-1], -1), sizes, dim=-1)
    normal = _normal(x, norm)
    return tuple(
        _product(normal, weight, bias) for weight, bias in zip(weights, biases, strict=True)
    )


def gated_linear(
    x: Tensor, gate: Weight, up: Weight, activation: str, *, norm: Norm | None = None
) -> Tensor:
    """``activation(norm(x) @ gate.T) * (norm(x) @ up.T)``.

    Shapes:
        x: (..., in_features)
        gate, up: (out_features, in_features)
        return: (..., out_features), dtype of ``x``
    """
    assert gate.shape == up.shape
    tiles = _tiles(x, [gate, up])
    if tiles is not None:
        rows = x.reshape(-1, x.shape[-1])
        if _is_few(rows):
            out = few_rows.gated_linear(rows.contiguous(), tiles[0], tiles[1], activation, norm)
        else:
            out = many_rows.gated_linear(_normal(rows, norm), tiles[0], tiles[1], activation)
        return out.view(*x.shape[:-1], -1)
    normal = _normal(x, norm)
    return ACTIVATIONS[activation](_product(normal, gate, None)) * _product(normal, up, None)


def _tiles(x: Tensor, weights: Sequence[Weight]) -> list[TiledTensor] | None:
    """The weights where one launch of the GPU's own kernels takes all of them, else None."""
    tiles = [weight for weight in weights if isinstance(weight, TiledTensor)]
    is_one_format = len({weight.format for weight in tiles}) == 1
    return tiles if x.is_cuda and is_one_format and len(tiles) == len(weights) else None


def _is_few(rows: Tensor) -> bool:
    return rows.shape[0] <= few_rows.MAX_ROWS and rows.shape[1] % 8 == 0


def _tiled_product(
    rows: Tensor,
    tiles: Sequence[TiledTensor],
    biases: Sequence[Tensor | None],
    norm: Norm | None,
    epilogue: few_rows.Epilogue,
) -> Tensor:
    if _is_few(rows):
        return few_rows.linear(rows.contiguous(), tiles, biases, norm, epilogue)
    return many_rows.linear(_normal(rows, norm), tiles, biases, epilogue)


def _normal(x: Tensor, parameters: Norm | None) -> Tensor:
    return x if parameters is None else apply_norm(x, parameters)


def _product(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    out_features, in_features = weight.shape
    assert x.shape[-1] == in_features, f"{tuple(x.shape)} does not fit a weight {weight.shape}"
    assert bias is None or bias.shape == (out_features,)
    if isinstance(weight, ObservedWeight):
        weight.observe(x.reshape(-1, in_features))
        return _product(x, weight.weight, bias)
    if isinstance(weight, Tensor) and weight.dtype == x.dtype:
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    rows = x.reshape(-1, in_features)
    if isinstance(weight, TiledTensor) and x.is_cuda:
        return _tiled_product(rows, [weight], [bias], None, few_rows.Epilogue()).view(
            *x.shape[:-1], out_features
        )
    if isinstance(weight, TiledTensor):
        out = rows @ weight.dequantize(x.dtype).T
    elif isinstance(weight, QuantizedTensor) and x.device.type == "cpu":
        out = int8_linear(rows, weight)
    elif isinstance(weight, GroupedTensor) and x.device.type == "cpu":
        out = grouped_linear(rows, weight)
    else:
        out = tiled.linear(rows, weight)
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], out_features)


def embedding(weight: Weight, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that ``token_ids`` names, as floats of ``dtype``; only those rows are converted.

    Shapes:
        weight: (num_embeddings, hidden_size), float or int8
        token_ids: (...) int64
        return: (..., hidden_size)
    """
    if isinstance(weight, ObservedWeight):
        return embedding(weight.weight, token_ids, dtype)
    if isinstance(weight, QuantizedTensor):
        rows = F.embedding(token_ids, weight.data).to(torch.float32)
        return (rows * weight.scale[token_ids].to(torch.float32)[..., None]).to(dtype)
    if isinstance(weight, TiledTensor):
        if token_ids.is_cuda:
            rows = decode.embed(token_ids.reshape(-1), weight, dtype)
            return rows.view(*token_ids.shape, -1)
        if weight.groups is not None:
            return embedding(weight.untiled(), token_ids, dtype)
        integers = tile_rows_of(weight.data, token_ids, weight.shape[1])
        return (integers.to(torch.float32) * weight.scale[token_ids][..., None]).to(dtype)
    if isinstance(weight, GroupedTensor):
        rows = weight.picked(token_ids.reshape(-1)).dequantize(dtype)
        return rows.view(*token_ids.shape, -1)
    return F.embedding(token_ids, weight).to(dtype)
