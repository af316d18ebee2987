"""The integers of a GPTQ checkpoint in our order, without a change to any of them.

For a linear of I inputs, O outputs and G groups the file has, with 32 / bits integers in a word,
the first in the lowest bits:

    qweight  int32 (I * bits / 32, O)   consecutive inputs in a word
    qzeros   int32 (G, O * bits / 32)   consecutive outputs in a word; in the first format less 1
    scales   float (G, O)
    g_idx    int32 (I,)                 the group of each input; may be absent

    w[o, i] = (q[i, o] - zero[g_idx[i], o]) * scale[g_idx[i], o]
"""

from __future__ import annotations

import torch
from torch import Tensor

from martlet.quantization.nibbles import unpack_nibbles

__all__ = ["follows_groups", "gptq_integers", "gptq_zeros"]


def gptq_integers(qweight: Tensor, bits: int) -> Tensor:
    """The integers as ``GroupedTensor.data`` has them; those of 8 bits less 128.

    Shapes:
        qweight: (in_features * bits / 32, out_features) int32
        return: (out_features, in_features / 2) uint8 for 4 bits, (out_features, in_features) int8
    """
    # The bytes of a row of words are that row's integers in order: turning is all there is to do.
    turned = qweight.T.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    if bits == 4:
        return turned
    return turned.bitwise_xor_(128).view(torch.int8)


def gptq_zeros(qzeros: Tensor, bits: int, offset: int) -> Tensor:
    """The zeros of all groups; a zero that was 0 had become the largest integer when 1 came off.

    Shapes:
        qzeros: (num_groups, out_features * bits / 32) int32
        return: (out_features, num_groups) uint8
    """
    stored = qzeros.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    if bits == 4:
        stored = unpack_nibbles(stored, stored.shape[1] * 2)
    return (stored + offset).bitwise_and_((1 << bits) - 1).T


def follows_groups(g_idx: Tensor, group_size: int | None) -> bool:
    """Whether inputs that share a group are neighbours, in the order of the groups.

    Shapes:
        g_idx: (in_features,) int32
    """
    num_inputs = g_idx.shape[0]
    if group_size is None or group_size >= num_inputs:
        return not bool(g_idx.any())
    return torch.equal(g_idx, torch.arange(num_inputs, dtype=g_idx.dtype) // group_size)
