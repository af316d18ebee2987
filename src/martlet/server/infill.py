"""``POST /infill``: what editors that know llama.cpp ask for, the text at the cursor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from martlet.server.answers import Tally
from martlet.server.exchange import Exchange
from martlet.server.fields import LARGEST_TOKENS, Flag
from martlet.server.llama_fields import LlamaSampling
from martlet.server.messages import Event
from martlet.server.openai_words import USUAL_TOKENS, job_spec, limited
from martlet.server.service import Service
from martlet.server.wire import SSE

__all__ = ["InfillAnswer", "InfillRequest", "create_infill"]


class InfillRequest(LlamaSampling):
    """The text around the cursor, and sampling in llama.cpp's words."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "grammar": ("",),
        "input_extra": ([],),
        "json_schema": (),
        "logit_bias": ([], {}),
        "mirostat": (0,),
        "n_probs": (0,),
        "typical_p": (1, 1.0),
    }
    no_effect: ClassVar[frozenset[str]] = frozenset(
        {"cache_prompt", "id_slot", "n_cache_reuse", "n_indent", "n_keep", "repeat_last_n"}
        | {"response_fields", "return_tokens", "samplers", "t_max_predict_ms", "t_max_prompt_ms"}
        | {"timings_per_token"}
    )

    model: str = "default"
    input_prefix: str
    input_suffix: str
    prompt: str | None = None
    n_predict: Annotated[int, Field(ge=-1, le=LARGEST_TOKENS)] | None = None
    stream: Flag = None

    def params(self) -> dict[str, Any]:
        """The sampling parameters that were given."""
        return self.sampling("n_predict")


class InfillAnswer:
    """llama.cpp's words for a text, whole or in pieces."""

    def __init__(self, name: str) -> None:
        self.tally = Tally()
        self._name = name

    def add(self, job: int, event: Event) -> Sequence[dict[str, Any]]:
        """A piece of the text."""
        self.tally.add(job, event)
        text = event.get("text")
        return [{"content": text, "stop": False, "index": 0}] if text else ()

    def end(self) -> Sequence[dict[str, Any]]:
        """The figures, with an empty text."""
        return [self._last("")]

    def whole(self) -> dict[str, Any]:
        """The text with its figures."""
        return self._last("".join(choice.text for choice in self.tally.in_order()))

    def _last(self, content: str) -> dict[str, Any]:
        reasons = [choice.finish_reason for choice in self.tally.in_order()]
        return {
            "content": content,
            "index": 0,
            "stop": True,
            "stop_type": "limit" if "length" in reasons else "eos",
            "model": self._name,
            "tokens_evaluated": self.tally.prompt_tokens,
            "tokens_predicted": self.tally.output_tokens,
            "tokens_cached": 0,
            "truncated": False,
            "timings": _llama_timings(self.tally),
        }


def _llama_timings(tally: Tally) -> dict[str, float]:
    prompt_ms, predicted_ms = tally.prefill_seconds * 1000, tally.decode_seconds * 1000
    return {
        "prompt_n": tally.prompt_tokens,
        "prompt_ms": prompt_ms,
        "prompt_per_second": tally.prompt_tokens / prompt_ms * 1000 if prompt_ms else 0.0,
        "predicted_n": tally.output_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_second": tally.timings()["tokens_per_second"],
    }


async def create_infill(service: Service, request: Request) -> ASGIApp:
    """Write what stands between a prefix and a suffix."""
    body = await service.read(request, InfillRequest)
    model = service.find(body.model, "fill")
    answer = InfillAnswer(model.name)
    if body.n_predict == 0:  # editors warm a cache with it; there is nothing to write
        return JSONResponse(answer.whole())
    task_params = limited(body.params(), service.settings, USUAL_TOKENS, is_fixed=True)
    pieces = [body.input_prefix + (body.prompt or ""), body.input_suffix]
    spec = job_spec({"kind": "fill", "pieces": pieces}, task_params)
    framing = SSE if body.stream else None
    return Exchange(service, model, [spec], service.client(request), answer, framing)
