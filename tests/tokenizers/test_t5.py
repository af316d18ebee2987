import io
import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.errors import VocabularyError
from martlet.tokenizers.t5 import T5Tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # SWIG types without __module__
    import sentencepiece

SENTENCES = ["the swallow flies into the houses of common people", "飞入寻常百姓家", "a b c 1 2 3"]


def _train(path: Path, **settings) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=350,
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=9,
        **settings,
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(tmp_path_factory.mktemp("t5") / "spiece.model")


@pytest.fixture(scope="module")
def t5(model_path: Path) -> T5Tokenizer:
    return T5Tokenizer(model_path)


@pytest.fixture(scope="module")
def library(model_path: Path):
    return sentencepiece.SentencePieceProcessor(model_file=str(model_path))


def test_a_hundred_sentinels_follow_the_pieces_in_falling_order(t5: T5Tokenizer, library):
    size = library.get_piece_size()
    assert t5.vocab_size == size + 100
    assert t5.special.sentinels == tuple(range(size + 99, size - 1, -1))
    assert (t5.special.pad, t5.special.eos, t5.special.unk) == (0, 1, 2)
    assert t5.special.others == ()


def test_the_configuration_can_change_the_number_of_sentinels(model_path: Path, tmp_path: Path):
    path = tmp_path / "spiece.model"
    path.write_bytes(model_path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 3}))
    assert len(T5Tokenizer(path).special.sentinels) == 3


@given(text=st.text(max_size=40))
def test_agrees_with_sentencepiece(t5: T5Tokenizer, library, text: str):
    token_ids = t5.encode(text)
    assert token_ids == library.encode(text)
    # Without unknown pieces, which byte fallback leaves none of.
    assert t5.decode(token_ids) == library.decode(token_ids)


@given(data=st.data())
def test_decodes_any_ordinary_pieces_as_sentencepiece_does(
    t5: T5Tokenizer, library, data: st.DataObject
):
    bytes_end = 3 + 256
    ids = st.integers(bytes_end, library.get_piece_size() - 1)
    token_ids = data.draw(st.lists(ids, max_size=30))
    assert t5.decode(token_ids) == library.decode(token_ids)


def test_control_tokens_spelled_in_text_stay_text(t5: T5Tokenizer):
    token_ids = t5.encode("a </s> <extra_id_0> <pad>")
    assert not set(token_ids) & t5.special.control_ids()
    assert t5.decode(token_ids) == "a </s> <extra_id_0> <pad>"


def test_sentinels_among_the_pieces_are_found_and_cannot_be_typed(tmp_path: Path):
    names = ["▁<extra_id_1>", "▁<extra_id_0>"]  # as mT5 has them
    path = _train(tmp_path / "spiece.model", user_defined_symbols=names)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = [library.piece_to_id(name) for name in reversed(names)]
    assert ids[0] in library.encode("a <extra_id_0>")  # what the model alone would do
    tokenizer = T5Tokenizer(path)
    assert tokenizer.vocab_size == library.get_piece_size()
    assert list(tokenizer.special.sentinels) == ids
    token_ids = tokenizer.encode("a <extra_id_0>")
    assert not set(token_ids) & tokenizer.special.control_ids()
    assert tokenizer.decode(token_ids) == "a <extra_id_0>"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 50, 1000])
def test_a_model_cut_short_is_refused(model_path: Path, tmp_path: Path, size: int):
    path = tmp_path / "spiece.model"
    path.write_bytes(model_path.read_bytes()[:size])
    with pytest.raises(VocabularyError, match=f"with {size} bytes is no SentencePiece model"):
        T5Tokenizer(path)


@given(data=st.data())
def test_the_bytes_of_tokens_are_the_text_but_for_leading_spaces(t5: T5Tokenizer, data):
    token_ids = data.draw(st.lists(st.integers(0, t5.vocab_size - 1), max_size=30))
    table = t5.token_bytes()
    joined = b"".join(table[i] for i in token_ids)
    assert joined.lstrip(b" ") == t5.decode_bytes(token_ids).lstrip(b" ")
    assert joined.endswith(t5.decode_bytes(token_ids))
