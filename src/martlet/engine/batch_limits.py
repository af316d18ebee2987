"""How much of a batch fits: the numbers that a plan pays for and a batch keeps to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CHUNK_TOKENS", "BatchLimits"]

CHUNK_TOKENS = 256
"""Tokens that one prefill or encoder pass of a batch reads where nothing says otherwise."""


@dataclass(frozen=True)
class BatchLimits:
    """Sizes of a batch.

    num_slots: texts that are written at a time.
    slot_tokens: tokens of the decoder in a slot.
    encoder_tokens: tokens that the encoder reads of one text; None for a decoder-only model.
    chunk_tokens: tokens that one prefill or encoder pass reads at most, over all its rows. Only
        where nothing shorter is possible, as for one text of an encoder, may a pass exceed it.
    """

    num_slots: int
    slot_tokens: int
    encoder_tokens: int | None
    chunk_tokens: int = CHUNK_TOKENS
