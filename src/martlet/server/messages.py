"""What the server and the process of a model say to each other: one JSON object a line.

Both ends are our own, so nothing is validated here; what comes from outside is checked before it
becomes a ``JobSpec``. No object refers to another by anything but a job's ``id``.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from martlet import errors
from martlet.errors import (
    CapacityError,
    DeviceError,
    MartletError,
    OverloadedError,
    UnavailableError,
)

__all__ = [
    "CallDetails",
    "CancelMessage",
    "ConfigureMessage",
    "ErrorDetails",
    "Event",
    "FailureMessage",
    "HelloMessage",
    "JobSpec",
    "StatusMessage",
    "SubmitMessage",
    "Task",
    "TokenDetails",
    "ToolTask",
    "error_details",
    "error_of",
]

_RETRY_AFTER_LOSS_SECONDS = 5.0

TaskKind = Literal["chat", "complete", "write", "fill", "embed", "tokenize", "detokenize"]


class ToolTask(TypedDict):
    """Tools that a reply may or must call: the arguments of ``engine.tools.tool_use``."""

    tools: list[Any]
    choice: str | dict[str, Any] | None
    takes_many: bool


class Task(TypedDict):
    """What a model is asked to do; each kind has one more field.

    chat: ``messages``, ``thinking`` where the request turns that on or off, and ``tools`` where it
    offers some; complete and write: ``prompt``, a string or token ids; fill: ``pieces``, the parts
    of the text around its blanks; embed: ``inputs``, each a string or token ids; tokenize:
    ``text``; detokenize: ``token_ids``.
    """

    kind: TaskKind
    messages: NotRequired[list[dict[str, Any]]]
    thinking: NotRequired[bool]
    tools: NotRequired[ToolTask]
    prompt: NotRequired[str | list[int]]
    pieces: NotRequired[list[str]]
    inputs: NotRequired[list[str | list[int]]]
    text: NotRequired[str]
    token_ids: NotRequired[list[int]]


class JobSpec(TypedDict):
    """One request of a client.

    ``params`` holds the fields of SamplingParams that were given. ``num_choices`` texts are
    written, choice i with the seed plus i. ``top_logprobs`` None reports no log-probabilities.
    ``format`` is None, {"type": "json_object"} or {"type": "json_schema", "schema": {...}}.
    """

    task: Task
    params: dict[str, Any]
    num_choices: int
    top_logprobs: int | None
    format: dict[str, Any] | None


class ConfigureMessage(TypedDict):
    """To the model, once and first: the folder to load and the keywords of ``martlet.load``."""

    op: Literal["configure"]
    folder: str
    options: dict[str, Any]


class SubmitMessage(TypedDict):
    """To the model: a job; ``client`` is whom the fair queue counts it for."""

    op: Literal["submit"]
    id: str
    client: str
    job: JobSpec


class CancelMessage(TypedDict):
    """To the model: nobody waits for this job any more. No event follows for it."""

    op: Literal["cancel"]
    id: str


class TokenDetails(TypedDict):
    """A token of an answer; ``bytes`` is its text in UTF-8, which may be part of a character.

    ``logprob`` is None for a token that was forced, and never infinite.
    """

    id: int
    text: str
    bytes: list[int]
    logprob: float | None
    top: NotRequired[list[TokenDetails]]


class CallDetails(TypedDict):
    """The call of a tool; ``arguments`` is the JSON of an object, as text."""

    id: str
    name: str
    arguments: str


class ErrorDetails(TypedDict):
    """An error as the client shall see it; ``name`` is its class in martlet.errors."""

    name: str
    message: str
    status: int
    is_worth_retrying: bool


class Event(TypedDict):
    """From the model, about the job ``id``.

    started: the choice left the queue (``prompt_tokens``, ``seed``).
    text: more of a choice (``text``, which may be empty; ``is_thought`` where it stands before the
        answer; ``call`` in place of text: the call of a tool; ``blank``: the index of the blank
        where blanks are filled; ``tokens`` where log-probabilities were asked for).
    finished: a choice is complete (``finish_reason``, ``stats``; ``fill``: text and blanks).
    result: the only event of embed, tokenize and detokenize (``value``, ``prompt_tokens``).
    error: the job has ended with all its choices.
    """

    op: Literal["event"]
    id: str
    event: Literal["started", "text", "finished", "result", "error"]
    choice: NotRequired[int]
    prompt_tokens: NotRequired[int]
    seed: NotRequired[int]
    text: NotRequired[str]
    is_thought: NotRequired[bool]
    call: NotRequired[CallDetails]
    blank: NotRequired[int]
    tokens: NotRequired[list[TokenDetails]]
    finish_reason: NotRequired[Literal["stop", "length", "tool_calls"]]
    stats: NotRequired[dict[str, Any]]
    fill: NotRequired[dict[str, Any]]
    value: NotRequired[Any]
    error: NotRequired[ErrorDetails]


class HelloMessage(TypedDict):
    """From the model, once: it is loaded. ``plan`` is Plan.to_dict().

    ``family`` is one of models/family.py; ``tasks`` are what the model can be asked for, ``thinks``
    tells whether its replies may begin with thoughts, ``chat_controls`` what its chats take beside
    turns: "system", "thinking"; ``num_slots`` texts are written at a
    time, each of at most ``slot_tokens`` tokens, or ``encoder_tokens`` read and as many written.
    ``weight_type`` is that of matrices, as in "int8" or "float16".
    ``tokens_per_second`` is what the first text had, alone; None where it was too short.
    """

    op: Literal["hello"]
    family: str
    tasks: list[str]
    thinks: bool
    chat_controls: list[str]
    can_embed: bool
    num_slots: int
    slot_tokens: int
    encoder_tokens: int | None
    num_weights: int
    weight_type: str
    weight_bytes: int
    load_seconds: float
    tokens_per_second: float | None
    plan: dict[str, Any]


class FailureMessage(TypedDict):
    """From the model, instead of hello: it could not be loaded, and the process ends."""

    op: Literal["failure"]
    error: ErrorDetails


class StatusMessage(TypedDict):
    """From the model, about once a second while something runs, and when that ends.

    ``prompt_tokens_total`` and ``output_tokens_total`` count from the start of the process;
    ``tokens_per_second`` is over the last seconds; ``gpu_bytes`` is None without a GPU.
    """

    op: Literal["status"]
    num_running: int
    num_waiting: int
    cache_tokens: int
    cache_capacity_tokens: int
    prompt_tokens_total: int
    output_tokens_total: int
    num_steps_total: int
    streamed_bytes_total: int
    out_of_memory_total: int
    tokens_per_second: float
    rss_bytes: int
    gpu_bytes: int | None


def error_details(error: MartletError) -> ErrorDetails:
    """An error as it goes over the socket."""
    return {
        "name": type(error).__name__,
        "message": str(error),
        "status": error.http_status,
        "is_worth_retrying": isinstance(
            error, CapacityError | DeviceError | OverloadedError | UnavailableError
        ),
    }


def error_of(details: ErrorDetails) -> MartletError:
    """The error that came over the socket, as ``error_details`` made it there."""
    error_class = getattr(errors, details["name"], MartletError)
    error: MartletError = error_class(details["message"])
    if isinstance(error, UnavailableError) and details["is_worth_retrying"]:
        error.retry_after_seconds = _RETRY_AFTER_LOSS_SECONDS
    return error
