"""What decode steps leave behind for each slot, kept where they run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["StepState"]


@dataclass(frozen=True, eq=False)
class StepState:
    """What decode steps leave behind for each slot, on one device but for the output.

    A slot that is done keeps its length: further steps change nothing that is read. The output of
    steps on a GPU lies in page-locked main memory, where they write it: it can be read there once
    the step has ended, without a copy that would wait behind those of weights.

    Shapes:
        token_ids: (num_slots,) int64, what the next step reads
        logprobs: (num_slots,) float32, of these tokens; not a number where a logit was not finite
        lengths: (num_slots,) int32, tokens in the cache
        num_output: (num_slots,) int32, tokens noted so far
        output_ids: (num_slots, capacity) int64
        output_logprobs: (num_slots, capacity) float32
        is_done: (num_slots,) int32, 1 after an ending token
        status: (1,) int32, 1 after a logit that was not finite, or a row without a choice
    """

    token_ids: Tensor
    logprobs: Tensor
    lengths: Tensor
    num_output: Tensor
    output_ids: Tensor
    output_logprobs: Tensor
    is_done: Tensor
    status: Tensor

    @classmethod
    def allocate(cls, lengths: Tensor, capacity: int) -> StepState:
        """The state of as many slots as ``lengths`` has, with room for ``capacity`` tokens each."""
        num_slots, device = lengths.shape[0], lengths.device

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        def output(dtype: torch.dtype) -> Tensor:
            return torch.zeros(num_slots, capacity, dtype=dtype, pin_memory=device.type == "cuda")

        return cls(
            token_ids=zeros(num_slots, dtype=torch.int64),
            logprobs=zeros(num_slots, dtype=torch.float32),
            lengths=lengths,
            num_output=zeros(num_slots, dtype=torch.int32),
            output_ids=output(torch.int64),
            output_logprobs=output(torch.float32),
            is_done=zeros(num_slots, dtype=torch.int32),
            status=zeros(1, dtype=torch.int32),
        )

    def first(self, num_slots: int) -> StepState:
        """The state of the first slots, in the same memory; the status is that of all."""
        parts = {
            name: tensor if name == "status" else tensor[:num_slots]
            for name, tensor in vars(self).items()
        }
        return StepState(**parts)
