import pytest
import torch

import martlet
from martlet.engine.batch import Batch
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.prefill import Prefill
from martlet.errors import CapacityError

LONG = "我们在公园里散步，看到了很多花。今天天气很好，孩子们在草地上放风筝。"
SHORT = "春天来了"


@pytest.fixture(scope="module", params=["one by one", "together"])
def way(request):
    """As a CPU reads prompts, and as a GPU does."""
    return request.param


@pytest.fixture(scope="module")
def cpm1(tiny_cpm1):
    return martlet.load(tiny_cpm1, device="cpu")


@pytest.fixture(scope="module")
def cpm2(tiny_cpm2):
    return martlet.load(tiny_cpm2, device="cpu", quantize="none")


def _batch(model, way, chunk_tokens, num_slots=4):
    encoder_tokens = 64 if model.generator.architecture.has_encoder else None
    batch = Batch(model.generator, BatchLimits(num_slots, 64, encoder_tokens, chunk_tokens))
    batch._prefill._reads_together = way == "together"
    return batch


def _passes(model, monkeypatch):
    """(stack, rows, tokens of a row) of every pass from now on that is no decode step."""
    seen = []
    architecture = model.generator.architecture
    embed = architecture.embed

    def noting(fixed, stack, token_ids, cache, lengths=None):
        if token_ids.shape[1] > 1:
            seen.append((stack, *token_ids.shape))
        return embed(fixed, stack, token_ids, cache, lengths)

    monkeypatch.setattr(architecture, "embed", noting)
    return seen


@pytest.mark.parametrize("chunk_tokens", [16, 17, 40, 256])
def test_a_prompt_in_chunks_is_read_as_the_whole_is(chunk_tokens, way, cpm1, batching):
    requests = [
        cpm1.prepare("complete", text, max_tokens=8, seed=seed, temperature=seed % 2).request
        for seed, text in enumerate([LONG, SHORT, LONG[5:], LONG[11:]])
    ]
    batch = _batch(cpm1, way, chunk_tokens)
    for heard, request in zip(batching.run(batch, requests), requests, strict=True):
        batching.require_same(heard, batching.alone(cpm1.generator, request))


@pytest.mark.parametrize("chunk_tokens", [16, 60, 256])
def test_encoders_of_unequal_texts_do_not_see_each_other(chunk_tokens, way, cpm2, batching):
    texts = [f"{LONG}__。", f"{SHORT}__", f"{LONG[7:]}__{SHORT}__", f"__{SHORT}"]
    requests = [cpm2.prepare("fill", text, max_tokens=8, seed=5).request for text in texts]
    heard = batching.run(_batch(cpm2, way, chunk_tokens), requests)
    for text, each in zip(texts, heard, strict=True):
        request = cpm2.prepare("fill", text, max_tokens=8, seed=5).request
        batching.require_same(each, batching.alone(cpm2.generator, request))


