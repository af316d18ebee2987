import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.tokenizers.detokenizer import Detokenizer
from martlet.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tables(cpm1, cpm2, bilingual, eva) -> dict[str, tuple[Tokenizer, list[bytes | None]]]:
    tokenizers = {"cpm1": cpm1, "cpm2": cpm2, "bilingual": bilingual, "eva": eva}
    return {name: (tokenizer, tokenizer.token_bytes()) for name, tokenizer in tokenizers.items()}


@pytest.mark.parametrize("name", ["cpm1", "cpm2", "bilingual", "eva"])
@given(data=st.data())
def test_the_bytes_of_tokens_are_those_of_the_text_that_is_shown(name, data, tables):
    tokenizer, table = tables[name]
    ids = st.integers(0, tokenizer.vocab_size - 1).filter(lambda i: table[i] is not None)
    token_ids = data.draw(st.lists(ids, max_size=40))
    joined = b"".join(table[i] for i in token_ids)
    assert joined == tokenizer.decode_bytes(token_ids)
    detokenizer = Detokenizer(tokenizer)
    shown = "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()
    assert shown == joined.decode()


@pytest.mark.parametrize("name", ["cpm1", "cpm2", "bilingual", "eva"])
def test_every_id_is_in_the_table_and_control_ids_add_nothing(name, tables):
    tokenizer, table = tables[name]
    assert len(table) == tokenizer.vocab_size
    assert {table[i] for i in tokenizer.special.control_ids()} == {b""}


@pytest.mark.parametrize("name", ["cpm1", "cpm2", "eva"])
def test_the_marks_of_white_space_are_white_space(name, tables):
    tokenizer, table = tables[name]
    for space in (" ", "\n"):
        token_ids = tokenizer.encode(f"天{space}空")
        assert [table[i] for i in token_ids if table[i].isspace()] == [space.encode()]


def test_english_words_of_the_bilingual_vocabulary_depend_on_what_is_before(bilingual, tables):
    _, table = tables["bilingual"]
    hello, inside = bilingual.encode("Hello")[0], bilingual.encode("天空")[0]
    assert table[hello] is None
    assert table[inside] is not None
    assert sum(piece is None for piece in table) > 1000
