import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.tokenizers.cpm import CPM2BilingualTokenizer
from martlet.tokenizers.detokenizer import Detokenizer
from martlet.tokenizers.tokenizer import PieceTokenizer, SpecialTokens


class ByteTokenizer(PieceTokenizer):
    """One token a byte: every longer character is cut."""

    vocab_size = 256
    special = SpecialTokens()

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "surrogatepass"))

    def start_decoding(self):
        return lambda token_id: bytes([token_id])


def _stream(tokenizer, token_ids) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@pytest.mark.parametrize("name", ["cpm1", "cpm2", "bilingual", "eva"])
@given(data=st.data())
def test_pieces_concatenate_to_the_decoded_text(
    name: str, data: st.DataObject, request: pytest.FixtureRequest
):
    tokenizer = request.getfixturevalue(name)
    token_ids = data.draw(st.lists(st.integers(-1, tokenizer.vocab_size), max_size=40))
    assert "".join(_stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


@given(text=st.text(max_size=40))
def test_never_gives_half_a_character(text: str):
    tokenizer = ByteTokenizer()
    pieces = _stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces)  # a character comes whole, with its last byte


@given(data=st.binary(max_size=40))
def test_broken_bytes_come_out_as_in_decode(data: bytes):
    tokenizer = ByteTokenizer()
    assert "".join(_stream(tokenizer, data)) == tokenizer.decode(list(data))


def test_an_unfinished_character_is_shown_by_flush_only():
    assert _stream(ByteTokenizer(), "鹅".encode()[:2]) == ["", "", "\ufffd"]


def test_a_bilingual_space_comes_with_the_second_word(bilingual: CPM2BilingualTokenizer):
    hello, world = bilingual.encode("Hello")[0], bilingual.encode("world")[0]
    end = bilingual.special.eos
    assert _stream(bilingual, [hello, end, world, end]) == ["Hello", "", " world", "", ""]
