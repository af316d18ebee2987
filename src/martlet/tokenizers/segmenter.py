"""Chinese word segmentation with jieba's dictionary and model, in linear time.

All four vocabularies were made from text cut by ``jieba.cut(text, cut_all=False)`` with the
default dictionary and the hidden Markov model on; the cut must be the same, word for word. The
data is jieba's own, read from the installed package; the algorithm is written anew because
jieba's copies the whole path at every step of its Viterbi search (quadratic in the length of a
run without dictionary words), keeps its dictionary in the shared temporary directory, writes to
stderr, and can be changed by any other code of the process that adds words to it.
"""

from __future__ import annotations

import functools
import marshal
import math
import re
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from martlet.device.user_cache import read_cached, user_cache_folder, write_cached

__all__ = ["Segmenter", "default_segmenter"]

# What jieba looks up in the dictionary; everything else is cut into single characters.
_DICTIONARY_RUN = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&._%\-]+)")
_WHITESPACE = re.compile(r"(\r\n|\s)")
_HAN_RUN = re.compile(r"([\u4E00-\u9FD5]+)")
_LATIN_OR_NUMBER = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")

_IMPOSSIBLE = -3.14e100  # jieba's stand-in for log(0)

_lock = threading.Lock()


@dataclass(frozen=True)
class _CharacterModel:
    """Hidden Markov model over a character's place in its word: Begin, Middle, End, Single."""

    start: dict[str, float]
    transition: dict[str, dict[str, float]]
    emission: dict[str, dict[str, float]]

    def cut(self, run: str, words: list[str]) -> None:
        """Adds the words of a run of Chinese characters by the likeliest sequence of places."""
        begin = 0
        for position, place in enumerate(self._places(run)):
            if place == "B":
                begin = position
            elif place == "E":
                words.append(run[begin : position + 1])
            elif place == "S":
                words.append(run[position])

    def _places(self, run: str) -> str:
        to = self.transition
        emit_b, emit_m, emit_e, emit_s = (self.emission[place] for place in "BMES")
        b, m, e, s = (
            self.start[place] + self.emission[place].get(run[0], _IMPOSSIBLE) for place in "BMES"
        )
        b_to_e, b_to_m, m_to_e, m_to_m = to["B"]["E"], to["B"]["M"], to["M"]["E"], to["M"]["M"]
        e_to_b, e_to_s, s_to_b, s_to_s = to["E"]["B"], to["E"]["S"], to["S"]["B"], to["S"]["S"]
        # One row a character: the place before, for each of B, M, E, S. Of equally likely
        # ones the later letter wins, and the sums keep jieba's order so that ties stay ties.
        before: list[tuple[str, str, str, str]] = []
        for character in run[1:]:
            at_b, at_m = emit_b.get(character, _IMPOSSIBLE), emit_m.get(character, _IMPOSSIBLE)
            at_e, at_s = emit_e.get(character, _IMPOSSIBLE), emit_s.get(character, _IMPOSSIBLE)
            next_b, from_b = s + s_to_b + at_b, "S"
            if (other := e + e_to_b + at_b) > next_b:
                next_b, from_b = other, "E"
            next_m, from_m = m + m_to_m + at_m, "M"
            if (other := b + b_to_m + at_m) > next_m:
                next_m, from_m = other, "B"
            next_e, from_e = m + m_to_e + at_e, "M"
            if (other := b + b_to_e + at_e) > next_e:
                next_e, from_e = other, "B"
            next_s, from_s = s + s_to_s + at_s, "S"
            if (other := e + e_to_s + at_s) > next_s:
                next_s, from_s = other, "E"
            b, m, e, s = next_b, next_m, next_e, next_s
            before.append((from_b, from_m, from_e, from_s))
        place = "E" if e > s else "S"
        places = [place]
        for row in reversed(before):
            place = row["BMES".index(place)]
            places.append(place)
        return "".join(reversed(places))


