from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.errors import VocabularyError
from martlet.tokenizers.eva import EVATokenizer

# Ids that the published tokenizer gives for these texts.
GOLDEN = {
    "天空是蔚蓝色，窗外有": "4821 22 10962 4825 9 11297 26",
    "哈利波特第一次去霍格沃茨魔法学校上学，地址在北京通州": (
        "8443 1388 494 907 93 4252 1025 5152 4092 3538 252 3133 9 2139 25 474 19552"
    ),
    "北京环球度假区指定单日门票将采用": "474 8621 5419 185 497 499 681 170 9365 159 842",
    "价格为418元，": "722 43 4871 249 502 9",
    "Hello world 你好\n清华大学……！？": "21992 10 12950 10 5503 3 5971 2891 51 27",
    "龘靐𠮷": "0 0 0",
    "你好，我是EVA": "5503 9 23 22 21151",
    "……！？": "2891 51 27",
}


@pytest.mark.parametrize("text", GOLDEN)
def test_eva_gives_the_ids_of_the_published_tokenizer(eva: EVATokenizer, text: str):
    assert eva.encode(text) == [int(i) for i in GOLDEN[text].split()]


def test_special_ids_of_eva(eva: EVATokenizer):
    special = eva.special
    assert eva.vocab_size == 30000
    assert (special.unk, special.bos, special.eos, special.sep) == (0, 1, 4, 4)
    assert (special.pad, special.mask, special.others) == (5, 6, (2, 7))
    assert special.sentinels == tuple(range(29810, 30000))


def test_the_empty_line_of_the_vocabulary_keeps_its_id(eva: EVATokenizer, zoo: Path):
    lines = (zoo / "eva-mini" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert lines[8] == ""
    assert eva.decode([8]) == ""
    assert eva.encode(lines[9]) == [9]
    assert eva.encode(lines[11]) == [11]


def test_a_vocabulary_without_its_empty_line_is_refused(tmp_path: Path, zoo: Path):
    path = tmp_path / "vocab.txt"
    lines = (zoo / "eva-mini" / "vocab.txt").read_bytes()
    path.write_bytes(lines.replace(b"<eod>\n\n", b"<eod>\n"))
    with pytest.raises(VocabularyError, match="empty line"):
        EVATokenizer(path)


def test_eva_writes_punctuation_in_ascii(eva: EVATokenizer):
    assert eva.normalize("“你好”，‘嗯’……（是？！）；：") == "\"你好\",'嗯'......(是?!);:"
    assert eva.normalize("。、《》Ａ１") == "。、《》Ａ１"


@given(data=st.data())
def test_eva_text_of_known_words_comes_back_normalised(eva: EVATokenizer, data: st.DataObject):
    known = st.integers(0, eva.vocab_size - 1).map(lambda i: eva.decode([i]))
    text = "".join(data.draw(st.lists(known, max_size=8)))
    assert eva.decode(eva.encode(text)) == eva.normalize(text)
