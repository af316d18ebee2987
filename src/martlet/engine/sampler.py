"""From logits to a token."""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from martlet.device.threads import cpu_threads
from martlet.engine.request import SamplingParams
from martlet.errors import MartletError

__all__ = ["Chances", "Sample", "Sampler", "top_tokens"]

# Tokens that are ranked before the whole vocabulary is: a top-p of 0.9 rarely needs more than the
# first number, hardly ever more than the second. They take 0.1 and 0.4 ms of 30 k, ranking all 3.
_USUAL_NUCLEUS = (128, 2048)

_ALL_SUPPRESSED = "every token of the vocabulary is suppressed; nothing can follow"
_NOT_FINITE = (
    "its weights are damaged or overflow in this number type: convert it again, or try --device cpu"
)


@dataclass(frozen=True)
class Sample:
    """A chosen token, and the most probable ones in its place, the best first.

    Units:
        logprob, top: nats, under the model's own distribution: before penalties, temperature and
            cuts, and with the tokens that must not be chosen.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def with_top(self, top: tuple[tuple[int, float], ...]) -> Sample:
        """The same choice with these tokens beside it."""
        return replace(self, top=top)


@dataclass(frozen=True, eq=False)
class Chances:
    """What a device needs to choose the next tokens of a sequence as its sampler would.

    Shapes:
        output_counts: (vocab_size,) how often each token is in the output
        seen: (vocab_size,) bool, whether it is in the prompt or the output
        uniforms: (num_tokens,) float64, the numbers of the draws to come
    """

    params: SamplingParams
    output_counts: Tensor
    seen: Tensor
    uniforms: Tensor


class Sampler:
    """Chooses the tokens of one sequence.

    Order: suppressed tokens, repetition penalty (prompt and output), presence and frequency
    penalty (output only), temperature, top-k, top-p, min-p, one draw. Each cut sees the
    renormalised distribution that the one before left. Temperature 0 takes the largest
    logit after the penalties and draws nothing.

    ``seed`` is the one in force, drawn when the parameters name none. One uniform number is used a
    token, from a generator on the CPU, so that equal seeds give equal draws on every device.
    ``num_top`` is how many of the most probable tokens ``sample`` tells.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        prompt_ids: Sequence[int] = (),
        num_top: int = 0,
    ) -> None:
        self.params = params
        self.seed = secrets.randbits(48) if params.seed is None else params.seed
        self._generator = torch.Generator(device="cpu").manual_seed(self.seed)
        self._uniforms: deque[float] = deque()  # drawn already, not used yet
        self._last_uniform: float | None = None  # what the last choice has used
        self._num_top = num_top
        self._output_counts = torch.zeros(vocab_size)
        self._seen = torch.zeros(vocab_size, dtype=torch.bool)
        self._seen[torch.tensor(list(prompt_ids), dtype=torch.int64)] = True

    def accept(self, token_id: int) -> None:
        """Count a token of the output, chosen here or not, for the penalties to come."""
        self._output_counts[token_id] += 1
        self._seen[token_id] = True

    @property
    def is_plain(self) -> bool:
        """Whether the most probable token is always the one."""
        p = self.params
        has_penalty = p.repetition_penalty != 1 or p.presence_penalty or p.frequency_penalty
        return p.temperature == 0 and not has_penalty

    def chances(self, num_tokens: int) -> Chances:
        """What a device needs for so many tokens; see ``take`` for those it has chosen."""
        num_missing = num_tokens - len(self._uniforms)
        if self.params.temperature > 0 and num_missing > 0:
            # As many single numbers would be the same.
            more = torch.rand(num_missing, generator=self._generator, dtype=torch.float64)
            self._uniforms.extend(more.tolist())
        uniforms = torch.tensor(list(self._uniforms)[:num_tokens], dtype=torch.float64)
        return Chances(self.params, self._output_counts, self._seen, uniforms)

    def take(self, token_id: int, logprob: float) -> Sample:
        """The token that a device has chosen, in place of ``sample``.

        Raises:
            MartletError: a logit was not finite (the log-probability is no number), or every token
                was suppressed (it is -inf).
        """
        self._last_uniform = None
        if math.isnan(logprob):
            raise MartletError(f"the model gave logits that are not finite numbers; {_NOT_FINITE}")
        if logprob == -math.inf:
            raise MartletError(_ALL_SUPPRESSED)
        self._last_uniform = self._uniforms.popleft() if self._uniforms else None
        return Sample(token_id, logprob)

    def take_back(self) -> None:
        """Undo the last choice, in whose place another token was forced: its draw comes again."""
        if self._last_uniform is not None:
            self._uniforms.appendleft(self._last_uniform)
            self._last_uniform = None

    def sample(self, logits: Tensor, suppressed: Tensor | None = None) -> Sample:
        """One token; does not count it: see ``accept``.

        Shapes:
            logits: (vocab_size,) any float type, any device
            suppressed: (vocab_size,) bool, True = must not be chosen

        Raises:
            MartletError: a logit is not finite, or every token is suppressed.
        """
        # One row is too short to share: threads would wait for each other longer than they compute.
        with cpu_threads(1):
            return self._sample(logits.to(device="cpu", dtype=torch.float32), suppressed)

    def _sample(self, logits: Tensor, suppressed: Tensor | None) -> Sample:
        self._last_uniform = None
        normaliser = torch.logsumexp(logits, dim=0)
        # The sum is a cheap first look: it is finite wherever every logit is and none is absurd.
        if not logits.sum().isfinite():
            _require_finite(logits)
        scores = self._penalise(logits)
        if suppressed is not None:
            scores = scores.masked_fill(suppressed, -torch.inf)
        if scores.max() == -torch.inf:
            raise MartletError(_ALL_SUPPRESSED)
        if self.params.temperature == 0:
            token_id = int(scores.argmax())
        else:
            token_id = self._draw(*self.candidates(scores))
        sample = Sample(token_id, float(logits[token_id] - normaliser))
        return sample.with_top(top_tokens(logits, self._num_top)) if self._num_top else sample

    def _penalise(self, logits: Tensor) -> Tensor:
        p = self.params
        if p.repetition_penalty != 1:
            factor = p.repetition_penalty
            penalised = torch.where(logits > 0, logits / factor, logits * factor)
            logits = torch.where(self._seen, penalised, logits)
        if p.presence_penalty or p.frequency_penalty:
            presence = p.presence_penalty * (self._output_counts > 0)
            logits = logits - presence - p.frequency_penalty * self._output_counts
        return logits

    def candidates(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that may be drawn, and their probabilities.

        Shapes:
            scores: (vocab_size,) float32 after penalties, -inf = must not be chosen
            return: (num_candidates,) int64, and (num_candidates,) float64 that sum to 1
        """
        p = self.params
        # The best score is taken off first: a tiny temperature must not turn it into infinity.
        best = scores.max().double()
        if 0 < p.top_k < scores.numel():
            top, token_ids = scores.topk(p.top_k)
            probabilities = torch.softmax((top.double() - best) / p.temperature, dim=0)
            if p.top_p < 1:
                token_ids, probabilities = _nucleus(token_ids, probabilities, p.top_p)
        else:
            probabilities = torch.softmax((scores.double() - best) / p.temperature, dim=0)
            if p.top_p < 1:
                token_ids, probabilities = _ranked_nucleus(probabilities, p.top_p)
            else:
                token_ids = torch.arange(scores.numel())
        if p.min_p > 0:
            kept = probabilities >= p.min_p * probabilities.max()
            token_ids, probabilities = token_ids[kept], _renormalised(probabilities[kept])
        return token_ids, probabilities

    def _draw(self, token_ids: Tensor, probabilities: Tensor) -> int:
        if not self._uniforms:
            drawn = torch.rand((), generator=self._generator, dtype=torch.float64)
            self._uniforms.append(float(drawn))
        point = self._last_uniform = self._uniforms.popleft()
        cumulative = probabilities.cumsum(0)
        # right=True passes over tokens of probability 0.
        index = int(torch.searchsorted(cumulative, point * cumulative[-1], right=True))
        if index == len(cumulative):  # the product was rounded up to the sum
            index = int(probabilities.argmax())
        return int(token_ids[index])


def top_tokens(logits: Tensor, num_top: int) -> tuple[tuple[int, float], ...]:
    """The most probable tokens and their log-probabilities, the best first; logits: (vocab_size,).

    Of equally probable ones none comes before the others by rule.
    """
    best, token_ids = logits.topk(min(num_top, logits.numel()))
    logprobs = best - logits.logsumexp(dim=0)
    return tuple(zip(token_ids.tolist(), logprobs.tolist(), strict=True))


def _require_finite(logits: Tensor) -> None:
    num_bad = int((~torch.isfinite(logits)).sum())
    if num_bad:
        raise MartletError(
            f"the model gave {num_bad} of {logits.numel()} logits that are not finite numbers; "
            + _NOT_FINITE
        )


def _ranked_nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """``_nucleus`` of a whole vocabulary, sorted only as far as is usually enough."""
    for num_ranked in _USUAL_NUCLEUS:
        ranked, token_ids = probabilities.topk(min(num_ranked, probabilities.numel()))
        if ranked.sum() >= top_p:
            return _nucleus(token_ids, ranked, top_p)
    # Stable, so that equal probabilities stand in the order of their ids.
    ranked, token_ids = probabilities.sort(descending=True, stable=True)
    return _nucleus(token_ids, ranked, top_p)


def _nucleus(token_ids: Tensor, ranked: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest number of leading tokens that together have a probability of ``top_p``."""
    before = ranked.cumsum(0) - ranked
    num_kept = max(1, int((before < top_p).sum()))
    return token_ids[:num_kept], _renormalised(ranked[:num_kept])


def _renormalised(probabilities: Tensor) -> Tensor:
    return probabilities / probabilities.sum()