def test_a_text_that_runs_gets_a_token_between_the_chunks_of_another(way, cpm1, batching):
    batch = _batch(cpm1, way, chunk_tokens=16)
    running, late, short = batching.heard(), batching.heard(), batching.heard()
    batch.submit(cpm1.prepare("complete", SHORT, max_tokens=40, seed=1).request, running)
    batch.step()
    prompt = cpm1.prepare("complete", LONG + SHORT, max_tokens=4, seed=2).request
    num_chunks = -(-len(prompt.context.decoder_ids) // 16)
    assert num_chunks >= 3
    batch.submit(prompt, late)
    batch.submit(cpm1.prepare("complete", SHORT, max_tokens=4, seed=3).request, short)
    for number in range(num_chunks):
        assert not late.tokens
        before = len(running.tokens)
        batch.step()
        assert len(running.tokens) == before + 1
        # The short one is not kept waiting for the end of the long one.
        assert bool(short.tokens) == (number >= 1)
    while not late.tokens:
        batch.step()


def test_several_prompts_share_a_pass_that_is_padded_within_the_limit(cpm1, batching, monkeypatch):
    requests = [
        cpm1.prepare("complete", SHORT * count, max_tokens=2, seed=1).request
        for count in (1, 2, 1, 5)
    ]
    lengths = [len(request.context.decoder_ids) for request in requests]
    passes = _passes(cpm1, monkeypatch)
    batching.run(_batch(cpm1, "together", chunk_tokens=3 * lengths[1]), requests)
    assert passes == [("decoder", 3, lengths[1]), ("decoder", 1, lengths[3])]


def test_a_cpu_reads_one_prompt_a_pass_but_several_a_step(cpm1, batching, monkeypatch):
    requests = [cpm1.prepare("complete", SHORT, max_tokens=2, seed=1).request for _ in range(4)]
    num_tokens = len(requests[0].context.decoder_ids)
    passes = _passes(cpm1, monkeypatch)
    batch = _batch(cpm1, "one by one", chunk_tokens=3 * num_tokens)
    heard = [batching.heard() for _ in requests]
    for request, each in zip(requests, heard, strict=True):
        batch.submit(request, each)
    batch.step()
    assert passes == [("decoder", 1, num_tokens)] * 3
    assert [bool(each.tokens) for each in heard] == [True, True, True, False]


def test_where_memory_runs_out_smaller_pieces_are_read(way, cpm1, batching, monkeypatch):
    architecture = cpm1.generator.architecture
    embed = architecture.embed

    def too_much(fixed, stack, token_ids, cache, lengths=None):
        if token_ids.numel() > 20:
            raise MemoryError
        return embed(fixed, stack, token_ids, cache, lengths)

    requests = [
        cpm1.prepare("complete", text, max_tokens=5, seed=1).request for text in (LONG, SHORT)
    ]
    alone = [batching.alone(cpm1.generator, request) for request in requests]
    monkeypatch.setattr(architecture, "embed", too_much)
    batch = _batch(cpm1, way, chunk_tokens=64)
    for heard, expected in zip(batching.run(batch, requests), alone, strict=True):
        batching.require_same(heard, expected)
    assert batch.state().out_of_memory_total >= 2


def test_a_text_that_no_memory_suffices_for_fails_and_the_others_live(
    way, cpm2, batching, monkeypatch
):
    running, late = (
        cpm2.prepare("fill", text, max_tokens=9, seed=1).request
        for text in (f"{SHORT}__", f"{LONG}__")
    )
    expected = batching.alone(
        cpm2.generator, cpm2.prepare("fill", f"{SHORT}__", max_tokens=9, seed=1).request
    )
    batch = _batch(cpm2, way, chunk_tokens=256)
    heard, failed = batching.heard(), batching.heard()
    batch.submit(running, heard)
    batch.step()
    embed = cpm2.generator.architecture.embed

    def no_encoder(fixed, stack, *rest):
        if stack == "encoder":
            raise MemoryError
        return embed(fixed, stack, *rest)

    monkeypatch.setattr(cpm2.generator.architecture, "embed", no_encoder)
    batch.submit(late, failed)
    while batch.step():
        pass
    assert isinstance(failed.error, CapacityError)
    assert batch.state().out_of_memory_total == 1
    batching.require_same(heard, expected)
    batching.require_empty(batch)


def test_memory_that_runs_out_behind_the_last_block_leaves_no_token(way, cpm1, batching):
    request = cpm1.prepare("complete", LONG, max_tokens=5, seed=1).request
    batch = _batch(cpm1, way, chunk_tokens=32)
    prefill: Prefill = batch._prefill
    logits, left = prefill._logits, [1]

    def fails_once(*arguments):
        if left[0]:
            left[0] -= 1
            raise CapacityError("out of memory")
        return logits(*arguments)

    prefill._logits = fails_once
    (heard,) = batching.run(batch, [request])
    batching.require_same(heard, batching.alone(cpm1.generator, request))
    assert not torch.is_inference_mode_enabled()
