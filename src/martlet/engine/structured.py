"""Text that is JSON by construction: tokens that would break it cannot be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from martlet.engine.grammars import grammars_of
from martlet.engine.request import Constraint
from martlet.engine.schema_check import schema_of
from martlet.engine.tasks import TaskModel
from martlet.errors import UsageError

__all__ = ["structured_constraint"]

_NO_TOKEN = "the vocabulary has no token that may follow"
_TOO_COMPLEX = "what may follow is too complex"  # llguidance has come to one of its limits


def structured_constraint(
    model: TaskModel, format: Mapping[str, Any], base_mask: Tensor
) -> Constraint:
    """The constraint that a text is a JSON object, or JSON that fits a schema.

    ``format`` is ``{"type": "json_object"}`` or ``{"type": "json_schema", "schema": {...}}``.
    Properties come in the order of the schema, all on one line. A text ends only where it is
    whole; max_tokens, a stop string or a full context may still cut it off.

    Shapes:
        base_mask: (vocab_size,) bool, True = must never be chosen, as a request of the task has it;
            the control tokens that it leaves may end the text

    Raises:
        UsageError: llguidance is not installed, the format or its schema is not valid or not
            supported, or the vocabulary cannot write it.
    """
    schema = schema_of(format)
    end_ids = [i for i in sorted(model.special.control_ids()) if not base_mask[i]]
    if not end_ids:
        raise UsageError(
            f"{model.name} has no token that ends a text, without which JSON never ends; "
            "ask for plain text"
        )
    grammars = grammars_of(model.tokenizer)
    return _Json(grammars.matcher(schema), base_mask, end_ids, grammars.end_id)


class _Json:
    """One text on its way; ``matcher`` is where in the grammar it stands.

    Masks are joined while they are bits, an eighth of the tensor that comes of them.
    """

    def __init__(self, matcher: Any, base_mask: Tensor, end_ids: list[int], mark: int) -> None:
        self._matcher = matcher
        self._end_ids = end_ids
        self._mark = mark  # the bit that says whether the text may end
        self._vocab_size = base_mask.numel()
        never = np.ones(-(-self._vocab_size // 32) * 32, dtype=np.bool_)
        never[: self._vocab_size] = base_mask.numpy()
        never[end_ids] = True
        self._never = np.packbits(never, bitorder="little")
        self._bits = np.zeros_like(self._never)
        self._mask: Tensor | None = None
        self._num_tokens = 0

    def forced(self) -> int | None:
        """None: where just one token can follow, the mask says so."""
        return None

    def suppressed(self) -> Tensor:
        """All tokens but those with which the text stays on its way to valid JSON.

        Raises:
            UsageError: the schema asks for more work than a step may take, or for characters that
                the vocabulary does not have.
        """
        if self._mask is None:
            self._mask = self._next_mask()
        return self._mask

    def accept(self, token_id: int) -> None:
        """Go on in the grammar, or end.

        Raises:
            UsageError: the schema asks for more work than a step may take.
        """
        self._mask = None
        if token_id not in self._end_ids and not self._matcher.consume_token(token_id):
            raise self._stuck(_TOO_COMPLEX)
        self._num_tokens += 1

    def _next_mask(self) -> Tensor:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            is_at_end = self._matcher.get_error().startswith("NoExtension")
            raise self._stuck(_NO_TOKEN if is_at_end else _TOO_COMPLEX)
        may_end = bool(self._bits[self._mark // 8] >> self._mark % 8 & 1)
        suppressed = ~self._bits | self._never
        if not may_end and (suppressed == 0xFF).all():
            raise self._stuck(_NO_TOKEN)
        flags = np.unpackbits(suppressed, count=self._vocab_size, bitorder="little")
        flags[self._end_ids] = not may_end
        return torch.from_numpy(flags.view(np.bool_))

    def _stuck(self, reason: str) -> UsageError:
        return UsageError(
            f"the JSON schema cannot be followed after {self._num_tokens:,} tokens: {reason}; "
            "simplify it"
        )
