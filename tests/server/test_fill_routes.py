"""Filling over HTTP: order, places, alternatives, and what editors that know llama.cpp ask."""

import math

import pytest

from .client import events

FIVE = "清晨__，那__推开门，见__里有__，便__。"


def test_all_five_blanks_are_answered_in_their_order(server):
    reply = server.post("/v1/fill", {"model": "cpm2-mini", "text": FIVE, "seed": 1})
    assert reply.status == 200
    answer = reply.json()
    assert answer["object"] == "fill"
    assert [blank["index"] for blank in answer["blanks"]] == [0, 1, 2, 3, 4]
    rebuilt, pieces = "", FIVE.split("__")
    for piece, blank in zip(pieces, answer["blanks"], strict=False):
        rebuilt += piece
        assert answer["text"][blank["start"] : blank["end"]] == blank["text"] != ""
        assert blank["start"] == len(rebuilt)
        assert blank["probability"] == pytest.approx(math.exp(blank["logprob"]))
        rebuilt += blank["text"]
    assert answer["text"] == rebuilt + pieces[-1]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["timings"]["prefill_seconds"] > 0


def test_pieces_are_the_same_as_a_text_with_marks(server):
    body = {"model": "cpm2-mini", "seed": 1}
    by_text = server.post("/v1/fill", {**body, "text": FIVE}).json()
    by_pieces = server.post("/v1/fill", {**body, "pieces": FIVE.split("__")}).json()
    assert by_pieces["blanks"] == by_text["blanks"]


def test_a_streamed_fill_is_the_whole_one_in_pieces_and_then_whole(server):
    body = {"model": "cpm2-mini", "text": FIVE, "seed": 4}
    whole = server.post("/v1/fill", body).json()
    *chunks, last = events(server.post("/v1/fill", {**body, "stream": True}))
    assert last["blanks"] == whole["blanks"]
    texts = [""] * 5
    for chunk in chunks:
        assert chunk["object"] == "fill.chunk"
        texts[chunk["blank"]] += chunk["text"]
    assert texts == [blank["text"] for blank in whole["blanks"]]


def test_alternatives_are_other_texts_best_first_and_leave_the_answer_as_it_is(server):
    body = {"model": "cpm2-mini", "text": "今天天气__，我们去__玩。", "seed": 1, "temperature": 1.2}
    alone = server.post("/v1/fill", body).json()
    answer = server.post("/v1/fill", {**body, "alternatives": 8}).json()
    assert answer["text"] == alone["text"]
    assert "alternatives" not in alone["blanks"][0]
    num_found = 0
    for blank in answer["blanks"]:
        texts = [other["text"] for other in blank["alternatives"]]
        probabilities = [other["probability"] for other in blank["alternatives"]]
        assert len(set(texts)) == len(texts) <= 8
        assert blank["text"] not in texts
        assert probabilities == sorted(probabilities, reverse=True)
        assert all(0 <= probability <= 1 for probability in probabilities)
        num_found += len(texts)
    assert num_found > 0


def test_tokens_of_a_blank_have_finite_log_probabilities(server):
    body = {"model": "cpm2-mini", "text": FIVE, "seed": 1, "logprobs": True, "top_logprobs": 20}
    for blank in server.post("/v1/fill", body).json()["blanks"]:
        text = b"".join(bytes(token["bytes"]) for token in blank["tokens"]).decode()
        assert text == blank["text"]
        for token in blank["tokens"]:
            assert len(token["top_logprobs"]) == 20
            assert all(math.isfinite(top["logprob"]) for top in token["top_logprobs"])


@pytest.mark.parametrize(
    ("fields", "code", "word"),
    [
        ({"text": "__".join("x" * 34)}, "too_many_blanks", "33 blanks; the limit is 32"),
        ({"pieces": ["x"] * 34}, "too_many_blanks", "33"),
        ({"text": "没有空"}, "no_blank", "__"),
        ({"text": ""}, "no_blank", "__"),
        ({}, "missing_required_parameter", "text"),
        ({"text": "a__b", "pieces": ["a", "b"]}, "invalid_value", "once"),
        ({"pieces": ["x"]}, "invalid_value", "pieces"),
        ({"text": "a__b", "top_logprobs": 2}, "invalid_value", "logprobs"),
        ({"text": "a__b", "alternatives": 9}, "invalid_value", "8"),
        ({"text": "a__b__c", "max_tokens": 1}, "invalid_value", "2 blanks"),
        ({"text": "清晨" * 500 + "__"}, "context_length_exceeded", "1,00"),
        ({"text": "a__b", "n": 2}, "unsupported_parameter", "n"),
    ],
)
def test_what_cannot_be_filled_is_400_and_says_why(server, fields, code, word):
    reply = server.post("/v1/fill", {"model": "cpm2-mini", **fields})
    assert (reply.status, reply.code) == (400, code)
    assert word in reply.json()["error"]["message"]


def test_thirty_two_blanks_are_taken(server):
    body = {"model": "cpm2-mini", "pieces": ["春"] * 33, "max_tokens": 64, "seed": 1}
    reply = server.post("/v1/fill", body)
    assert reply.status == 200
    assert len(reply.json()["blanks"]) == 32


def test_a_model_that_cannot_fill_names_one_that_can(server):
    reply = server.post("/v1/fill", {"model": "cpm1-mini", "text": "a__b"})
    assert (reply.status, reply.code) == (400, "unsupported_task")
    assert "cpm2-mini" in reply.json()["error"]["message"]


def test_editors_fill_at_the_cursor(server):
    body = {"input_prefix": "今天", "input_suffix": "真好。", "seed": 1, "n_predict": 24}
    whole = server.post("/infill", body).json()
    assert whole["content"]
    assert whole["stop"] is True
    assert whole["model"] == "cpm2-mini", "without a name it is the first that can"
    assert whole["tokens_predicted"] == whole["timings"]["predicted_n"] > 0
    reply = server.post("/v1/infill", {**body, "stream": True})
    *pieces, last = events(reply)
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert not any(piece["stop"] for piece in pieces)
    assert last["stop"] is True
    split = {**body, "input_prefix": "今", "prompt": "天"}
    assert server.post("/infill", split).json()["content"] == whole["content"]


def test_an_editor_that_warms_a_cache_gets_an_empty_answer_at_once(server):
    body = {"input_prefix": "今天", "input_suffix": "真好。", "n_predict": 0, "input_extra": []}
    reply = server.post("/infill", body)
    assert reply.status == 200
    assert reply.json()["content"] == ""


def test_tokens_and_texts_go_there_and_back(server):
    text = "今天天气真好"
    tokens = server.post("/tokenize", {"model": "cpm2-mini", "content": text}).json()
    assert tokens["count"] == len(tokens["tokens"]) > 0
    assert server.post("/v1/tokenize", {"model": "cpm2-mini", "prompt": text}).json() == tokens
    body = {"model": "cpm2-mini", "tokens": tokens["tokens"]}
    assert server.post("/detokenize", body).json()["content"] == text
    for bad in ({}, {"content": "a", "prompt": "b"}, {"content": 5}):
        assert server.post("/tokenize", bad).status == 400
    assert server.post("/detokenize", {"tokens": [-1]}).status == 400
