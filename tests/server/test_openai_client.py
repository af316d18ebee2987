"""OpenAI's own client against a real server with the bundled models."""

import concurrent.futures
import math

import openai
import pytest

from .client import events

CHAT = [{"role": "user", "content": "你好"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["cpm1-mini", "cpm2-mini", "eva-mini"]
    model = client.models.retrieve("eva-mini")
    assert (model.object, model.owned_by) == ("model", "martlet")
    assert model.created > 1_700_000_000


def test_a_chat_is_answered_and_its_usage_adds_up(client):
    answer = client.chat.completions.create(model="eva-mini", messages=CHAT, n=2, seed=3)
    assert answer.object == "chat.completion"
    assert answer._request_id in answer.id
    assert answer.system_fingerprint.startswith("fp_")
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.message.role == "assistant"
        assert choice.message.content
        assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens >= 2
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert answer.timings["prefill_seconds"] > 0


@pytest.mark.parametrize("seed", [1, 7])
def test_a_stream_is_the_same_text_as_a_whole_answer_of_the_seed(client, seed):
    fields = {"model": "eva-mini", "messages": CHAT, "seed": seed, "n": 2, "max_tokens": 24}
    whole = client.chat.completions.create(**fields)
    texts, reasons, ids = ["", ""], [None, None], set()
    with client.chat.completions.create(**fields, stream=True) as stream:
        for chunk in stream:
            ids.add(chunk.id)
            assert chunk.usage is None
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert len(ids) == 1
    again = client.chat.completions.create(**fields)
    assert [c.message.content for c in again.choices] == texts


def test_usage_comes_in_one_last_chunk_where_it_is_asked_for(client):
    fields = {"model": "eva-mini", "messages": CHAT, "seed": 1, "max_tokens": 5, "stream": True}
    with client.chat.completions.create(**fields, stream_options={"include_usage": True}) as stream:
        *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].delta.to_dict() == {}
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == 5
    assert last.timings["decode_seconds"] > 0
    with client.chat.completions.create(**fields) as stream:
        assert all(chunk.choices and chunk.usage is None for chunk in stream)


def test_log_probabilities_are_finite_and_of_the_tokens_of_the_text(client):
    answer = client.chat.completions.create(
        model="eva-mini", messages=CHAT, seed=1, max_tokens=8, logprobs=True, top_logprobs=20
    )
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(t.bytes) for t in content).decode() == answer.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 20
        logprobs = [top.logprob for top in token.top_logprobs]
        assert all(math.isfinite(p) and p <= 0 for p in [*logprobs, token.logprob])
        assert logprobs == sorted(logprobs, reverse=True)


def test_texts_are_gone_on_with_for_every_form_of_prompt(client, server):
    ids = server.post("/tokenize", {"model": "cpm1-mini", "content": "清晨"}).json()["tokens"]
    texts = {}
    for name, prompt in {
        "text": "清晨",
        "texts": ["清晨", "深夜"],
        "ids": ids,
        "lists": [ids, ids],
    }.items():
        answer = client.completions.create(
            model="cpm1-mini", prompt=prompt, temperature=0, max_tokens=6
        )
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        texts[name] = [choice.text for choice in answer.choices]
        assert answer.usage.completion_tokens == 6 * len(answer.choices)
    assert texts["ids"] == texts["text"] == texts["texts"][:1]
    assert texts["lists"] == texts["text"] * 2


def test_sixteen_tokens_are_written_where_no_number_is_given(client):
    answer = client.completions.create(model="cpm1-mini", prompt="清晨", temperature=0)
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_a_completion_streams_what_it_answers_whole_with_its_echo(client):
    fields = {"model": "cpm1-mini", "prompt": "清晨", "echo": True, "seed": 5, "max_tokens": 12}
    whole = client.completions.create(**fields)
    with client.completions.create(**fields, stream=True) as stream:
        text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == whole.choices[0].text
    assert text.startswith("清晨")


def test_legacy_log_probabilities_have_offsets_into_the_text(client):
    answer = client.completions.create(
        model="cpm1-mini", prompt="清晨", logprobs=3, max_tokens=8, seed=2
    )
    choice = answer.choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 8
    assert all(1 <= len(top) <= 3 for top in found.top_logprobs)
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token


def test_the_best_of_several_is_the_most_probable_one(client):
    fields = {"model": "cpm1-mini", "prompt": "清晨", "max_tokens": 8, "seed": 11}
    all_of_them = client.completions.create(**fields, n=4, logprobs=0).choices
    best = client.completions.create(**fields, best_of=4)
    assert len(best.choices) == 1
    means = [sum(c.logprobs.token_logprobs) / 8 for c in all_of_them]
    assert best.choices[0].text == all_of_them[means.index(max(means))].text
    assert best.usage.completion_tokens == 32, "all that were written are counted"


