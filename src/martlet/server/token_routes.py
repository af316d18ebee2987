"""``POST /tokenize`` and ``/detokenize``, in the words of llama.cpp or of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.types import ASGIApp

from martlet.server.answers import ResultAnswer
from martlet.server.exchange import Exchange
from martlet.server.fields import Body
from martlet.server.openai_words import job_spec
from martlet.server.service import Service

__all__ = ["DetokenizeRequest", "TokenizeRequest", "detokenize", "tokenize"]


class TokenizeRequest(Body):
    """A text, called ``content`` or ``prompt``."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "add_special": (False,),
        "add_special_tokens": (False,),
        "parse_special": (False,),
        "with_pieces": (False,),
        "return_token_strs": (False,),
    }

    model: str = "default"
    content: str | None = None
    prompt: str | None = None

    @model_validator(mode="after")
    def _require_one(self) -> TokenizeRequest:
        if (self.content is None) == (self.prompt is None):
            raise PydanticCustomError(
                "missing", "the text must be given once, as content or as prompt"
            )
        return self

    @property
    def text(self) -> str:
        """The text."""
        return self.content if self.content is not None else self.prompt or ""


class DetokenizeRequest(Body):
    """Token ids."""

    model: str = "default"
    tokens: list[Annotated[int, Field(ge=0, le=(1 << 31) - 1)]]


async def tokenize(service: Service, request: Request) -> ASGIApp:
    """The token ids of a text, without any control tokens."""
    body = await service.read(request, TokenizeRequest)
    model = service.find(body.model)
    spec = job_spec({"kind": "tokenize", "text": body.text}, {})
    answer = ResultAnswer(lambda ids, _: {"tokens": ids, "count": len(ids)})
    return Exchange(service, model, [spec], service.client(request), answer)


async def detokenize(service: Service, request: Request) -> ASGIApp:
    """The text of token ids."""
    body = await service.read(request, DetokenizeRequest)
    model = service.find(body.model)
    spec = job_spec({"kind": "detokenize", "token_ids": body.tokens}, {})
    answer = ResultAnswer(lambda text, _: {"content": text, "prompt": text})
    return Exchange(service, model, [spec], service.client(request), answer)
