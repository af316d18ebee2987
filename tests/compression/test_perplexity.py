import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martlet.compression.perplexity import (
    TextScore,
    pieces,
    score_causal,
    score_conditional,
    windows,
)
from martlet.errors import UsageError
from martlet.tokenizers.tokenizer import SpecialTokens


class PairTokenizer:
    """Two characters a token over the letters a to d; anything else is unknown."""

    vocab_size = 17
    special = SpecialTokens(unk=16)

    def encode(self, text: str) -> list[int]:
        return [self._id(text[i : i + 2]) for i in range(0, len(text), 2)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join("" if i == 16 else "abcd"[i // 4] + "abcd"[i % 4] for i in token_ids)

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        return self.decode(token_ids).encode()

    @staticmethod
    def _id(pair: str) -> int:
        known = len(pair) == 2 and set(pair) <= set("abcd")
        return "abcd".index(pair[0]) * 4 + "abcd".index(pair[1]) if known else 16


def uniform(token_ids: Sequence[int]) -> torch.Tensor:
    return torch.full((len(token_ids), 17), 3.0)


def test_uniform_logits_cost_log2_of_the_vocabulary_per_token():
    score = score_causal(uniform, PairTokenizer(), "abcdabcdab", window_tokens=4)
    assert score.num_tokens == 4  # five tokens, the first is not predicted
    assert score.num_characters == 8
    assert math.isclose(score.bits_per_token, math.log2(17), rel_tol=1e-12)
    assert math.isclose(score.bits_per_character, math.log2(17) / 2, rel_tol=1e-12)
    assert math.isclose(score.perplexity, 17, rel_tol=1e-12)


def test_a_known_distribution_gives_its_hand_worked_cost():
    # The next token is the same as this one with probability 3/4, any other shares the rest.
    def repeat(token_ids: Sequence[int]) -> torch.Tensor:
        rows = torch.full((len(token_ids), 17), 0.25 / 16, dtype=torch.float64)
        rows[torch.arange(len(token_ids)), torch.tensor(token_ids)] = 0.75
        return rows.log()

    score = score_causal(repeat, PairTokenizer(), "ababab" + "cd", window_tokens=64)
    expected = -2 * math.log2(0.75) - math.log2(0.25 / 16)
    assert math.isclose(score.bits_per_token * 3, expected, rel_tol=1e-12)


def test_every_token_is_scored_with_the_row_of_the_token_before_it():
    # Logits that know the successor of each id: any slip by one row costs 40 nats.
    def successor(token_ids: Sequence[int]) -> torch.Tensor:
        rows = torch.full((len(token_ids), 17), -40.0)
        rows[torch.arange(len(token_ids)), (torch.tensor(token_ids) + 1) % 16] = 0.0
        return rows

    tokenizer = PairTokenizer()
    text = tokenizer.decode([i % 16 for i in range(57)])
    for window_tokens in (2, 3, 8, 57, 100):
        score = score_causal(successor, tokenizer, text, window_tokens=window_tokens)
        assert score.num_tokens == 56
        assert score.negative_log_likelihood < 1e-9


def test_no_window_is_longer_than_asked_for():
    seen: list[int] = []

    def logits(token_ids: Sequence[int]) -> torch.Tensor:
        seen.append(len(token_ids))
        return uniform(token_ids)

    score_causal(logits, PairTokenizer(), "ab" * 100, window_tokens=16)
    assert max(seen) <= 16


@given(num_tokens=st.integers(2, 400), window_tokens=st.integers(2, 64))
def test_windows_score_each_token_once_with_half_a_window_of_context(num_tokens, window_tokens):
    scored: list[int] = []
    for window in windows(num_tokens, window_tokens):
        assert window.end - window.start <= window_tokens
        assert window.first_scored < window.end
        if window.start:
            assert window.first_scored - window.start >= window_tokens // 2
        scored.extend(range(window.first_scored, window.end))
    assert scored == list(range(1, num_tokens))


@given(
    num_tokens=st.integers(2, 400),
    context_tokens=st.integers(1, 64),
    piece_tokens=st.integers(1, 64),
)
def test_pieces_follow_each_other_and_always_have_context(num_tokens, context_tokens, piece_tokens):
    expected_start = None
    for piece in pieces(num_tokens, context_tokens, piece_tokens):
        assert 1 <= piece.start - piece.context_start <= context_tokens
        assert 1 <= piece.end - piece.start <= piece_tokens
        assert expected_start in (None, piece.start)
        expected_start = piece.end
    assert expected_start == num_tokens


def test_a_conditional_model_pays_for_every_piece_but_the_opening():
    calls: list[tuple[list[int], list[int]]] = []

    def score(context: Sequence[int], continuation: Sequence[int]) -> list[float]:
        calls.append((list(context), list(continuation)))
        return [-math.log(8)] * len(continuation)

    tokenizer = PairTokenizer()
    text = tokenizer.decode(range(10))
    result = score_conditional(score, tokenizer, text, context_tokens=4, piece_tokens=3)
    assert calls == [
        ([0, 1, 2], [3, 4, 5]),
        ([2, 3, 4, 5], [6, 7, 8]),
        ([5, 6, 7, 8], [9]),
    ]
    assert (result.num_tokens, result.num_characters) == (7, 14)
    assert math.isclose(result.bits_per_token, 3, rel_tol=1e-12)
    assert math.isclose(result.bits_per_character, 1.5, rel_tol=1e-12)


def test_progress_ends_at_the_number_of_scored_tokens():
    steps: list[tuple[int, int]] = []
    score = score_causal(
        uniform,
        PairTokenizer(),
        "ab" * 20,
        window_tokens=8,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (score.num_tokens, score.num_tokens) == (19, 19)
    assert steps == sorted(steps)


def test_unknown_tokens_are_counted_among_the_scored_ones():
    score = score_causal(uniform, PairTokenizer(), "ab??cd!!", window_tokens=8)
    assert score.num_unknown_tokens == 2
    assert score.num_characters == 6


@pytest.mark.parametrize("text", ["", "ab"])
def test_a_text_without_a_token_to_predict_is_refused(text):
    with pytest.raises(UsageError, match="2 is the least"):
        score_causal(uniform, PairTokenizer(), text, window_tokens=8)
    with pytest.raises(UsageError, match="2 is the least"):
        score_conditional(lambda a, b: [0.0] * len(b), PairTokenizer(), text)


def test_a_hopeless_text_has_infinite_perplexity_and_no_crash():
    assert TextScore(1e6, 10, 10, 0).perplexity == math.inf