def test_a_suffix_is_led_up_to(client):
    fields = {"model": "cpm2-mini", "prompt": "今天", "suffix": "真好。", "seed": 1}
    whole = client.completions.create(**fields)
    assert whole.choices[0].text
    with client.completions.create(**fields, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_embeddings_are_the_same_in_base64_which_the_client_asks_for_and_as_numbers(client):
    texts = ["今天天气真好", "明日再来"]
    by_default = client.embeddings.create(model="cpm2-mini", input=texts)
    as_numbers = client.embeddings.create(model="cpm2-mini", input=texts, encoding_format="float")
    assert [item.index for item in by_default.data] == [0, 1]
    for one, other in zip(by_default.data, as_numbers.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)
        assert len(one.embedding) > 16
    assert by_default.usage.prompt_tokens == by_default.usage.total_tokens > 0
    single = client.embeddings.create(model="cpm2-mini", input=texts[0])
    assert single.data[0].embedding == pytest.approx(by_default.data[0].embedding, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "error_class", "code"),
    [
        (
            lambda c: c.chat.completions.create(model="none", messages=CHAT),
            openai.NotFoundError,
            "model_not_found",
        ),
        (
            lambda c: c.chat.completions.create(model="cpm1-mini", messages=CHAT),
            openai.BadRequestError,
            "unsupported_task",
        ),
        (
            lambda c: c.completions.create(model="eva-mini", prompt="x"),
            openai.BadRequestError,
            "unsupported_task",
        ),
        (
            lambda c: c.embeddings.create(model="cpm1-mini", input="x"),
            openai.BadRequestError,
            "unsupported_task",
        ),
        (
            lambda c: c.embeddings.create(model="cpm2-mini", input="x", dimensions=8),
            openai.BadRequestError,
            "unsupported_parameter",
        ),
        (
            lambda c: c.chat.completions.create(
                model="eva-mini", messages=[{"role": "system", "content": "x"}, *CHAT]
            ),
            openai.BadRequestError,
            "invalid_value",
        ),
        (
            lambda c: c.completions.create(model="cpm1-mini", prompt="清晨" * 2000),
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        (
            lambda c: c.completions.create(model="cpm1-mini", prompt=[10**8]),
            openai.BadRequestError,
            "invalid_value",
        ),
    ],
)
def test_errors_are_of_the_clients_classes(client, call, error_class, code):
    with pytest.raises(error_class) as caught:
        call(client)
    assert caught.value.code == code
    assert caught.value.request_id


def test_an_error_names_a_model_that_can(client):
    with pytest.raises(openai.BadRequestError, match=r"eva-mini can here.*/v1/completions"):
        client.chat.completions.create(model="cpm1-mini", messages=CHAT)
    with pytest.raises(openai.BadRequestError, match="/v1/chat/completions"):
        client.completions.create(model="eva-mini", prompt="x")


def test_what_is_not_finite_ends_the_request_and_is_not_tried_again(server, client):
    server.faults(not_finite=True)
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=2).completions.create(model="cpm1-mini", prompt="清晨")
    assert caught.value.response.headers["x-should-retry"] == "false"
    server.faults()
    assert client.completions.create(model="cpm1-mini", prompt="清晨").choices[0].text


def test_a_fault_in_the_middle_of_a_stream_is_an_error_of_the_client(server, client):
    received = ""
    with client.completions.create(
        model="cpm1-mini", prompt="清晨", max_tokens=400, stream=True
    ) as stream:
        with pytest.raises(openai.APIError) as caught:
            for chunk in stream:
                received += chunk.choices[0].text
                if received:
                    server.faults(not_finite=True)
        assert received
    assert "finite" in str(caught.value)
    server.faults()
    server.wait_until_idle("cpm1-mini")


def test_the_prefix_may_be_left_out(server):
    body = {"model": "eva-mini", "messages": CHAT, "seed": 1, "max_tokens": 4}
    with_prefix = server.post("/v1/chat/completions", body).json()
    without = server.post("/chat/completions", body).json()
    assert with_prefix["choices"] == without["choices"]
    streamed = events(server.post("/chat/completions", {**body, "stream": True}))
    assert streamed[-1]["choices"][0]["finish_reason"] == "length"


def test_a_client_that_gives_up_and_tries_again_has_one_request_at_a_time(server, client):
    server.faults(step_seconds=0.2)
    most = 0

    def ask_three_times():
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.5, max_retries=2).completions.create(
                model="cpm1-mini", prompt="清晨", max_tokens=400
            )

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_three_times)
        while not asking.done():
            most = max(most, server.model("cpm1-mini")["num_jobs"])
        asking.result()
    assert most == 1
    server.wait_until_idle("cpm1-mini")
