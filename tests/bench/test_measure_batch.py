"""Loads of clients on a batch."""

import pytest

from martlet.bench.measure_batch import Load, StreamedText, measure_shape_batch, summarise
from martlet.bench.numbered_tokens import NumberedTokens
from martlet.bench.opening import Setting
from martlet.bench.shapes import Shape
from martlet.engine.batch_limits import BatchLimits
from martlet.errors import UsageError

TINY = {
    "t5": {
        "model_type": "t5",
        "vocab_size": 300,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 32,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 300,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
    },
}


@pytest.mark.parametrize("kind", list(TINY))
def test_every_load_gives_a_row_of_what_its_clients_got(kind):
    limits = BatchLimits(2, 40, 16 if kind == "t5" else None)
    loads = [Load(1, 8, 6, texts_per_client=1), Load(3, 8, 6, texts_per_client=2)]
    done = []
    rows = measure_shape_batch(
        Shape("tiny", "cpm2" if kind == "t5" else "cpm1", TINY[kind]),
        Setting(device="cpu"),
        limits,
        loads,
        "a command",
        lambda *numbers: done.append(numbers),
    )
    assert done == [(1, 2), (2, 2)]
    assert [(row.num_clients, row.num_texts) for row in rows] == [(1, 1), (3, 6)]
    for row in rows:
        assert (row.shape, row.num_slots, row.command) == ("tiny", 2, "a command")
        assert row.total_tokens_per_second > 0
        assert 0 < row.time_to_first_token_p50_seconds <= row.time_to_first_token_p95_seconds


def test_slots_beyond_the_positions_are_refused():
    with pytest.raises(UsageError, match="a slot has 65 tokens and the shape 64 positions"):
        measure_shape_batch(
            Shape("tiny", "cpm1", TINY["gpt2"]), Setting(device="cpu"), BatchLimits(1, 65, None),
            [Load(1, 2, 2)], "",
        )  # fmt: skip


def test_only_the_time_counts_in_which_all_clients_are_busy():
    def text(client, number, asked, tokens):
        return StreamedText(client, number, asked, tokens, is_done=True)

    load = Load(2, 8, 8, texts_per_client=1)
    texts = [
        text(0, 0, 0.0, [0.5]),  # warming up
        text(1, 0, 0.0, [9.0]),
        text(0, 1, 10.0, [11.0, 12.0, 13.0]),
        text(1, 1, 10.5, [12.0, 14.0, 20.0]),  # alone from 13 on
    ]
    summary = summarise(load, texts)
    assert summary["num_texts"] == 2
    assert summary["total_tokens_per_second"] == 4 / (13.0 - 10.5)
    assert summary["time_to_first_token_p50_seconds"] == 1.25
    assert summary["time_to_first_token_p95_seconds"] == 1.5


def test_tokens_without_a_vocabulary_are_their_numbers():
    tokens = NumberedTokens(100)
    assert tokens.decode([5, 99]) == "5 99 "
    assert tokens.encode("5 99") == [5, 99]
    with pytest.raises(UsageError, match="only numbers below 100"):
        tokens.encode("100")
