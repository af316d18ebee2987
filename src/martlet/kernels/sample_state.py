"""What the choice of tokens by chance reads and counts for each slot, kept where steps run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SETTINGS", "SampleState"]

SETTINGS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
"""The columns of ``SampleState.settings``, in order."""


@dataclass(frozen=True, eq=False)
class SampleState:
    """How the tokens of each slot are chosen, and what penalties look at; all on one device.

    Shapes:
        settings: (num_slots, len(SETTINGS)) float64
        output_counts: (num_slots, vocab_size) int32, how often each token is in the output
        seen: (num_slots, vocab_size) bool, whether it is in the prompt or the output
        uniforms: (num_slots, capacity) float64 in [0, 1), one for each token that is drawn
        num_drawn: (num_slots,) int32, how many of them are used up
        scores: (num_slots, vocab_size) float32, scratch
        weights: (num_slots, vocab_size) int64, scratch
    """

    settings: Tensor
    output_counts: Tensor
    seen: Tensor
    uniforms: Tensor
    num_drawn: Tensor
    scores: Tensor
    weights: Tensor

    @classmethod
    def allocate(
        cls, num_slots: int, vocab_size: int, capacity: int, device: torch.device
    ) -> SampleState:
        """The state of so many slots, with room for ``capacity`` draws each."""

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            settings=zeros(num_slots, len(SETTINGS), dtype=torch.float64),
            output_counts=zeros(num_slots, vocab_size, dtype=torch.int32),
            seen=zeros(num_slots, vocab_size, dtype=torch.bool),
            uniforms=zeros(num_slots, capacity, dtype=torch.float64),
            num_drawn=zeros(num_slots, dtype=torch.int32),
            scores=zeros(num_slots, vocab_size, dtype=torch.float32),
            weights=zeros(num_slots, vocab_size, dtype=torch.int64),
        )

    def first(self, num_slots: int) -> SampleState:
        """The state of the first slots, in the same memory."""
        return SampleState(**{name: tensor[:num_slots] for name, tensor in vars(self).items()})
