"""Which way a product of many rows with tiled weights takes on a card.

Pure arithmetic on the sizes, so that it can be tried for cards that are not there.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Dequantized",
    "FromTiles",
    "Route",
    "Size",
    "choose_route",
    "most_panel_bytes",
]

DEFAULT_PANEL_BYTES = 32 << 20
"""Float weights that exist at a time: a large part of them is still in a level 2 cache of 40 to 60
MiB when they are multiplied, and a small card can spare them."""

# Measured on an H200 with 256 and 512 tokens, at 4096 x 4096 to 20480 x 4096: the library's product
# of dequantised panels of 64 MiB runs at 270-320 and 430-470 TFLOP/s, our own kernels at 240-330.
# This size holds each product of an 11B encoder but the gated one as a single panel.
_HOPPER_PANEL_BYTES = 96 << 20
_LIBRARY_TOKENS = 128


@dataclass(frozen=True)
class Dequantized:
    """Turn panels of the weight into floats, multiply with the float library."""

    panel_bytes: int = DEFAULT_PANEL_BYTES


@dataclass(frozen=True)
class FromTiles:
    """Multiply the tiles as they lie, by ``gemm_hopper`` where ``groups`` is not 0, else ``gemm``.

    Attributes:
        tokens: That a block computes.
        groups: Warpgroups of a block, 64 weight rows each.
        splits: Parts of the inputs that are summed by blocks of their own.
    """

    tokens: int
    groups: int
    splits: int

    @property
    def block_rows(self) -> int:
        """Weight rows that a block computes, both weights of a gated product counted."""
        return self.groups * 64 if self.groups else 128


Route = Dequantized | FromTiles


@dataclass(frozen=True)
class Size:
    """A product: ``out_features`` counts the rows of both weights if it is gated.

    ``is_half`` tells activations of 16 bits from float32, ``has_groups`` weights whose groups have
    scales: those the kernel for Hopper does not know.
    """

    tokens: int
    out_features: int
    in_features: int
    is_gated: bool = False
    is_half: bool = True
    has_groups: bool = False


def most_panel_bytes(capability: tuple[int, int]) -> int:
    """Memory that a product may take for float weights on such a card."""
    return _HOPPER_PANEL_BYTES if capability == (9, 0) else DEFAULT_PANEL_BYTES


def choose_route(capability: tuple[int, int], num_multiprocessors: int, size: Size) -> Route:
    """The way that is expected to be fastest.

    Cards before 8.0 lack the asynchronous copies that the kernels are made of.
    """
    if capability < (8, 0):
        return Dequantized()
    if capability == (9, 0) and size.is_half and size.tokens >= _LIBRARY_TOKENS:
        return Dequantized(most_panel_bytes(capability))
    is_hopper = capability == (9, 0) and not size.has_groups
    routes = _hopper_routes(size) if is_hopper else _plain_routes(size)
    return min(routes, key=lambda route: _cycles(route, num_multiprocessors, size))


def _hopper_routes(size: Size) -> list[FromTiles]:
    return [
        FromTiles(tokens, count, splits)
        for tokens in (64, 128)
        for count in (2, 3, 4)
        for splits in _splits(size)
    ]


def _plain_routes(size: Size) -> list[FromTiles]:
    return [FromTiles(tokens, 0, splits) for tokens in (32, 64, 128) for splits in _splits(size)]


def _splits(size: Size) -> range:
    # A gated product has to see both whole sums. A part shorter than 512 inputs is all overhead.
    return range(1, 2 if size.is_gated else 1 + max(1, min(8, size.in_features // 512)))


# Per cycle and multiprocessor: products on Hopper's matrix units at three quarters of their peak,
# by mma at a third of that peak, and bytes out of the level 2 cache (about 7 TB/s in all).
_PRODUCTS_HOPPER, _PRODUCTS_PLAIN, _CACHE_BYTES = 1700, 800, 36
_TURN_TOKENS = 16  # what turning a weight into float16 costs, in products of it
_BLOCK_CYCLES = 3000  # to fill the ring and to write the output
_FINISH_CYCLES = 4000  # of one more kernel


def _cycles(route: FromTiles, num_multiprocessors: int, size: Size) -> float:
    """Estimated time: whole waves of blocks, each bound by its products or by its operands."""
    blocks = -(-size.tokens // route.tokens) * -(-size.out_features // route.block_rows)
    waves = -(-blocks * route.splits // num_multiprocessors)
    inputs = size.in_features / route.splits
    products = route.block_rows * route.tokens * inputs
    operands = (route.block_rows + 2 * route.tokens) * inputs
    rate: float = _PRODUCTS_HOPPER if route.groups else _PRODUCTS_PLAIN
    rate *= route.tokens / (route.tokens + _TURN_TOKENS)
    cycles = waves * (max(products / rate, operands / _CACHE_BYTES) + _BLOCK_CYCLES)
    if route.splits > 1:
        # Written once and read once, in float32.
        traffic = 8 * route.splits * size.tokens * size.out_features
        cycles += _FINISH_CYCLES + traffic / (_CACHE_BYTES * num_multiprocessors)
    return cycles
