import pytest

import martlet


def test_tokens_that_the_model_folder_forbids_are_never_chosen(make_model):
    left = (5349, 13315)  # two words of the vocabulary
    others = [token_id for token_id in range(30000) if token_id not in left]
    folder = make_model("cpm1", generation={"suppress_tokens": others})
    model = martlet.load(folder, device="cpu")
    words = {model.tokenizer.decode([token_id]) for token_id in left}
    # The end of the text stays possible, so some of these are short or empty.
    texts = [model.write("却说那日天降大雪，", max_tokens=24, seed=seed) for seed in range(16)]
    assert any(texts)
    assert set("".join(texts)) <= words == {"蓝", "蔚"}


@pytest.mark.parametrize("wrong", ["10", [-1], [30000], [True], {"10": 1}])
def test_forbidden_tokens_must_be_ids_of_the_vocabulary(make_model, wrong):
    with pytest.raises(martlet.ModelFileError, match="suppress_tokens"):
        martlet.load(make_model("cpm1", generation={"suppress_tokens": wrong}), device="cpu")
