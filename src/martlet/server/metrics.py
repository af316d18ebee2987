"""Figures for Prometheus. Those of a model are read from it when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from martlet.server.backend import Backend, ServedModel

__all__ = ["METRICS_MEDIA_TYPE", "Metrics"]

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
_PER_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_Read = Callable[[ServedModel], float | None]


class Metrics:
    """The registry of one server; there may be several in a process."""

    def __init__(self, backend: Backend) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ModelCollector(backend))
        self.first_token_seconds = Histogram(
            "martlet_time_to_first_token_seconds",
            "From the request to its first text, waiting included",
            ["model"],
            buckets=_FIRST_TOKEN_SECONDS,
            registry=self._registry,
        )
        self.per_token_seconds = Histogram(
            "martlet_time_per_output_token_seconds",
            "Between two tokens of a text",
            ["model"],
            buckets=_PER_TOKEN_SECONDS,
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "martlet_request_seconds",
            "From the request to the end of its answer",
            ["model"],
            buckets=_REQUEST_SECONDS,
            registry=self._registry,
        )
        self.finished = Counter(
            "martlet_requests_finished",
            "Requests that a model has dealt with, by how they ended: a finish reason, "
            '"result", "error" or "cancelled"',
            ["model", "reason"],
            registry=self._registry,
        )

    def render(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _ModelCollector(Collector):
    """What the models count themselves; a model whose process is away shows what is known."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        models = list(self._backend.models.values())
        for name, text, read in _GAUGES:
            yield _filled(
                GaugeMetricFamily(f"martlet_{name}", text, labels=["model"]), models, read
            )
        for name, text, read in _COUNTERS:
            family = CounterMetricFamily(f"martlet_{name}", text, labels=["model"])
            yield _filled(family, models, read)
        rejected = CounterMetricFamily(
            "martlet_requests_rejected", "Requests that were not taken", labels=["model", "reason"]
        )
        for model in models:
            for reason, count in sorted(model.num_rejected_total.items()):
                rejected.add_metric([model.name, reason], count)
        yield rejected


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, models: Iterable[ServedModel], read: _Read
) -> CounterMetricFamily | GaugeMetricFamily:
    for model in models:
        value = read(model)
        if value is not None:
            family.add_metric([model.name], value)
    return family


def _of_status(name: str) -> _Read:
    def read(model: ServedModel) -> float | None:
        return None if model.status is None else model.status[name]  # type: ignore[literal-required]

    return read


def _kv_cache_usage(model: ServedModel) -> float | None:
    if model.status is None or not model.status["cache_capacity_tokens"]:
        return None
    return model.status["cache_tokens"] / model.status["cache_capacity_tokens"]


_GAUGES: tuple[tuple[str, str, _Read], ...] = (
    ("ready", "1 where the model can answer", lambda model: float(model.state == "ready")),
    ("requests_running", "Requests of which a choice has a slot", lambda model: model.num_running),
    ("requests_waiting", "Requests of which no choice has one", lambda model: model.num_waiting),
    ("texts_running", "Choices that have a slot", lambda model: model.num_running_texts),
    ("texts_waiting", "Choices that wait for a slot", lambda model: model.num_waiting_texts),
    ("kv_cache_usage_ratio", "Share of the KV cache that is in use", _kv_cache_usage),
    ("tokens_per_second", "Speed over the last seconds", _of_status("tokens_per_second")),
    ("resident_bytes", "RAM of the process of the model", _of_status("rss_bytes")),
    ("gpu_bytes", "GPU memory of the process of the model", _of_status("gpu_bytes")),
)
_COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    ("prompt_tokens", "Tokens read", _of_status("prompt_tokens_total")),
    ("generation_tokens", "Tokens written", _of_status("output_tokens_total")),
    ("steps", "Decode steps, each for all running texts", _of_status("num_steps_total")),
    ("streamed_weight_bytes", "Weights copied to the GPU", _of_status("streamed_bytes_total")),
    ("out_of_memory", "Times that memory ran out", _of_status("out_of_memory_total")),
    ("restarts", "Processes started after the first", lambda model: model.num_restarts),
)
