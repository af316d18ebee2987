import functools
import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.errors import ModelFileError, VocabularyError
from martlet.tokenizers.cpm import CPM1Tokenizer, CPM2BilingualTokenizer, CPM2Tokenizer
from martlet.tokenizers.segmenter import default_segmenter

SKY = "天空是蔚蓝色，窗外有"
POTTER = "哈利波特第一次去霍格沃茨魔法学校上学，地址在北京通州"
RESORT = "北京环球度假区指定单日门票将采用"
PRICE = "价格为418元，"
MIXED = "Hello world 你好\n清华大学……！？"
RARE = "龘靐𠮷"

# Ids that the published tokenizers give for these texts.
CPM1_GOLDEN = {
    SKY: "5899 15 8 13315 5349 470 8 9 13712 19",
    POTTER: "10331 1618 541 1031 91 5201 1166 8392 4996 4289 269 3808 8 9 2556 18 520 22993",
    RESORT: "520 10551 6660 194 546 550 1143 633 11476 165 957",
    PRICE: "819 37 128 6100 553 8 9",
    MIXED: "25624 8 10 15638 8 10 6756 8 3 7324 58 58 45 20",
    RARE: "8 0 8 0 8 0",
}
CPM2_GOLDEN = {
    SKY: "4821 22 10962 4825 16 11297 26",
    POTTER: "8443 1388 494 907 93 4252 1025 5152 4092 3538 252 3133 16 2139 25 474 19552",
    RESORT: "474 8621 5419 185 497 499 681 170 9365 159 842",
    PRICE: "722 43 4871 249 502 16",
    MIXED: "21992 10 12950 10 5503 3 5971 0 0 13 19",
    RARE: "0 0 0",
}
SPELLED_CONTROLS = "<eod><s_0><span></s> <unk> <s_189>▂<sep>"


@functools.cache
def _words_of(tokenizer) -> tuple[str, ...]:
    """Vocabulary entries that stand for themselves in text."""
    return tuple(filter(None, (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))))


@functools.cache
def _chinese_words_of(tokenizer) -> tuple[str, ...]:
    return tuple(word for word in _words_of(tokenizer) if re.fullmatch("[\u4e00-\u9fff]+", word))


@pytest.mark.parametrize("text", CPM1_GOLDEN)
def test_cpm1_gives_the_ids_of_the_published_tokenizer(cpm1: CPM1Tokenizer, text: str):
    assert cpm1.encode(text) == [int(i) for i in CPM1_GOLDEN[text].split()]


@pytest.mark.parametrize("text", CPM2_GOLDEN)
def test_cpm2_gives_the_ids_of_the_published_tokenizer(cpm2: CPM2Tokenizer, text: str):
    assert cpm2.encode(text) == [int(i) for i in CPM2_GOLDEN[text].split()]


def test_shipped_vocabularies_are_the_published_files(zoo: Path, bilingual_vocabulary: Path):
    digests = {
        zoo / "cpm1-mini" / "chinese_vocab.model": (
            "25c1d178d54901291c1735cd2ae0788be90df4de01fb445e8a8a998cab35ba43"
        ),
        zoo / "cpm2-mini" / "vocab.txt": (
            "f4f537a560c34c4b034c61d22f3a197af98ca0b093503d48b19da2e032b7c7e3"
        ),
        zoo / "eva-mini" / "vocab.txt": (
            "fcabf5b6d68df111bdb9651c953bd6c04008c5664a15c7ab817213e9dd4f44f2"
        ),
        bilingual_vocabulary: "08fea6f506f8368904054e2d57dc0d4859248f1a50c7092cf83854ce8fbccfad",
    }
    for path, digest in digests.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, path


def test_special_ids_of_cpm1(cpm1: CPM1Tokenizer):
    special = cpm1.special
    assert cpm1.vocab_size == 30000
    assert (special.unk, special.bos, special.sep, special.pad) == (0, 1, 4, 5)
    assert (special.mask, special.eos, special.sentinels, special.others) == (6, 7, (), (2,))


def test_special_ids_of_cpm2(cpm2: CPM2Tokenizer):
    special = cpm2.special
    assert cpm2.vocab_size == 26240
    assert (special.unk, special.bos, special.sep, special.pad) == (0, 1, 4, 5)
    assert (special.mask, special.eos, special.others) == (6, 7, (2,))
    assert special.sentinels == tuple(range(26050, 26240))


