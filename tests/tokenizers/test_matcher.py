import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.tokenizers import matcher
from martlet.tokenizers.matcher import GreedyMatcher

UNK = 0


def _longest_matches(pieces: dict[str, int], word: str) -> list[int]:
    """The definition: try every substring from the longest down."""
    token_ids, start = [], 0
    while start < len(word):
        ends = (end for end in range(len(word), start, -1) if word[start:end] in pieces)
        end = next(ends, None)
        token_ids.append(UNK if end is None else pieces[word[start:end]])
        start = start + 1 if end is None else end
    return token_ids


@given(
    words=st.lists(st.text("ab中", min_size=1, max_size=5), max_size=12, unique=True),
    word=st.text("ab中x", max_size=40),
)
def test_takes_the_longest_entry_from_the_left(words: list[str], word: str):
    pieces = {piece: i for i, piece in enumerate(words, start=1)}
    assert GreedyMatcher(pieces.items(), UNK).match(word) == _longest_matches(pieces, word)


def test_continuations_match_only_after_the_first_piece():
    cut = GreedyMatcher([("ab", 1), ("a", 2)], UNK, continuations=[("a", 3), ("ba", 4)]).match
    assert cut("abaa") == [1, 3, 3]
    assert cut("aba") == [1, 3]
    assert cut("aaba") == [2, 3, 4]
    assert cut("bab") == [UNK, 3, UNK]  # an unknown character is a first piece too


def test_an_empty_word_has_no_pieces():
    assert GreedyMatcher([("a", 1)], UNK).match("") == []


def _lines_run(cut, word: str) -> int:
    """Lines that the matcher executes for a word: work without a clock."""
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        cut(word)
    finally:
        sys.settrace(before)
    return lines


def test_work_grows_linearly_on_the_worst_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matcher, "MAX_WORD_CHARACTERS", 10**6)
    # Every start walks the whole long entry in vain and then takes one character.
    cut = GreedyMatcher([("a" * 15 + "b", 1), ("a", 2)], UNK).match
    word = "a" * 2000
    once, twice = _lines_run(cut, word), _lines_run(cut, word * 2)
    assert cut(word) == [2] * 2000
    assert once > 2000 * 15  # the walk is really there and really counted
    # Twice the text, twice the work; the end of a word is a little cheaper.
    assert twice <= 2.01 * once
