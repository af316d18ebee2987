"""A loaded model and what it can be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, overload

from martlet.api.prepared import Prepared, PromptKind, prepare, task_of, with_extras
from martlet.api.reader import Reader
from martlet.api.sampling import SamplingDefaults, SamplingOptions
from martlet.engine.batch import Batch
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.chat import ChatOptions, chat
from martlet.engine.fill import Fill, Filling, count_blanks, split_at_blanks
from martlet.engine.reply import ChatStream, Reply
from martlet.engine.request import Request, SamplingParams, Stats
from martlet.engine.tasks import DEFAULT_TOKENS_PER_BLANK, TaskModel
from martlet.engine.text import TextStream
from martlet.engine.tools import ToolUse, tool_use
from martlet.engine.write import write
from martlet.memory.plan import Plan
from martlet.models.family import Task

__all__ = ["Model", "Prepared"]


class Model(Reader):
    """A loaded model. Made by ``martlet.load``; its methods run one text at a time.

    ``plan`` is the plan in force, ``batch_limits`` the texts that it has memory for at a time,
    ``weight_type`` the type of its matrices, as in "int8" or "float16". ``last_stats`` tells how
    the last text that ended went: tokens, tokens per second, time to the first token, why it ended,
    the seed.
    """

    def __init__(
        self,
        task_model: TaskModel,
        plan: Plan,
        batch_limits: BatchLimits,
        generation: Mapping[str, Any] | None = None,
        quantize: str | None = None,
    ) -> None:
        super().__init__(task_model, batch_limits)
        self.plan = plan
        dtype = task_model.generator.executor.dtype
        self.weight_type = quantize or str(dtype).removeprefix("torch.")
        self.last_stats: Stats | None = None
        self._sampling = SamplingDefaults(self.name, generation or {})

    @overload
    def fill(
        self,
        text: str | Sequence[str],
        *,
        stream: Literal[False] = False,
        **options: Unpack[SamplingOptions],
    ) -> Fill: ...
    @overload
    def fill(
        self,
        text: str | Sequence[str],
        *,
        stream: Literal[True],
        **options: Unpack[SamplingOptions],
    ) -> Filling: ...
    def fill(
        self, text: str | Sequence[str], *, stream: bool = False, **options: Unpack[SamplingOptions]
    ) -> Fill | Filling:
        """The text with its blanks filled; a blank is written ``<blank>``, ``<span>`` or ``__``.

        ``text`` may also be the pieces around the blanks. ``max_tokens`` is for all blanks
        together, by default 32 for each. With ``stream=True`` an iterator of (index of the blank,
        piece of its text), whose ``result()`` is the ``Fill``.

        Raises:
            UsageError: there is no blank, or the model cannot fill.
            ContextLengthError: the text is too long.
        """
        # Without a blank the text is refused, but a wrong keyword is named before that.
        room = {"max_tokens": DEFAULT_TOKENS_PER_BLANK * max(1, count_blanks(text))}
        params = self._sampling.params("fill", options, room)
        pieces = split_at_blanks(text) if isinstance(text, str) else text
        filling = Filling(self._model, pieces, params, on_finish=self._keep_stats)
        return filling if stream else filling.result()

    @overload
    def write(
        self, opening: str, *, stream: Literal[False] = False, **options: Unpack[SamplingOptions]
    ) -> str: ...
    @overload
    def write(
        self, opening: str, *, stream: Literal[True], **options: Unpack[SamplingOptions]
    ) -> TextStream: ...
    def write(
        self, opening: str, *, stream: bool = False, **options: Unpack[SamplingOptions]
    ) -> str | TextStream:
        """What follows an opening, without the opening; as long as ``max_tokens`` says.

        With ``stream=True`` an iterator of pieces.

        Raises:
            UsageError: the opening is empty, or the model cannot write.
        """
        params = self._sampling.params("write", options)
        return self._text(write(self._model, opening, params), stream)

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_input_tokens: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply: ...
    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[True],
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_input_tokens: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> ChatStream: ...
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_input_tokens: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply | ChatStream:
        """The answer to a dialogue: messages ``{"role": ..., "content": text}``.

        Roles are "user" and "assistant", and "system" for models that know it. The oldest turns
        are left out where not all fit into ``max_input_tokens`` (None: what the model was trained
        to read). A model that thinks first gives its thoughts apart: the string that comes back
        is the answer, its ``thoughts`` the rest; ``thinking`` turns that on or off where the
        model has a switch for it. With ``stream=True`` an iterator of pieces of the answer, whose
        ``parts()`` gives the pieces of both, marked. ``tools`` are functions that the model may
        call, in OpenAI's words; what it wants called is in ``tool_calls`` of what comes back.

        Raises:
            UsageError: messages or tools are malformed, or the model cannot chat, or call tools.
            ContextLengthError: the last message alone is too long.
        """
        params = self._sampling.params("chat", options, self._reply_room())
        asked_for = ChatOptions(thinking, max_input_tokens, tools=tool_use(tools))
        asked = chat(self._model, messages, params, asked_for)
        reply = ChatStream(self._model.generator, asked.request, asked.splitter(), self._keep_stats)
        return reply if stream else Reply("".join(reply), reply.thoughts, reply.tool_calls)

    @overload
    def generate(
        self,
        prompt: str,
        *,
        stream: Literal[False] = False,
        format: Mapping[str, Any] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: str,
        *,
        stream: Literal[True],
        format: Mapping[str, Any] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> TextStream: ...
    def generate(
        self,
        prompt: str,
        *,
        stream: bool = False,
        format: Mapping[str, Any] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> str | TextStream:
        """What the model makes of a prompt, whatever its family.

        Decoder-only models and CPM-2 go on with it, until the context is full at most; T5 does
        what it says; EVA answers it as a turn. With ``stream=True`` an iterator of pieces.
        ``format`` makes the text JSON: ``{"type": "json_object"}``, or one that fits a schema:
        ``{"type": "json_schema", "schema": {...}}``; it is whole where ``max_tokens`` suffices.

        Raises:
            UsageError: the prompt is empty, or the format is not valid or not supported.
            ContextLengthError: the prompt is too long.
        """
        prepared = self.prepare("complete", prompt, format=format, **options)
        return self._text(prepared.request, stream)

    def sampling_params(
        self, task: Task | Literal["generate"], **options: Unpack[SamplingOptions]
    ) -> SamplingParams:
        """How tokens would be chosen for a task with these keywords: they, then the defaults.

        Raises:
            UsageError: a value is out of range.
        """
        return self._sampling.params(task, options, self._reply_room() if task == "chat" else {})

    def prepare(
        self,
        kind: PromptKind,
        payload: Any,
        *,
        top_logprobs: int | None = None,
        format: Mapping[str, Any] | None = None,
        thinking: bool | None = None,
        tools: ToolUse | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Prepared:
        """A text to be written in a batch: the request, and what its events mean.

        Args:
            kind: "chat" takes messages; "complete" (as ``generate``) and "write" take a text or its
                token ids; "fill" takes a text with blanks or the pieces around them.
            payload: that.
            top_logprobs: how many of the most probable tokens to tell beside each token.
            format: {"type": "json_object"}, or {"type": "json_schema", "schema": {...}}.
            thinking: as for ``chat``.
            tools: what a chat may or must call; see ``engine.tools.tool_use``.
            options: sampling keywords.

        Raises:
            UsageError: the payload is malformed, or the model cannot do this.
            ContextLengthError: it is longer than what the model reads.
        """
        room = self._reply_room() if kind == "chat" else {}
        if kind == "fill":
            # Without a blank the text is refused, but a wrong keyword is named before that.
            room = {"max_tokens": DEFAULT_TOKENS_PER_BLANK * max(1, count_blanks(payload))}
        params = self._sampling.params(task_of(kind, self.family), options, room)
        limit_tokens = self.batch_limits.slot_tokens
        asked = ChatOptions(thinking, None, limit_tokens, format is not None, tools)
        prepared = prepare(self._model, kind, payload, params, limit_tokens, asked)
        return with_extras(self._model, prepared, top_logprobs, format)

    def batch(self, limits: BatchLimits | None = None) -> Batch:
        """Memory to write many texts at a time; ``limits`` None is what the plan has paid for.

        Raises:
            CapacityError: it does not fit.
        """
        return Batch(self.generator, limits or self.batch_limits)

    def _reply_room(self) -> dict[str, Any]:
        """Models with a template end their replies themselves; memory is the limit."""
        has_template = self._model.template is not None
        return {"max_tokens": self.batch_limits.slot_tokens} if has_template else {}

    def _text(self, request: Request, stream: bool) -> str | TextStream:
        pieces = TextStream(self._model.generator, request, self._keep_stats)
        return pieces if stream else "".join(pieces)

    def _keep_stats(self, stats: Stats) -> None:
        self.last_stats = stats
