"""Samples of a text in the forms that a family was trained on, for calibration and tuning.

A decoder-only model reads windows of the text. CPM-2 and T5 read half of their windows with some
spans hidden behind sentinels, which the decoder writes out, and continue the others; EVA answers
all of them. So every part of the model sees what it sees at work.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from martlet.compression.walk import Sample
from martlet.errors import UsageError, VocabularyError
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["SampleForm", "sample_text"]

_LEAST_TOKENS = 16  # of a sample; less would be all beginnings
# More characters than a token has in any language that the models know, so that one cut suffices.
_CHARACTERS_PER_TOKEN = 6
_HIDDEN_SHARE = 0.15  # of the tokens, as the models were trained
_MEAN_SPAN_TOKENS = 3
_MOST_SPANS = 16


@dataclass(frozen=True)
class SampleForm:
    """A family's forms; ``max_positions`` and ``max_input_tokens`` limit decoder and encoder."""

    family: str
    tokenizer: Tokenizer
    max_positions: int | None = None
    max_input_tokens: int | None = None

    def window_tokens(self, sample_tokens: int) -> int:
        """Tokens of the text that one sample takes."""
        limits = (sample_tokens, self.max_positions, self.max_input_tokens)
        tokens = min(limit for limit in limits if limit is not None)
        return tokens if self._is_decoder_only else tokens + tokens // 2

    def sample(self, ids: Sequence[int], number: int, chance: random.Random) -> Sample:
        """One window of a text as the model reads it; of CPM-2 and T5 every other one is filled."""
        if self._is_decoder_only:
            return Sample(self._windowed(ids))
        # Control tokens take up to two places of the encoder's.
        cut = max(1, len(ids) * 2 // 3 - 2)
        if self.family != "eva" and number % 2 == 0:
            return self._filled(ids[:cut], chance)
        return self._continued(ids[:cut], ids[cut:])

    @property
    def _is_decoder_only(self) -> bool:
        return self.family not in ("cpm2", "eva", "t5")

    def _windowed(self, ids: Sequence[int]) -> tuple[int, ...]:
        start = self.tokenizer.special.start
        return (*start, *ids[: len(ids) - len(start)])

    def _continued(self, before: Sequence[int], after: Sequence[int]) -> Sample:
        if self.family == "cpm2":
            mark = self._sentinels()[-1]
            return Sample((self._token("bos"), mark, *after), (*before, mark))
        if self.family == "eva":
            start = self._sentinels()[0]
            return Sample((start, *after), (*before, self._token("sep"), start))
        return Sample((self._token("pad"), *after), (*before, self._token("eos")))

    def _filled(self, ids: Sequence[int], chance: random.Random) -> Sample:
        sentinels = self._sentinels()
        spans = _spans(len(ids), min(_MOST_SPANS, len(sentinels) - 1), chance)
        is_t5 = self.family == "t5"
        encoder: list[int] = []
        decoder = [self._token("pad" if is_t5 else "bos")]
        done = 0
        for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
            encoder += [*ids[done:start], sentinel]
            decoder += [sentinel, *ids[start:stop]]
            done = stop
        encoder += [*ids[done:], *([self._token("eos")] if is_t5 else [])]
        return Sample((*decoder, sentinels[len(spans)]), tuple(encoder))

    def _token(self, name: str) -> int:
        token_id: int | None = getattr(self.tokenizer.special, name)
        if token_id is None:
            raise VocabularyError(
                f"the vocabulary has no {name} token, which {self.family} models need; "
                "tokenizer and weights do not belong together"
            )
        return token_id

    def _sentinels(self) -> tuple[int, ...]:
        sentinels = self.tokenizer.special.sentinels
        if len(sentinels) < 2:
            raise VocabularyError(
                f"the vocabulary has {len(sentinels)} sentinels and {self.family} models need 2 "
                "at least; tokenizer and weights do not belong together"
            )
        return sentinels


def sample_text(
    form: SampleForm, text: str, *, num_samples: int, sample_tokens: int, seed: int
) -> tuple[Sample, ...]:
    """Windows spread over a text, one in each of ``num_samples`` equal parts of where one may lie.

    The same text and numbers give the same samples. Windows of a text that is too short for all of
    them overlap.

    Raises:
        UsageError: the text has fewer tokens than one window needs at least.
        VocabularyError: the vocabulary lacks a token that the family's form needs.
    """
    source = random.Random(seed)
    window_tokens = form.window_tokens(sample_tokens)
    length = _CHARACTERS_PER_TOKEN * window_tokens
    room = max(0, len(text) - length)
    samples = []
    for number in range(num_samples):
        start = int((number + source.random()) * room / num_samples)
        ids = form.tokenizer.encode(_from_a_line(text[start : start + length]))[:window_tokens]
        if len(ids) >= _LEAST_TOKENS:
            samples.append(form.sample(ids, number, source))
    if not samples:
        raise UsageError(
            f"the calibration text has {len(text):,} characters, and no window of it has "
            f"{_LEAST_TOKENS} tokens; give a longer text"
        )
    return tuple(samples)


def _from_a_line(piece: str) -> str:
    """The piece from its first whole line on, if that leaves most of it."""
    end = piece.find("\n", 0, len(piece) // 4)
    return piece[end + 1 :]


def _spans(num_tokens: int, most: int, chance: random.Random) -> list[tuple[int, int]]:
    """Places to hide, in order, with a token between any two; about 15 % of the tokens."""
    wanted = max(1, min(most, round(num_tokens * _HIDDEN_SHARE / _MEAN_SPAN_TOKENS)))
    spans: list[tuple[int, int]] = []
    part = num_tokens / wanted
    for number in range(wanted):
        first, last = int(number * part), int((number + 1) * part) - 1
        size = chance.randint(1, 2 * _MEAN_SPAN_TOKENS - 1)
        start = chance.randint(first, max(first, last - size))
        if start < min(start + size, last):
            spans.append((start, min(start + size, last)))
    return spans
