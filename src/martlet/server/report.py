"""What the process of a model tells of itself: once at the start, and while it works."""

from __future__ import annotations

import time
from collections import deque

import psutil

from martlet.api.model import Model
from martlet.device.gpu_memory import nvml_reader
from martlet.engine.batch import Batch
from martlet.errors import MartletError
from martlet.server.messages import HelloMessage, StatusMessage

__all__ = ["Reporter"]

_INTERVAL_SECONDS = 1.0
# Slots that fill or empty are told sooner: people watch them.
_CHANGE_SECONDS = 0.1
# Speed is told over this time.
_WINDOW_SECONDS = 5.0


class Reporter:
    """Figures of a model and its batch."""

    def __init__(self, model: Model, batch: Batch) -> None:
        self._model = model
        self._batch = batch
        self._process = psutil.Process()
        self._read_gpu = nvml_reader() if model.plan.device == "cuda" else None
        self._last_seconds = 0.0
        self._looked_seconds = 0.0
        self._last_counts = (0, 0)  # texts that ran and that waited
        # (when, tokens written until then), the oldest first.
        self._samples: deque[tuple[float, int]] = deque()

    def hello(self, load_seconds: float, tokens_per_second: float | None) -> HelloMessage:
        """What the server is told once, when the model is ready.

        ``tokens_per_second`` is the speed of one text alone, if it is known.
        """
        model, plan = self._model, self._model.plan
        limits = model.batch_limits
        thinks, chat_controls = _chat_words(model)
        parts = {p.block: p.nbytes for phase in plan.phases for p in phase.placements}
        return {
            "op": "hello",
            "family": model.family,
            "tasks": list(model.tasks),
            "thinks": thinks,
            "chat_controls": chat_controls,
            "can_embed": limits.encoder_tokens is not None,
            "num_slots": limits.num_slots,
            "slot_tokens": limits.slot_tokens,
            "encoder_tokens": limits.encoder_tokens,
            "num_weights": model.num_weights,
            "weight_type": model.weight_type,
            "weight_bytes": sum(parts.values()),
            "load_seconds": load_seconds,
            "tokens_per_second": tokens_per_second,
            "plan": plan.to_dict(),
        }

    def is_due(self) -> bool:
        """Whether the last status is old, or other texts run or wait than it said."""
        now = time.monotonic()
        if now - self._looked_seconds < _CHANGE_SECONDS:
            return False
        self._looked_seconds = now
        state = self._batch.state()
        counts = (state.num_running, state.num_waiting)
        return now - self._last_seconds >= _INTERVAL_SECONDS or counts != self._last_counts

    def status(self) -> StatusMessage:
        """The figures of this moment."""
        state = self._batch.state()
        self._last_seconds = time.monotonic()
        self._last_counts = (state.num_running, state.num_waiting)
        reading = self._read_gpu() if self._read_gpu is not None else None
        return {
            "op": "status",
            "num_running": state.num_running,
            "num_waiting": state.num_waiting,
            "cache_tokens": state.cache_tokens,
            "cache_capacity_tokens": state.cache_capacity_tokens,
            "prompt_tokens_total": state.prompt_tokens_total,
            "output_tokens_total": state.output_tokens_total,
            "num_steps_total": state.num_steps_total,
            "streamed_bytes_total": state.streamed_bytes_total,
            "out_of_memory_total": state.out_of_memory_total,
            "tokens_per_second": self._tokens_per_second(state.output_tokens_total),
            "rss_bytes": self._process.memory_info().rss,
            "gpu_bytes": reading.process_bytes if reading is not None else None,
        }

    def restart_clock(self) -> None:
        """Nothing has run until now: the speed is counted from here."""
        self._samples.clear()
        self._samples.append((time.monotonic(), self._batch.state().output_tokens_total))

    def _tokens_per_second(self, num_tokens: int) -> float:
        now = time.monotonic()
        self._samples.append((now, num_tokens))
        while len(self._samples) > 2 and self._samples[1][0] < now - _WINDOW_SECONDS:
            self._samples.popleft()
        first_seconds, first_tokens = self._samples[0]
        return (num_tokens - first_tokens) / max(now - first_seconds, 1e-6)


def _chat_words(model: Model) -> tuple[bool, list[str]]:
    """Whether it may think first, and what its chats can be told beside turns."""
    try:
        return model.thinks, list(model.chat_controls)
    except MartletError:  # who chats is told what is wrong with the template
        return False, []
