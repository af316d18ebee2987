import random
from dataclasses import replace

import pytest

from martlet.engine.sample_texts import SampleForm, sample_text
from martlet.errors import UsageError, VocabularyError
from martlet.tokenizers.tokenizer import SpecialTokens

SENTINELS = tuple(range(900, 920))
SPECIAL = SpecialTokens(unk=0, bos=1, eos=7, pad=5, sep=4, sentinels=SENTINELS)


class Letters:
    """One token a letter."""

    vocab_size = 1000

    def __init__(self, special=SPECIAL):
        self.special = special

    def encode(self, text):
        return [10 + ord(letter) % 800 for letter in text]


TEXT = "".join(random.Random(0).choices([chr(0x4E00 + i) for i in range(700)], k=9000))


def _samples(family, num_samples=12, sample_tokens=60, seed=1, **limits):
    special = replace(SPECIAL, start=(1,)) if family == "llama" else SPECIAL
    form = SampleForm(family, Letters(special), **limits)
    return sample_text(form, TEXT, num_samples=num_samples, sample_tokens=sample_tokens, seed=seed)


@pytest.mark.parametrize("family", ["cpm1", "gpt2"])
def test_a_decoder_alone_reads_windows_of_the_text_spread_over_it(family):
    samples = _samples(family)
    assert len(samples) == 12
    whole = Letters().encode(TEXT)
    starts = []
    for sample in samples:
        assert len(sample.decoder_ids) == 60
        assert sample.encoder_ids == ()
        text = sample.decoder_ids
        starts.append(next(i for i in range(len(whole)) if tuple(whole[i : i + 60]) == text))
    assert len(set(starts)) == 12


def test_llama_reads_its_windows_after_bos():
    for sample in _samples("llama"):
        assert sample.decoder_ids[0] == 1
        assert len(sample.decoder_ids) == 60


def test_no_sample_is_longer_than_the_model_reads():
    assert {len(s.decoder_ids) for s in _samples("cpm1", max_positions=40)} == {40}
    for family in ("cpm2", "eva", "t5"):
        for sample in _samples(family, max_input_tokens=40):
            assert len(sample.encoder_ids) <= 40


@pytest.mark.parametrize("family", ["cpm2", "t5"])
def test_half_of_the_samples_hide_spans_that_the_decoder_writes_out(family):
    samples = _samples(family)
    whole = Letters().encode(TEXT)
    for sample in samples[::2]:
        assert sample.decoder_ids[0] == (1 if family == "cpm2" else 5)
        spans = _spans_of(sample.decoder_ids[1:])
        restored = []
        for token in sample.encoder_ids[: len(sample.encoder_ids) - (family == "t5")]:
            restored += spans.pop(token, [token]) if token in SENTINELS else [token]
        assert list(spans.values()) == [[]]  # the sentinel that closes
        hidden = sum(map(len, _spans_of(sample.decoder_ids[1:]).values()))
        assert 0.05 < hidden / len(restored) < 0.3
        assert any(restored == whole[i : i + len(restored)] for i in range(len(whole)))


def _spans_of(ids):
    spans = {}
    for token in ids:
        if token in SENTINELS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    assert list(spans) == list(SENTINELS[: len(spans)])
    return spans


def test_the_other_samples_go_on_with_what_the_encoder_reads():
    whole = Letters().encode(TEXT)
    last = SENTINELS[-1]
    frames = {
        "cpm2": ((1, last), (last,)),
        "eva": ((SENTINELS[0],), (4, SENTINELS[0])),
        "t5": ((5,), (7,)),
    }
    for family, (before, behind) in frames.items():
        for sample in _samples(family)[1::2]:
            assert sample.decoder_ids[: len(before)] == before
            assert sample.encoder_ids[-len(behind) :] == behind
            text = [*sample.encoder_ids[: -len(behind)], *sample.decoder_ids[len(before) :]]
            assert any(text == whole[i : i + len(text)] for i in range(len(whole)))


def test_the_seed_decides_and_nothing_else():
    assert _samples("cpm2", seed=3) == _samples("cpm2", seed=3)
    assert _samples("cpm2", seed=3) != _samples("cpm2", seed=4)


def test_a_text_that_is_too_short_is_refused_and_a_short_one_is_read_again():
    form = SampleForm("gpt2", Letters())
    with pytest.raises(UsageError, match="16 tokens"):
        sample_text(form, "short", num_samples=4, sample_tokens=60, seed=1)
    few = sample_text(form, TEXT[:70], num_samples=4, sample_tokens=60, seed=1)
    assert len(few) == 4


def test_a_vocabulary_without_the_tokens_of_the_form_is_refused():
    for family, word in (("cpm2", "sentinels"), ("t5", "sentinels")):
        form = SampleForm(family, Letters(SpecialTokens()))
        with pytest.raises(VocabularyError, match=word):
            sample_text(form, TEXT, num_samples=4, sample_tokens=60, seed=1)
