"""What a caller says about where a model may live and how it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from martlet.device.size import parse_bytes
from martlet.errors import UsageError
from martlet.quantization.formats import WeightFormat, named_format
from martlet.quantization.kv_form import KV_FORMS, KVForm

__all__ = ["LEAST_CONTEXT", "MOST_CONTEXT", "MOST_SLOTS", "LoadOptions", "parse_quantize"]

MOST_SLOTS = 256
LEAST_CONTEXT = 8
MOST_CONTEXT = 1 << 20


def parse_quantize(quantize: str, name: str = "quantize") -> WeightFormat | None:
    """The format of matrices that a name asks for; None is "none", floats.

    Raises:
        UsageError: no such format; lists them, and calls the value ``name``.
    """
    return None if quantize == "none" else named_format(quantize, name, besides="none, ")


@dataclass(frozen=True)
class LoadOptions:
    """Where a model may live, how it computes and for how many texts; see ``martlet.load``.

    Raises:
        UsageError: a value is not valid; names field, value and what is allowed.
    """

    gpu_memory: str | int | None = None
    ram: str | int | None = None
    quantize: str | None = None
    device: str = "auto"
    num_threads: int | None = None
    slots: int | Literal["auto"] | None = None
    context: int | None = None
    kv_cache: KVForm = "none"

    def __post_init__(self) -> None:
        for name in ("gpu_memory", "ram"):
            size = getattr(self, name)
            if size is not None:
                object.__setattr__(self, name, parse_bytes(size, name))
        if self.quantize is not None:
            parse_quantize(self.quantize)
        if self.kv_cache not in KV_FORMS:
            raise UsageError(
                f"kv_cache is {self.kv_cache!r:.40}; it must be {' or '.join(KV_FORMS)}"
            )
        if self.device not in ("auto", "cuda", "cpu"):
            raise UsageError(f"device is {self.device!r}; it must be auto, cuda or cpu")
        threads = self.num_threads
        if threads is not None and (type(threads) is not int or not 1 <= threads <= 4096):
            raise UsageError(f"num_threads is {threads!r}; it must be from 1 to 4096")
        self._check_texts()

    def _check_texts(self) -> None:
        slots, context = self.slots, self.context
        if (
            slots is not None
            and slots != "auto"
            and (type(slots) is not int or not 1 <= slots <= MOST_SLOTS)
        ):
            raise UsageError(
                f"slots is {slots!r}; it must be from 1 to {MOST_SLOTS}, or auto "
                "for what fits into memory"
            )
        if context is not None and (
            type(context) is not int or not LEAST_CONTEXT <= context <= MOST_CONTEXT
        ):
            raise UsageError(
                f"context is {context!r}; it must be from {LEAST_CONTEXT} to {MOST_CONTEXT} tokens"
            )
