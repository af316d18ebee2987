"""The bundled models as a first-time user meets them."""

import re
from pathlib import Path

import pytest

import martlet
from martlet.checkpoint.store import open_store
from martlet.hub.catalogue import resolve

NAMES = ("cpm1-mini", "cpm2-mini", "eva-mini")
HELD_OUT = Path(__file__).parents[1] / "golden" / "held-out.txt"
CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def models():
    return {name: martlet.load(name, device="cpu") for name in NAMES}


def share_of_chinese(text):
    return sum(bool(CHINESE.match(c)) for c in text) / max(1, len(text))


@pytest.mark.parametrize("name", NAMES)
def test_weights_fit_the_package_and_are_those_of_the_manifest(name):
    folder = resolve(name)
    assert sum(f.stat().st_size for f in folder.glob("*.safetensors")) <= 25_000_000
    store = open_store(folder)
    store.verify()
    assert store.quantize == "int8"
    assert (folder / "README.md").is_file()


@pytest.mark.slow
def test_the_writer_knows_its_language(models):
    """Held-out prose costs far less than the 6.64 bits a character of 5-grams on the same books."""
    score = models["cpm1-mini"].score_text(HELD_OUT.read_text(encoding="utf-8"))
    assert score.bits_per_character < 5.7


def test_the_writer_writes_chinese_sentences(models):
    text = models["cpm1-mini"].write("却说那老汉推开门，只见", max_tokens=120, seed=1)
    assert share_of_chinese(text) > 0.7
    assert re.search("[,。!?]", text)


@pytest.mark.parametrize("seed", range(4))
def test_the_filler_answers_every_blank_from_both_sides(models, seed):
    result = models["cpm2-mini"].fill("次日清晨，__，众人都到堂前__。", seed=seed)
    assert [blank.closed for blank in result.blanks] == [True, True]
    assert all(share_of_chinese(blank.text) > 0.7 for blank in result.blanks)
    assert result.text.startswith("次日清晨，") and result.text.endswith("。")


def test_the_filler_reads_what_stands_after_a_blank(models):
    """The likeliest answer differs with the right side alone."""
    model = models["cpm2-mini"]
    ends = ("把酒来喝了。", "把马牵了出去。", "把头砍了下来。")
    answers = {model.fill(f"那汉__，{end}", temperature=0).blanks[0].text for end in ends}
    assert len(answers) == len(ends)


@pytest.mark.parametrize("seed", range(4))
def test_the_speaker_answers_a_turn_with_a_turn(models, seed):
    model = models["eva-mini"]
    answer = model.chat([{"role": "user", "content": "你要往哪里去？"}], seed=seed)
    assert share_of_chinese(answer) > 0.6
    assert model.last_stats.finish_reason == "eos"
