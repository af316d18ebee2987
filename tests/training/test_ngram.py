import math

import numpy as np
import pytest

from corpus import Chapter
from ngram import START, NgramModel, join

CHAPTERS = ["天下大势，分久必合，合久必分。", "天下太平，合家欢乐。", "分分合合。"]
TEXT = join(Chapter("书", str(i), text) for i, text in enumerate(CHAPTERS))
UNSEEN = "龘"


def probability(model: NgramModel, history: str, following: str, order: int) -> float:
    """Of one character after a history."""
    return float(list(model.probabilities(history + following))[order - 1][-1])


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "history", [START, START + "天下", "合", "分久必", "，合久必分", f"天{UNSEEN}", "乐。"]
)
def test_the_probabilities_of_the_next_character_sum_to_one(history: str, order: int) -> None:
    model = NgramModel(TEXT, 5)
    total = sum(probability(model, history, c, order) for c in [*model.alphabet, UNSEEN])
    # Some twenty float64 terms, mixed five times: an error of the order of 1e-15.
    assert total == pytest.approx(1.0, abs=1e-12)


def test_every_character_has_a_chance() -> None:
    model = NgramModel(TEXT, 5)
    for history in (START, "天下", UNSEEN, "合久必分"):
        for c in [*model.alphabet, UNSEEN]:
            if c != START:
                assert probability(model, history, c, 5) > 0


def test_counts_are_those_worked_by_hand() -> None:
    model = NgramModel("abab" + "ac", 2)
    a, b, c = (model.alphabet[x] for x in "abc")
    # Bigrams as they stand: ab twice, ba twice, ac once.
    assert model.size == 4  # a, b, c and all else
    grams = {}
    for key, count in zip(model.keys[1], model.counts[1], strict=True):
        rank, last = divmod(int(key), model.size)
        grams[int(model.keys[0][rank]), last] = int(count)
    assert grams == {(a, b): 2, (b, a): 2, (a, c): 1}
    # Below the top order: before a stands only b, before b only a, before c only a.
    assert dict(zip(model.keys[0].tolist(), model.counts[0].tolist(), strict=True)) == {
        a: 1,
        b: 1,
        c: 1,
    }


def test_bits_are_those_worked_by_hand() -> None:
    model = NgramModel("abab" + "ac", 2)
    # Order 1: three continuations of one each, n1 = 3, no twos (taken as 1): y = 3 / 5, the
    # discount of a one is 1 - 2 * 3/5 * 1/3 = 0.6; 1.8 of 3 is freed for the uniform 1 / 4.
    unigram = (1 - 0.6) / 3 + 1.8 / 3 / 4
    assert model.bits("b")[1] == pytest.approx(-math.log2(unigram))
    # Order 2: ab 2, ba 2, ac 1: n1 = 1, n2 = 2, n3 taken as 1: y = 1 / 5, the discounts are
    # 1 - 2/5 * 2/1 = 0.2 and 2 - 3/5 * 1/2 = 1.7; after a: (2 - 1.7 + 1.9 * unigram) / 3.
    bigram = (2 - 1.7 + (1.7 + 0.2) * unigram) / 3
    assert model.bits("ab")[2] == pytest.approx(-math.log2(unigram) - math.log2(bigram))


def test_longer_histories_help_on_text_that_repeats() -> None:
    model = NgramModel(TEXT * 20, 5)
    bits = model.bits(START + "天下太平，合家欢乐。")
    assert list(bits) == [1, 2, 3, 4, 5]
    assert bits[5] < bits[3] < bits[1]
    assert np.isfinite(list(bits.values())).all()


def test_the_mark_before_a_chapter_costs_nothing() -> None:
    model = NgramModel(TEXT, 3)
    assert set(model.bits(START).values()) == {0.0}
