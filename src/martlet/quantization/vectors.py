"""Vectors of int8 with a scale each: what a cache keeps of keys and values.

The scale is bfloat16: it has the range of float32, which keys and values of a model in bfloat16 or
float32 may use, in two bytes. That it has 8 bits only costs nothing, for the integers are made with
the rounded scale: no component is further from its integer times the scale than half of the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SCALE_DTYPE", "Int8Vectors", "KeysValues", "parts_of", "quantize_vectors"]

SCALE_DTYPE = torch.bfloat16

_LARGEST = 127
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Int8Vectors:
    """Vectors along the last axis; component i of vector v is ``data[v, i] * scale[v]``.

    An index must leave the last axis alone; what it gives is a view where a tensor's would be.

    Shapes:
        data: (..., size) int8
        scale: (...,) bfloat16
    """

    data: Tensor
    scale: Tensor

    @classmethod
    def zeros(cls, shape: tuple[int, ...], device: torch.device) -> Int8Vectors:
        """As many vectors of zeros; the last number of the shape is their size."""
        return cls(
            torch.zeros(shape, dtype=torch.int8, device=device),
            torch.zeros(shape[:-1], dtype=SCALE_DTYPE, device=device),
        )

    @property
    def shape(self) -> torch.Size:
        """The shape of the vectors' components."""
        return self.data.shape

    @property
    def nbytes(self) -> int:
        """Bytes of integers and scales."""
        return self.data.nbytes + self.scale.nbytes

    def is_contiguous(self) -> bool:
        """Whether vectors and scales lie in memory without gaps."""
        return self.data.is_contiguous() and self.scale.is_contiguous()

    def __getitem__(self, index: Any) -> Int8Vectors:
        return Int8Vectors(self.data[index], self.scale[index])

    def unbind(self) -> tuple[Int8Vectors, ...]:
        """The vectors along the first axis, as views."""
        return tuple(map(Int8Vectors, self.data.unbind(), self.scale.unbind()))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The vectors as floats, rounded once.

        Shapes:
            return: (..., size) of ``dtype``
        """
        out = torch.empty(self.shape, dtype=dtype, device=self.data.device)
        return torch.mul(self.data, self.scale.float()[..., None], out=out)


KeysValues = Tensor | Int8Vectors
"""Keys, values or both as a cache keeps them."""


def quantize_vectors(x: Tensor) -> Int8Vectors:
    """The nearest integers under the smallest scale for each vector.

    A vector with a component that is not finite gets a scale that is not, so that what is computed
    with it shows that too.

    Shapes:
        x: (..., size) float
    """
    # Times and not divided by: torch rounds a division by a number otherwise on a GPU.
    scale = x.abs().amax(dim=-1, keepdim=True).float().mul_(1 / _LARGEST).to(SCALE_DTYPE)
    step = scale.float().clamp_min_(_TINY)
    # Rounding the scale may have made it a little too small for the largest component.
    data = (x.float() / step).round_().clamp_(-_LARGEST, _LARGEST)
    return Int8Vectors(data.to(torch.int8), scale[..., 0])


def parts_of(vectors: KeysValues) -> tuple[Tensor, ...]:
    """The tensors that are indexed alike: floats alone, or integers and scales."""
    return (vectors,) if isinstance(vectors, Tensor) else (vectors.data, vectors.scale)
