"""The integers and scales in the blocks of GGUF files that our groups cannot hold as they are.

Every function takes blocks, (n, bytes of a block) uint8, and gives them as ``Parts``: what the
block's numbers are made of. All that is computed here is exact but for one rounding to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PARTS", "Parts", "halves", "scales_and_minima", "values"]


_PAIRS = range(0, 8, 2)


class Parts(NamedTuple):
    """Integers with a step for every few of them: ``integers * step + lowest``.

    Shapes:
        integers: (n, groups, size), any integer type
        step: (n, groups) float32
        lowest: (n, groups) float32, or None for zero
    """

    integers: Tensor
    step: Tensor
    lowest: Tensor | None


def values(parts: Parts) -> Tensor:
    """The numbers, (n, groups, size) float32; the sum is rounded once."""
    product = parts.integers.to(torch.float32).mul_(parts.step[..., None])
    return product if parts.lowest is None else product.add_(parts.lowest[..., None])


def halves(blocks: Tensor, first: int, count: int = 1) -> Tensor:
    """Some float16 numbers of each block, from byte ``first`` on, as (n, count) float32."""
    raw = blocks[:, first : first + 2 * count].contiguous()
    return raw.view(torch.float16).to(torch.float32)


def scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Step and lowest number, (n, 8) float32 each, of the blocks of Q4_K and Q5_K.

    Two float16 factors for the block, then 12 bytes with eight scales and eight minima of 6 bits:
    the first four of each in the lower bits of a byte, the others in halves of the last four bytes
    with their two upper bits above the first ones.
    """
    factors = halves(blocks, 0, 2)
    packed = blocks[:, 4:16]
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), dim=1)
    minima = torch.cat((second & 63, third >> 4 | second >> 6 << 4), dim=1)
    return factors[:, :1] * scales, -(factors[:, 1:] * minima)


def _q5_1(blocks: Tensor) -> Parts:
    factors = halves(blocks, 0, 2)
    integers = fifth_bits(blocks[:, 4:8]) | _nibble_halves(blocks[:, 8:24])
    return Parts(integers[:, None], factors[:, :1], factors[:, 1:])


def _q5_k(blocks: Tensor) -> Parts:
    step, lowest = scales_and_minima(blocks)
    low = blocks[:, 48:].reshape(-1, 4, 1, 32)
    low = torch.cat((low & 15, low >> 4), dim=2).view(-1, 8, 32)
    high = _shifted(blocks[:, 16:48], range(8)).bitwise_and_(1)
    return Parts(low.bitwise_or_(high.mul_(16)), step, lowest)


def _q6_k(blocks: Tensor) -> Parts:
    # (n, 2, 64): 32 numbers, 32 more, and in the upper halves of the bytes 64 more.
    low = blocks[:, :128].reshape(-1, 2, 64)
    low = torch.cat((low & 15, low >> 4), dim=2).view(-1, 2, 4, 32)
    high = _shifted(blocks[:, 128:192].reshape(-1, 2, 32), _PAIRS).bitwise_and_(3)
    integers = low.bitwise_or_(high.mul_(16)).view(torch.int8).sub_(32)
    scales = blocks[:, 192:208].contiguous().view(torch.int8)
    return Parts(integers.view(-1, 16, 16), halves(blocks, 208) * scales, None)


def _q2_k(blocks: Tensor) -> Parts:
    integers = _two_bits(blocks[:, 16:80])
    factors = halves(blocks, 80, 2)
    scales = blocks[:, :16]
    lowest = -(factors[:, 1:] * (scales >> 4))
    return Parts(integers.view(-1, 16, 16), factors[:, :1] * (scales & 15), lowest)


def _q3_k(blocks: Tensor) -> Parts:
    integers = _two_bits(blocks[:, 32:96])
    # Where the bit of a number is not set, four come off.
    high = _shifted(blocks[:, :32], range(8)).bitwise_and_(1)
    integers = integers.bitwise_or_(high.mul_(4)).view(torch.int8).sub_(4)
    packed = blocks[:, 96:108]
    low = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), dim=1)
    upper = _shifted(packed[:, 8:], _PAIRS).view(-1, 16).bitwise_and_(3)
    scales = low.bitwise_or_(upper.mul_(16)).view(torch.int8).sub_(32)
    return Parts(integers.view(-1, 16, 16), halves(blocks, 108) * scales, None)


def fifth_bits(packed: Tensor) -> Tensor:
    """32 bits as the fifth bits of numbers: (n, 4) uint8 to (n, 32) uint8, 0 or 16 each."""
    bits = _shifted(packed, range(8)).bitwise_and_(1)  # (n, bit, byte)
    return bits.transpose(1, 2).reshape(-1, 32).mul_(16)


def _nibble_halves(packed: Tensor) -> Tensor:
    """The lower halves of all bytes, then the upper ones: (n, 16) to (n, 32) uint8."""
    return torch.cat((packed & 15, packed >> 4), dim=1)


def _two_bits(packed: Tensor) -> Tensor:
    """Numbers of two bits, 32 neighbours in the same bits of 32 bytes: (n, 64) to (n, 8, 32)."""
    return _shifted(packed.reshape(-1, 2, 32), _PAIRS).bitwise_and_(3).view(-1, 8, 32)


def _shifted(packed: Tensor, shifts: range) -> Tensor:
    """(..., size) bytes shifted to the right by each number of bits: (..., shifts, size)."""
    packed = packed.contiguous()
    return torch.stack([packed >> shift for shift in shifts], dim=-2)


PARTS: Mapping[str, Callable[[Tensor], Parts]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q5_1": _q5_1,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
