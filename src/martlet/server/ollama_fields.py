"""What clients of Ollama send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from martlet.engine.tools import MAX_TOOLS
from martlet.server.failures import ApiError
from martlet.server.fields import LARGEST_TOKENS, Body, CallingMessage, Flag
from martlet.server.llama_fields import LlamaSampling
from martlet.server.response_format import checked_schema

__all__ = [
    "OllamaChatRequest",
    "OllamaEmbedRequest",
    "OllamaGenerateRequest",
    "OllamaOptions",
    "OllamaShowRequest",
]


class OllamaOptions(LlamaSampling):
    """Sampling in Ollama's words. How a model is loaded is settled when the server starts."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mirostat": (0,),
        "tfs_z": (1, 1.0),
        "typical_p": (1, 1.0),
    }
    no_effect: ClassVar[frozenset[str]] = frozenset(
        {"f16_kv", "logits_all", "low_vram", "main_gpu", "mirostat_eta", "mirostat_tau"}
        | {"num_batch", "num_ctx", "num_gpu", "num_keep", "num_thread", "numa"}
        | {"penalize_newline", "repeat_last_n", "use_mlock", "use_mmap", "vocab_only"}
    )

    num_predict: Annotated[int, Field(ge=-2, le=LARGEST_TOKENS)] | None = None

    def params(self) -> dict[str, Any]:
        """The sampling parameters that were given."""
        return self.sampling("num_predict")


class _Named(Body):
    """A request that names a model, perhaps with Ollama's tag."""

    model: str

    @property
    def name(self) -> str:
        """The model without the tag that Ollama's clients add."""
        return self.model.removesuffix(":latest")


class _Generation(_Named):
    """What both kinds of generation have in common."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "logprobs": (False,),
        "top_logprobs": (0,),
    }
    no_effect: ClassVar[frozenset[str]] = frozenset({"keep_alive", "truncate", "shift"})

    stream: Flag = None
    options: OllamaOptions | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: Flag = None

    @property
    def is_streamed(self) -> bool:
        """Ollama streams unless it is told not to."""
        return self.stream is not False

    def params(self) -> dict[str, Any]:
        """The sampling parameters that were given."""
        return self.options.params() if self.options else {}

    def job_format(self) -> dict[str, Any] | None:
        """The format as jobs have it.

        Raises:
            ApiError: 400; the schema is too large.
        """
        if isinstance(self.format, dict):
            return checked_schema(self.format, "format")
        return {"type": "json_object"} if self.format == "json" else None


class OllamaFunction(Body):
    """A function with its arguments."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"index"})

    name: str
    arguments: dict[str, Any]


class OllamaCall(Body):
    """The call of a tool, as an earlier answer had it."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"id", "type"})

    function: OllamaFunction


class OllamaMessage(CallingMessage):
    """A turn of a dialogue."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"images": ([],)}
    no_effect: ClassVar[frozenset[str]] = frozenset({"tool_call_id"})

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    thinking: str | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_name: str | None = None

    def to_job(self) -> dict[str, Any]:
        """The message as a model is sent it, but for the ids of calls."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return {**message, "reasoning_content": self.thinking} if self.thinking else message


class OllamaChatRequest(_Generation):
    """The body of ``/api/chat``."""

    messages: list[OllamaMessage] | None = None
    tools: list[Any] | None = None

    def to_jobs(self) -> list[dict[str, Any]]:
        """The messages as a model is sent them.

        Ollama's calls have no ids. What a tool gave answers the first open call of its name, or
        the first of all where it does not say what tool it was.
        """
        messages, open_calls, num_calls = [], list[tuple[str, str]](), 0
        for given in self.messages or ():
            message = given.to_job()
            if given.role == "tool":
                found = next((c for c in open_calls if given.tool_name in (c[0], None)), None)
                if found is not None:
                    open_calls.remove(found)
                    message["tool_call_id"] = found[1]
            for call in message.get("tool_calls", ()):
                call["id"] = f"call{num_calls:05}"
                open_calls.append((call["function"]["name"], call["id"]))
                num_calls += 1
            messages.append(message)
        return messages


class OllamaGenerateRequest(_Generation):
    """The body of ``/api/generate``."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_Generation.refused,
        "context": ([],),
        "images": ([],),
        "template": ("",),
    }

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    raw: Flag = None


class OllamaEmbedRequest(_Named):
    """The body of ``/api/embed``."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"dimensions": ()}
    no_effect: ClassVar[frozenset[str]] = frozenset({"keep_alive", "options", "truncate"})

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=256)]
    )

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each text."""
        return [self.input] if isinstance(self.input, str) else list(self.input)


class OllamaShowRequest(Body):
    """The body of ``/api/show``; older clients say ``name``."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"system": ("",), "template": ("",)}
    no_effect: ClassVar[frozenset[str]] = frozenset({"verbose", "options"})

    model: str | None = None
    name: str | None = None

    def wanted(self) -> str:
        """The model without its tag.

        Raises:
            ApiError: 400; none is named.
        """
        name = self.model or self.name
        if not name:
            raise ApiError(400, "missing_required_parameter", "model is missing", "model")
        return name.removesuffix(":latest")
