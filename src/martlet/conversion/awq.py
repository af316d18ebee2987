"""The integers of an AWQ checkpoint ("gemm" layout) in our order, without a change to any of them.

For a linear of I inputs, O outputs and G groups the file has, eight integers of 4 bits in a word:

    qweight  int32 (I, O / 8)   outputs 8 j to 8 j + 7 in word j, in the order of ``_ORDER``
    qzeros   int32 (G, O / 8)   likewise
    scales   float16 (G, O)

    w[o, i] = (q[i, o] - zero[i // group_size, o]) * scale[i // group_size, o]
"""

from __future__ import annotations

import torch
from torch import Tensor

from martlet.quantization.nibbles import pack_nibbles, unpack_nibbles

__all__ = ["awq_integers", "awq_zeros"]

# Bits 4 n to 4 n + 3 of a word belong to output _ORDER[n] of its eight.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_POSITIONS = tuple(_ORDER.index(output) for output in range(8))
# Words of a row that are unpacked at a time: of 8,192 inputs 8 MiB.
_WORDS_AT_ONCE = 128


def awq_integers(qweight: Tensor) -> Tensor:
    """The integers as ``GroupedTensor.data`` has them.

    Shapes:
        qweight: (in_features, out_features / 8) int32, in_features even
        return: (out_features, in_features / 2) uint8
    """
    in_features, num_words = qweight.shape
    data = torch.empty(num_words * 8, in_features // 2, dtype=torch.uint8)
    for start in range(0, num_words, _WORDS_AT_ONCE):
        values = _unpacked(qweight[:, start : start + _WORDS_AT_ONCE])
        data[start * 8 : start * 8 + values.shape[1]] = pack_nibbles(values.T)
    return data


def awq_zeros(qzeros: Tensor) -> Tensor:
    """The zeros of all groups.

    Shapes:
        qzeros: (num_groups, out_features / 8) int32
        return: (out_features, num_groups) uint8
    """
    return _unpacked(qzeros).T


def _unpacked(words: Tensor) -> Tensor:
    """Integers in the order of the outputs: (rows, words) int32 to (rows, words * 8) uint8."""
    rows, num_words = words.shape
    stored = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    values = unpack_nibbles(stored, num_words * 8).view(rows, num_words, 8)
    return values[:, :, list(_POSITIONS)].view(rows, num_words * 8)
