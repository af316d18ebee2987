import pytest
import torch

import martlet
from martlet.engine.embed import embed_texts, embedding_ids
from martlet.errors import ContextLengthError, UsageError

TEXTS = [
    "天空是蔚蓝色",
    "话说天下大势，分久必合，合久必分。",
    "窗外",
    "武松打虎" * 6,
    "天空是蔚蓝色的",
]


@pytest.fixture(scope="module")
def cpm2(tiny_cpm2):
    return martlet.load(tiny_cpm2, device="cpu", quantize="none")


@pytest.fixture(scope="module")
def eva(tiny_eva):
    return martlet.load(tiny_eva, device="cpu")


def _ids(model, texts=TEXTS):
    return [embedding_ids(model._model, text) for text in texts]


def test_a_vector_is_the_mean_of_what_the_encoder_makes_of_the_text(cpm2):
    token_ids = _ids(cpm2, TEXTS[:1])
    vector = embed_texts(cpm2._model, token_ids, 256)[0]
    architecture, executor = cpm2.generator.architecture, cpm2.generator.executor
    with torch.inference_mode():
        hidden, step = architecture.embed(
            executor.fixed(), "encoder", torch.tensor(token_ids), None
        )
        for index, weights in executor.blocks("encode"):
            hidden = architecture.block("encoder", index, weights, hidden, step, None)
        hidden = architecture.head(executor.fixed(), "encoder", hidden)[0].float()
    mean = hidden.mean(dim=0)
    assert hidden.shape[0] == len(token_ids[0])
    torch.testing.assert_close(vector, mean / mean.norm())


@pytest.mark.parametrize("most_tokens", [1, 30, 64, 100_000])
def test_a_text_has_the_same_vector_alone_and_beside_others(cpm2, eva, most_tokens):
    for model in (cpm2, eva):
        token_ids = _ids(model)
        together = embed_texts(model._model, token_ids, most_tokens)
        alone = [embed_texts(model._model, [ids], most_tokens)[0] for ids in token_ids]
        cosines = (together * torch.stack(alone)).sum(dim=1)
        assert cosines.min() > 0.99999


def test_int8_weights_move_a_vector_hardly_when_others_are_beside_it(tiny_cpm2):
    model = martlet.load(tiny_cpm2, device="cpu")
    together = embed_texts(model._model, _ids(model), 4096)
    alone = torch.stack([embed_texts(model._model, [ids], 4096)[0] for ids in _ids(model)])
    assert (together * alone).sum(dim=1).min() > 0.999


def test_vectors_have_length_one_and_are_ordinary_tensors(eva):
    vectors = embed_texts(eva._model, _ids(eva), 256)
    assert vectors.shape == (5, 32)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))


def test_passes_stay_within_their_tokens(cpm2, monkeypatch):
    passes = []
    embed = cpm2.generator.architecture.embed

    def spy(fixed, stack, token_ids, cache, lengths=None):
        passes.append(tuple(token_ids.shape))
        return embed(fixed, stack, token_ids, cache, lengths)

    monkeypatch.setattr(cpm2.generator.architecture, "embed", spy)
    token_ids = _ids(cpm2, [*TEXTS, *TEXTS])
    embed_texts(cpm2._model, token_ids, 24)
    assert all(rows * width <= 24 or rows == 1 for rows, width in passes)
    assert sum(rows for rows, _ in passes) == 10
    assert len(passes) < 10


def test_alike_texts_have_alike_vectors_in_a_trained_model():
    model = martlet.load("cpm2-mini", device="cpu")
    vectors = torch.tensor(
        model.embed(["武松打死了老虎。", "武松打杀了大虫。", "黛玉写诗，宝玉读书。"]).vectors
    )
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_the_api_takes_texts_and_token_ids_and_counts_tokens(cpm2):
    token_ids = cpm2.tokenizer.encode(TEXTS[0])
    result = cpm2.embed([TEXTS[0], token_ids])
    assert result.prompt_tokens == 2 * len(token_ids)
    assert result.vectors[0] == pytest.approx(result.vectors[1])
    assert isinstance(result.vectors[0][0], float)


def test_eva_reads_the_end_of_the_turn_as_well(eva):
    token_ids = eva.tokenizer.encode(TEXTS[0])
    result = eva.embed([TEXTS[0], [*token_ids, eva.tokenizer.special.sep]])
    assert result.vectors[0] == pytest.approx(result.vectors[1])


def test_a_decoder_only_model_says_which_models_can(tiny_cpm1):
    model = martlet.load(tiny_cpm1, device="cpu")
    with pytest.raises(UsageError, match=r"has no encoder.*cpm2, eva and t5.*cpm2-mini"):
        model.embed(["天空"])
    with pytest.raises(UsageError, match="has no encoder"):
        embed_texts(model._model, [[1]], 256)


@pytest.mark.parametrize("texts", ["天空", [], {"a": 1}, None, 5])
def test_what_is_no_list_of_texts_is_refused(cpm2, texts):
    with pytest.raises(UsageError, match="list of at least one text"):
        cpm2.embed(texts)


@pytest.mark.parametrize("text", [None, 5, ["a"], [-1], [26240], [True], b"ab", [1.0]])
def test_what_is_no_text_is_refused(cpm2, text):
    with pytest.raises(UsageError, match="must be a string, or token ids from 0 to 26,239"):
        cpm2.embed([text])


@pytest.mark.parametrize("text", ["", []])
def test_an_empty_text_is_refused(cpm2, eva, text):
    for model in (cpm2, eva):
        with pytest.raises(UsageError, match="is empty"):
            model.embed(["天空", text])


def test_a_text_longer_than_the_encoder_reads_is_refused(cpm2):
    with pytest.raises(ContextLengthError, match=r"65 tokens .* reads at most 64"):
        cpm2.embed([[5] * 65])
