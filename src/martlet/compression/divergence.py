"""How far a model's predictions are from those of a reference model on the same text.

The reference goes first, and what it predicts is kept in a temporary file, so that one model at a
time is in memory. A distribution is kept as float16 logarithms and made to sum to one again when it
is read: what the rounding shifts is then of second order, below 1e-6 nats. Texts whose
distributions would be larger than the file may be are sampled evenly.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import IO

import numpy as np
import torch
from torch import Tensor

from martlet.errors import DiskFullError

__all__ = ["Comparison", "Divergence", "Reference"]

_MAX_FILE_BYTES = 1 << 30
# Logits in float64 at a time, 8 MiB: under a budget of memory there is little to spare for this.
_ELEMENTS_AT_ONCE = 1 << 20
# The logarithm of a probability that counts as nothing; float16 reaches it.
_NEVER = -6e4


@dataclass(frozen=True)
class Divergence:
    """The distance of two models over ``num_tokens`` predictions of the same text.

    ``top1_agreement`` is the fraction of predictions whose likeliest token is the same.

    Units:
        kl: nats for a token, of the model from the reference, over the whole vocabulary.
    """

    kl: float
    top1_agreement: float
    num_tokens: int


class Reference:
    """The predictions of the reference model. A context manager: its file is gone at the end.

    ``num_tokens`` is the number of predictions to come, or more.

    Units:
        max_file_bytes: of the temporary file, at most.
    """

    def __init__(self, num_tokens: int, *, max_file_bytes: int = _MAX_FILE_BYTES) -> None:
        self._num_tokens = num_tokens
        self._max_file_bytes = max_file_bytes
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._likeliest: list[Tensor] = []
        self._num_seen = 0
        self._vocab_size = 0
        self._stride = 1

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # what did not fit on the disk is written again
            self._file.close()

    def observe(self, logits: Tensor) -> None:
        """Keep the next predictions.

        Shapes:
            logits: (num_tokens, vocab_size)

        Raises:
            DiskFullError: the temporary folder has no room for them.
        """
        if not self._vocab_size:
            self._vocab_size = logits.shape[1]
            row_bytes = self._vocab_size * 2
            self._stride = max(1, -(-self._num_tokens * row_bytes // self._max_file_bytes))
        rows = logits[-self._num_seen % self._stride :: self._stride]
        self._num_seen += logits.shape[0]
        self._likeliest.append(rows.argmax(dim=1).cpu())
        for piece in torch.split(rows, _rows_at_once(self._vocab_size)):
            logs = piece.to(torch.float32).log_softmax(dim=1)
            self._write(logs.clamp_(min=_NEVER).to(torch.float16).cpu())

    def comparison(self) -> Comparison:
        """A new comparison with these predictions, which are complete."""
        assert self._likeliest, "the reference comes first"
        self._file.seek(0)
        kept = _Kept(torch.cat(self._likeliest), self._vocab_size, self._num_seen, self._stride)
        return Comparison(self._file, kept)

    def _write(self, rows: Tensor) -> None:
        try:
            self._file.write(rows.contiguous().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFullError(
                f"{tempfile.gettempdir()}: no room for the predictions of the reference, up to "
                f"{self._max_file_bytes >> 20:,} MiB; set TMPDIR to a folder with room"
            ) from error


@dataclass(frozen=True)
class _Kept:
    """What is known of the predictions in the file: every ``stride``-th of ``num_tokens``.

    Shapes:
        likeliest: (kept,) int64, the likeliest token of each
    """

    likeliest: Tensor
    vocab_size: int
    num_tokens: int
    stride: int


class Comparison:
    """Another model's predictions beside those of the reference, as they come."""

    def __init__(self, file: IO[bytes], kept: _Kept) -> None:
        self._file = file
        self._kept = kept
        self._num_seen = 0
        self._num_compared = 0
        self._num_agreed = 0
        self._nats = 0.0
        self._is_alike = True

    def observe(self, logits: Tensor) -> None:
        """Compare the next predictions.

        Shapes:
            logits: (num_tokens, vocab_size)
        """
        rows = logits[-self._num_seen % self._kept.stride :: self._kept.stride]
        self._num_seen += logits.shape[0]
        if logits.shape[1] != self._kept.vocab_size or self._num_seen > self._kept.num_tokens:
            self._is_alike = False
        if self._is_alike:
            for piece in torch.split(rows, _rows_at_once(self._kept.vocab_size)):
                self._compare(piece)

    def measured(self) -> Divergence | None:
        """The distance; None where the predictions were of another number or vocabulary."""
        num_tokens = self._num_compared
        if not self._is_alike or self._num_seen != self._kept.num_tokens:
            return None
        return Divergence(self._nats / num_tokens, self._num_agreed / num_tokens, num_tokens)

    def _compare(self, rows: Tensor) -> None:
        """Compare predictions that were kept of the reference too: (n, vocab_size)."""
        num_rows, vocab_size = rows.shape
        if not num_rows:
            return
        raw = self._file.read(num_rows * vocab_size * 2)
        kept = np.frombuffer(raw, dtype=np.float16).reshape(num_rows, vocab_size)
        reference = torch.from_numpy(kept.astype(np.float64)).to(rows.device).log_softmax(dim=1)
        own = rows.to(torch.float64).log_softmax(dim=1)
        chance = reference.exp()
        nats = torch.where(chance > 0, chance * (reference - own), 0.0)
        likeliest = self._kept.likeliest[self._num_compared : self._num_compared + num_rows]
        self._nats += float(nats.sum())
        self._num_agreed += int((rows.argmax(dim=1).cpu() == likeliest).sum())
        self._num_compared += num_rows


def _rows_at_once(vocab_size: int) -> int:
    return max(1, _ELEMENTS_AT_ONCE // vocab_size)
