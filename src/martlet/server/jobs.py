"""Jobs in the process of a model: prepared beside its steps, written in them, told as events."""

from __future__ import annotations

import dataclasses
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from martlet.api.model import Model
from martlet.api.prepared import Prepared, PromptKind
from martlet.engine.batch import Batch
from martlet.engine.batch_text import Deliver, Failed, Started
from martlet.engine.request import LARGEST_SEED, Finished, TokenEvent
from martlet.engine.tools import tool_use
from martlet.errors import MartletError, UnavailableError, UsageError
from martlet.server.choice import Choice
from martlet.server.messages import JobSpec, SubmitMessage, error_details

__all__ = ["Jobs"]

_NEW_SEEDS = 1 << 31
_MOST_NUMBERS = 1 << 19
# What is asked of a model goes by one of these names in a task.
_PAYLOADS = {"chat": "messages", "complete": "prompt", "write": "prompt", "fill": "pieces"}


class _Job:
    """A job until its last event, or until nobody waits for it."""

    def __init__(self, message: SubmitMessage) -> None:
        self.id = message["id"]
        self.client = message["client"]
        self.spec: JobSpec = message["job"]
        self.choices_left = max(1, self.spec["num_choices"])
        # All choices end by it. Nothing is told of a job once it is set.
        self.cancelled = threading.Event()


class _Embedding:
    """Texts that become vectors, some at a time, so that other texts go on between."""

    def __init__(self, job: _Job, token_ids: list[list[int]]) -> None:
        self.job = job
        self.token_ids = token_ids
        self.vectors: list[list[float]] = []

    @property
    def is_done(self) -> bool:
        return len(self.vectors) == len(self.token_ids)

    def next_part(self, max_tokens: int) -> list[list[int]]:
        """The next texts, as many as have so many tokens together, at least one."""
        start = end = len(self.vectors)
        num_tokens = 0
        while end < len(self.token_ids):
            num_tokens += len(self.token_ids[end])
            if num_tokens > max_tokens and end > start:
                break
            end += 1
        return self.token_ids[start:end]

    def require_short(self) -> None:
        """Refuse what would be a message so long that the server could do nothing else with it."""
        size = len(self.vectors[0])
        if size * len(self.token_ids) > _MOST_NUMBERS:
            raise UsageError(
                f"there are {len(self.token_ids):,} texts to embed, with {size:,} numbers each; "
                f"give at most {_MOST_NUMBERS // size:,} at a time"
            )