def test_special_ids_of_bilingual_cpm2(bilingual: CPM2BilingualTokenizer):
    special = bilingual.special
    assert bilingual.vocab_size == 51968
    assert (special.unk, special.bos, special.sep, special.pad) == (0, 1, 4, 5)
    assert (special.mask, special.eos, special.others) == (6, 8, (2, 7))
    assert special.sentinels == tuple(range(51783, 51968))


@pytest.mark.parametrize("name", ["cpm1", "cpm2", "bilingual", "eva"])
def test_control_tokens_spelled_in_text_stay_text(name: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(name)
    token_ids = tokenizer.encode(SPELLED_CONTROLS)
    assert not set(token_ids) & (tokenizer.special.control_ids() - {tokenizer.special.unk})
    assert "eod" in tokenizer.decode(token_ids)


@pytest.mark.parametrize("name", ["cpm1", "cpm2", "bilingual", "eva"])
def test_control_ids_and_ids_past_the_vocabulary_decode_to_nothing(
    name: str, request: pytest.FixtureRequest
):
    tokenizer = request.getfixturevalue(name)
    silent = [*tokenizer.special.control_ids(), tokenizer.vocab_size, 10**9, -1]
    assert tokenizer.decode(silent) == ""
    assert tokenizer.decode([]) == ""
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("name", ["cpm1", "cpm2", "bilingual", "eva"])
@given(seed=st.randoms(use_true_random=False), length=st.integers(0, 60))
def test_any_ids_decode_and_longer_lists_extend_the_bytes(
    name: str, seed, length: int, request: pytest.FixtureRequest
):
    tokenizer = request.getfixturevalue(name)
    token_ids = [seed.randrange(tokenizer.vocab_size + 100) for _ in range(length)]
    whole = tokenizer.decode_bytes(token_ids)
    assert whole.startswith(tokenizer.decode_bytes(token_ids[: length // 2]))
    assert tokenizer.decode(token_ids) == whole.decode("utf-8", "replace")


@pytest.mark.parametrize("name", ["cpm1", "cpm2", "bilingual", "eva"])
@given(text=st.text(max_size=80))
def test_any_text_encodes_to_ids_of_the_vocabulary(
    name: str, text: str, request: pytest.FixtureRequest
):
    tokenizer = request.getfixturevalue(name)
    control_ids = tokenizer.special.control_ids() - {tokenizer.special.unk}
    token_ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in token_ids)
    assert not set(token_ids) & control_ids


@given(data=st.data())
def test_cpm2_text_of_known_words_comes_back_normalised(cpm2: CPM2Tokenizer, data: st.DataObject):
    # A Latin run over 200 characters is one unknown token by definition; 8 words are shorter.
    words = data.draw(st.lists(st.sampled_from(_words_of(cpm2)), max_size=8))
    text = " ".join(words) if data.draw(st.booleans()) else "".join(words)
    assert cpm2.decode(cpm2.encode(text)) == cpm2.normalize(text)


@given(data=st.data())
def test_cpm1_text_of_known_words_comes_back_as_nfkc(cpm1: CPM1Tokenizer, data: st.DataObject):
    words = data.draw(st.lists(st.sampled_from(_words_of(cpm1)), max_size=8))
    text = "".join(words)
    # What the model's own normaliser makes of the words, which the published code joins by
    # spaces before and frees from spaces after.
    visible = "".join(cpm1.normalize(word) for word in default_segmenter().cut(text))
    assert cpm1.decode(cpm1.encode(text)) == visible


def test_cpm1_decodes_as_sentencepiece_does(cpm1: CPM1Tokenizer, zoo: Path):
    from martlet.tokenizers.sentencepiece_model import load_sentencepiece

    processor = load_sentencepiece(zoo / "cpm1-mini" / "chinese_vocab.model")
    control_ids = cpm1.special.control_ids()
    token_ids = [i for i in range(cpm1.vocab_size) if i not in control_ids]
    published = processor.DecodeIds(token_ids).replace(" ", "")
    assert cpm1.decode(token_ids) == published.replace("▂", " ").replace("▃", "\n")


def test_cpm2_keeps_chinese_punctuation_and_makes_the_rest_half_width(cpm2: CPM2Tokenizer):
    kept = "，。！（）？、；："
    assert cpm2.normalize(kept) == kept
    assert cpm2.normalize("ＡＢＣ１２３＂～　＋") == 'ABC123"~ +'


@pytest.mark.parametrize("name", ["cpm2", "bilingual", "eva"])
def test_a_word_over_200_characters_is_one_unknown_token(name: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(name)
    assert tokenizer.encode("a" * 201) == [tokenizer.special.unk]
    assert tokenizer.special.unk not in tokenizer.encode("a" * 200)


def test_bilingual_leaves_out_a_space_between_english_words(bilingual: CPM2BilingualTokenizer):
    hello, world = bilingual.encode("Hello"), bilingual.encode("world")
    assert bilingual.encode("Hello world") == hello + world
    assert bilingual.decode(hello + world) == "Hello world"


def test_bilingual_keeps_other_spaces(bilingual: CPM2BilingualTokenizer):
    for text in ("你好 Hello", "Hello 你好", "你 好", " Hello", "Hello ", "a  b", " ", "龍 a b 龍"):
        assert bilingual.decode(bilingual.encode(text)) == text


def test_bilingual_joins_the_pieces_of_a_word(bilingual: CPM2BilingualTokenizer):
    token_ids = bilingual.encode("unbelievable tokenization")
    assert len(token_ids) > 2
    assert bilingual.decode(token_ids) == "unbelievable tokenization"
    assert bilingual.decode(token_ids[1:]) == "believable tokenization"


def test_bilingual_single_token_is_not_doubled(bilingual: CPM2BilingualTokenizer):
    assert len(bilingual.encode("的")) == 1


def test_bilingual_control_tokens_leave_no_trace(bilingual: CPM2BilingualTokenizer):
    first, second = bilingual.encode("Hello"), bilingual.encode("world")
    sentinel = [bilingual.special.sentinels[0]]
    assert bilingual.decode(sentinel + first + sentinel + second + sentinel) == "Hello world"


@given(data=st.data())
def test_bilingual_chinese_text_comes_back(bilingual: CPM2BilingualTokenizer, data: st.DataObject):
    entries = st.sampled_from([*_chinese_words_of(bilingual)[:3000], "，", "。", " "])
    text = "".join(data.draw(st.lists(entries, max_size=8)))
    # Two neighbours without a Chinese character always have one space between them.
    text = re.sub("(?<=[，。]) ?(?=[，。])", " ", text)
    assert bilingual.decode(bilingual.encode(text)) == text


def test_a_missing_vocabulary_is_a_model_file_error(tmp_path: Path):
    with pytest.raises(ModelFileError, match="No such file"):
        CPM2Tokenizer(tmp_path / "vocab.txt")
    with pytest.raises(ModelFileError, match="No such file"):
        CPM1Tokenizer(tmp_path / "chinese_vocab.model")


def test_a_vocabulary_cut_short_is_refused(tmp_path: Path, zoo: Path):
    model = tmp_path / "chinese_vocab.model"
    model.write_bytes((zoo / "cpm1-mini" / "chinese_vocab.model").read_bytes()[:100_000])
    with pytest.raises(VocabularyError, match=r"chinese_vocab\.model with 100000 bytes"):
        CPM1Tokenizer(model)
    model.write_bytes(b"")
    with pytest.raises(VocabularyError, match="with 0 bytes"):
        CPM1Tokenizer(model)


def test_vocabularies_that_are_none_are_refused(tmp_path: Path, zoo: Path):
    path = tmp_path / "vocab.txt"
    path.write_text("<unk>\nhello\n")
    with pytest.raises(VocabularyError, match="has no <s> </s>"):
        CPM2Tokenizer(path)
    path.write_bytes(b"<unk>\n\xff\xfe\n")
    with pytest.raises(ModelFileError, match="byte 6 is not UTF-8"):
        CPM2Tokenizer(path)
    lines = (zoo / "cpm2-mini" / "vocab.txt").read_text(encoding="utf-8")
    path.write_text(lines + "<s_3>\n", encoding="utf-8")
    with pytest.raises(VocabularyError, match="twice, as ids 26053 and 26240"):
        CPM2Tokenizer(path)
    with pytest.raises(VocabularyError, match='of tokenizer kind "cpm2"'):
        CPM2BilingualTokenizer(zoo / "cpm2-mini" / "vocab.txt")


def test_windows_line_ends_give_the_same_vocabulary(tmp_path: Path, zoo: Path, cpm2: CPM2Tokenizer):
    path = tmp_path / "vocab.txt"
    path.write_bytes((zoo / "cpm2-mini" / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert CPM2Tokenizer(path).encode(MIXED) == cpm2.encode(MIXED)