class Segmenter:
    """Cuts text into words; concatenated, they are the text.

    Args:
        scores: log probability of every dictionary word, minus infinity for what only begins one.
        unknown_score: log probability of a character that begins no dictionary word.
        characters: finds words that the dictionary does not have.
    """

    def __init__(
        self, scores: dict[str, float], unknown_score: float, characters: _CharacterModel
    ) -> None:
        self._scores = scores
        self._unknown_score = unknown_score
        self._characters = characters

    def cut(self, text: str) -> list[str]:
        """Words, white space and punctuation in order, as ``jieba.cut`` yields them."""
        words: list[str] = []
        for index, run in enumerate(_DICTIONARY_RUN.split(text)):
            if index % 2:
                self._cut_run(run, words)
            elif len(run) == 1:
                words.append(run)
            else:
                for position, part in enumerate(_WHITESPACE.split(run)):
                    words += [part] if position % 2 else part
        return words

    def _cut_run(self, run: str, words: list[str]) -> None:
        ends = self._best_ends(run)
        start = singles = 0  # singles: where the pending row of one-character words begins
        while start < len(run):
            end = ends[start]
            if end - start > 1:
                if singles < start:
                    self._cut_singles(run[singles:start], words)
                words.append(run[start:end])
                singles = end
            start = end
        if singles < start:
            self._cut_singles(run[singles:], words)

    def _best_ends(self, run: str) -> list[int]:
        """For each position the end of the word that begins there on the likeliest path."""
        length, find = len(run), self._scores.get
        best = [0.0] * (length + 1)
        ends = [0] * length
        for start in range(length - 1, -1, -1):
            best_score, best_end, end = -math.inf, 0, start + 1
            score = find(run[start])
            while score is not None:  # what is in the dictionary, be it only as a beginning
                total = score + best[end]
                if total >= best_score:  # the longer word wins a tie
                    best_score, best_end = total, end
                if end == length:
                    break
                end += 1
                score = find(run[start:end])
            if best_score == -math.inf:  # no word begins here
                best_score, best_end = self._unknown_score + best[start + 1], start + 1
            best[start], ends[start] = best_score, best_end
        return ends

    def _cut_singles(self, run: str, words: list[str]) -> None:
        """Adds the words of a row of characters that the dictionary would leave single."""
        if len(run) == 1 or self._scores.get(run, -math.inf) > -math.inf:
            words += run
            return
        for index, part in enumerate(_HAN_RUN.split(run)):
            if index % 2:
                self._characters.cut(part, words)
            elif part:
                words += filter(None, _LATIN_OR_NUMBER.split(part))


def default_segmenter() -> Segmenter:
    """The segmenter with jieba's default dictionary, made at the first call and then shared.

    The first use on a machine takes a second to read the dictionary; a copy in the user's cache
    directory makes later starts faster. Where that cannot be written it is simply not kept.
    """
    with _lock:
        return _load_segmenter()


@functools.cache
def _load_segmenter() -> Segmenter:
    jieba, emission, start, transition = _import_jieba()
    cache_path = _cache_path(jieba.__version__)
    cached = _read_cache(cache_path)
    if cached is None:
        tokenizer = jieba.Tokenizer()
        frequencies, total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
        cached = _scores_of(frequencies, total)
        _write_cache(cache_path, cached)
    scores, unknown_score = cached
    return Segmenter(scores, unknown_score, _CharacterModel(start.P, transition.P, emission.P))


def _import_jieba() -> tuple[Any, Any, Any, Any]:
    # jieba 0.42.1 has invalid escapes in its regular expressions (SyntaxWarning from Python
    # 3.12 on, when compiled) and tries the deprecated pkg_resources.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba
        from jieba.finalseg import prob_emit, prob_start, prob_trans
    return jieba, prob_emit, prob_start, prob_trans


def _scores_of(frequencies: dict[str, int], total: int) -> tuple[dict[str, float], float]:
    log_total = math.log(total)
    scores = {word: math.log(n) - log_total if n else -math.inf for word, n in frequencies.items()}
    return scores, math.log(1) - log_total


def _cache_path(jieba_version: str) -> Path | None:
    folder = user_cache_folder()
    if folder is None:
        return None
    return folder / f"words-2-jieba-{jieba_version}-{sys.implementation.cache_tag}.marshal"


def _read_cache(path: Path | None) -> tuple[dict[str, float], float] | None:
    # The digest matters here: marshal trusts its input.
    payload = None if path is None else read_cached(path)
    if payload is None:
        return None
    return cast("tuple[dict[str, float], float]", marshal.loads(payload))


def _write_cache(path: Path | None, content: tuple[dict[str, float], float]) -> None:
    if path is not None:
        write_cached(path, marshal.dumps(content))