class Jobs:
    """All jobs of a model.

    Tokenising, and whatever else is done before a model sees a text, has a thread of its own, so
    that a long prompt does not stop the texts that are being written.

    Args:
        model: what answers.
        batch: what steps it, in the thread that calls ``run_between_steps``.
        send: hands an event to the server.
        wake: tells that thread that there is something to do.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        send: Callable[[Mapping[str, Any]], None],
        wake: Callable[[], None],
    ) -> None:
        self._model = model
        self._batch = batch
        self._send = send
        self._wake = wake
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._unprepared: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._embeddings: queue.SimpleQueue[_Embedding] = queue.SimpleQueue()
        self._embedding: _Embedding | None = None  # the one that is being computed
        threading.Thread(target=self._prepare_all, name="prepare", daemon=True).start()

    def submit(self, message: SubmitMessage) -> None:
        """Take a job; any thread."""
        job = _Job(message)
        with self._lock:
            self._jobs[job.id] = job
        self._unprepared.put(job)

    def cancel(self, job_id: str) -> None:
        """Nobody waits for this job any more; any thread."""
        job = self._forget(job_id)
        if job is not None:
            job.cancelled.set()
            self._wake()

    def run_between_steps(self) -> bool:
        """Do what needs the model but is no text, one pass at most; False where there is none."""
        if self._embedding is None:
            try:
                self._embedding = self._embeddings.get_nowait()
            except queue.Empty:
                return False
        embedding = self._embedding
        if not embedding.job.cancelled.is_set():
            self._guard(embedding.job, lambda _: self._embed_some(embedding))
        if embedding.job.cancelled.is_set() or embedding.is_done:
            self._embedding = None
        return True

    def fail_all(self) -> None:
        """Tell everyone who waits that the model has broken down."""
        with self._lock:
            jobs = list(self._jobs.values())
        error = UnavailableError(
            "the model broke down while it computed and is being restarted; try again"
        )
        for job in jobs:
            self._fail(job, error)

    def _prepare_all(self) -> None:
        while True:
            job = self._unprepared.get()
            if job.cancelled.is_set():
                continue
            match job.spec["task"]["kind"]:
                case "embed":
                    self._guard(job, self._start_embedding)
                case "tokenize":
                    self._guard(job, self._tokenize)
                case "detokenize":
                    self._guard(job, self._detokenize)
                case _:
                    self._guard(job, self._start_writing)

    def _guard(self, job: _Job, work: Callable[[_Job], None]) -> None:
        """Do a part of a job; what goes wrong in it ends this job and no other."""
        try:
            work(job)
        except MartletError as error:
            self._fail(job, error)
        except Exception as error:
            # The message might quote the prompt, so neither log nor client gets it.
            name = type(error).__name__
            sys.stderr.write(f"preparing a {job.spec['task']['kind']} job failed: {name}\n")
            self._fail(job, MartletError(f"the request could not be prepared ({name})"))

    def _start_writing(self, job: _Job) -> None:
        """Give all choices of a job to the batch."""
        prepared = [self._prepared(job, params) for params in _params_of_choices(job.spec)]
        tells_tokens = job.spec["top_logprobs"] is not None
        for index, one in enumerate(prepared):
            choice = Choice(index, one, self._model.tokenizer, tells_tokens)
            request = dataclasses.replace(one.request, cancel=job.cancelled)
            self._batch.submit(request, self._deliver(job, choice), job.client)
        self._wake()

    def _prepared(self, job: _Job, params: dict[str, Any]) -> Prepared:
        task = job.spec["task"]
        kind = cast(PromptKind, task["kind"])
        tools = tool_use(**task["tools"]) if "tools" in task else None
        return self._model.prepare(
            kind,
            task[_PAYLOADS[kind]],  # type: ignore[literal-required]
            top_logprobs=job.spec["top_logprobs"],
            format=job.spec["format"],
            thinking=task.get("thinking"),
            tools=tools,
            **params,
        )

    def _deliver(self, job: _Job, choice: Choice) -> Deliver:
        """What turns the batch's events of a choice into the server's; called between steps."""

        def deliver(event: Started | TokenEvent | Finished | Failed) -> None:
            if job.cancelled.is_set():
                return
            if isinstance(event, Failed):
                self._fail(job, event.error)
                return
            for fields in choice.tell(event):
                self._send({"op": "event", "id": job.id, "choice": choice.index, **fields})
            if isinstance(event, Finished):
                job.choices_left -= 1
                if not job.choices_left:
                    self._forget(job.id)

        return deliver

    def _start_embedding(self, job: _Job) -> None:
        token_ids = self._model.embedding_ids(job.spec["task"]["inputs"])
        self._embeddings.put(_Embedding(job, token_ids))
        self._wake()

    def _embed_some(self, embedding: _Embedding) -> None:
        part = embedding.next_part(self._model.batch_limits.chunk_tokens)
        embedding.vectors += self._model.embed(part).vectors
        embedding.require_short()
        if embedding.is_done:
            num_tokens = sum(map(len, embedding.token_ids))
            self._send_result(embedding.job, embedding.vectors, num_tokens)

    def _tokenize(self, job: _Job) -> None:
        token_ids = self._model.tokenizer.encode(job.spec["task"]["text"])
        self._send_result(job, token_ids, len(token_ids))

    def _detokenize(self, job: _Job) -> None:
        token_ids = job.spec["task"]["token_ids"]
        self._send_result(job, self._model.tokenizer.decode(token_ids), len(token_ids))

    def _send_result(self, job: _Job, value: Any, prompt_tokens: int) -> None:
        """Tell the only event of a job that writes no text."""
        if self._forget(job.id) is not None:
            fields = {"event": "result", "value": value, "prompt_tokens": prompt_tokens}
            self._send({"op": "event", "id": job.id, **fields})

    def _fail(self, job: _Job, error: MartletError) -> None:
        """End a job with all its choices."""
        if self._forget(job.id) is None:
            return
        job.cancelled.set()
        self._send({"op": "event", "id": job.id, "event": "error", "error": error_details(error)})

    def _forget(self, job_id: str) -> _Job | None:
        with self._lock:
            return self._jobs.pop(job_id, None)


def _params_of_choices(spec: JobSpec) -> list[dict[str, Any]]:
    """The sampling parameters of each choice: the same but for the seed, which counts up."""
    seed = spec["params"].get("seed")
    if seed is None:
        seed = secrets.randbelow(_NEW_SEEDS)
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        return [spec["params"]] * spec["num_choices"]  # refused where it is read
    return [
        {**spec["params"], "seed": (seed + index) & LARGEST_SEED}
        for index in range(max(1, spec["num_choices"]))
    ]
