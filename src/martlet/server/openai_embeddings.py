"""``POST /v1/embeddings``."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.types import ASGIApp

from martlet.server.answers import ResultAnswer
from martlet.server.exchange import Exchange
from martlet.server.failures import ApiError
from martlet.server.fields import Body, User
from martlet.server.openai_words import job_spec
from martlet.server.service import Service

__all__ = ["MAX_INPUTS", "EmbeddingInput", "EmbeddingRequest", "create_embeddings", "embed"]

MAX_INPUTS = 256
"""Texts of one request."""

_Text = Annotated[str, Field(min_length=1)]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=(1 << 31) - 1)]], Field(min_length=1)]
EmbeddingInput = (
    _Text
    | _TokenIds
    | Annotated[list[_Text], Field(min_length=1, max_length=MAX_INPUTS)]
    | Annotated[list[_TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
)


class EmbeddingRequest(Body):
    """The body of a request for embeddings."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"dimensions": ()}

    model: str
    input: EmbeddingInput
    encoding_format: Literal["float", "base64"] | None = None
    user: User | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each text."""
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]
        return [*self.input]


def _encoded(vector: list[float], encoding_format: str | None) -> list[float] | str:
    if encoding_format != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def create_embeddings(service: Service, request: Request) -> ASGIApp:
    """Embeddings of texts, as lists of numbers or as base64 of little-endian float32."""
    body = await service.read(request, EmbeddingRequest)

    def word(vectors: list[list[float]], prompt_tokens: int) -> dict[str, Any]:
        return {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _encoded(vector, body.encoding_format),
                }
                for index, vector in enumerate(vectors)
            ],
            "model": body.model,
            "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
        }

    client = service.client(request, body.user)
    return embed(service, body.model, body.inputs, client, ResultAnswer(word))


def embed(
    service: Service,
    name: str,
    inputs: list[str | list[int]],
    client: str,
    answer: ResultAnswer,
) -> Exchange:
    """The exchange that answers with embeddings of some texts.

    Raises:
        ApiError: 400; the model has none.
        ModelNotFoundError: there is no model of that name.
    """
    model = service.find(name)
    if model.hello is not None and not model.hello["can_embed"]:
        others = [
            m.name for m in service.backend.models.values() if m.hello and m.hello["can_embed"]
        ]
        there = f"use {' or '.join(others)}" if others else "no model here has them"
        message = f"{model.name} has no embeddings; {there}"
        raise ApiError(400, "unsupported_task", message, "model")
    spec = job_spec({"kind": "embed", "inputs": inputs}, {})
    return Exchange(service, model, [spec], client, answer)
