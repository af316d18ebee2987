"""What a model is sent for a request, in OpenAI's words and in ours."""

import pytest

from martlet.server.failures import ApiError
from martlet.server.fields import validate
from martlet.server.fill_routes import FillRequest, fill_job
from martlet.server.openai_chat import ChatRequest, chat_job
from martlet.server.openai_completions import CompletionRequest, completion_jobs

from .asgi import settings_with

CHAT = {"model": "m", "messages": [{"role": "user", "content": "你好"}]}
FILL = {"model": "m", "text": "今天__，明天__。"}
WRITE = {"model": "m", "prompt": "清晨"}


def chat(fields, **settings):
    return chat_job(validate(ChatRequest, {**CHAT, **fields}), settings_with(**settings))


def test_fields_that_were_not_given_are_left_to_the_model():
    assert chat({}) == {
        "task": {"kind": "chat", "messages": CHAT["messages"]},
        "params": {},
        "num_choices": 1,
        "top_logprobs": None,
        "format": None,
    }


def test_given_fields_reach_the_model_under_its_words():
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "stop": ["。"],
        "seed": 7,
        "max_tokens": 9,
    }
    job = chat({**given, "n": 3, "logprobs": True, "top_logprobs": 4})
    assert job["params"] == given
    assert (job["num_choices"], job["top_logprobs"]) == (3, 4)
    assert chat({"logprobs": True})["top_logprobs"] == 0
    assert chat({"max_completion_tokens": 5})["params"] == {"max_tokens": 5}


def test_a_developers_message_is_a_systems_which_the_model_may_refuse():
    messages = [{"role": "developer", "content": "x"}, *CHAT["messages"]]
    assert chat({"messages": messages})["task"]["messages"][0] == {"role": "system", "content": "x"}


def test_formats_are_handed_on():
    schema = {"type": "object"}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert chat({"response_format": named})["format"] == {"type": "json_schema", "schema": schema}
    assert chat({"response_format": {"type": "json_object"}})["format"] == {"type": "json_object"}
    assert chat({"response_format": {"type": "text"}})["format"] is None


def test_a_servers_limit_on_tokens_binds_what_was_given_and_what_was_not():
    with pytest.raises(ApiError, match="max_tokens is 65; this server allows at most 64"):
        chat({"max_tokens": 65}, max_tokens=64)
    assert chat({"max_tokens": 64}, max_tokens=64)["params"] == {"max_tokens": 64}
    assert chat({}, max_tokens=64)["params"] == {"max_tokens": 64}
    assert chat({}, max_tokens=4096)["params"] == {"max_tokens": 128}
    fill = validate(FillRequest, FILL)
    assert fill_job(fill, settings_with())["params"] == {}
    assert fill_job(fill, settings_with(max_tokens=4096))["params"] == {"max_tokens": 64}
    assert fill_job(fill, settings_with(max_tokens=10))["params"] == {"max_tokens": 10}
    write = validate(CompletionRequest, WRITE)
    assert completion_jobs(write, settings_with())[0]["params"] == {"max_tokens": 16}
    assert completion_jobs(write, settings_with(max_tokens=8))[0]["params"] == {"max_tokens": 8}


def test_each_prompt_is_a_job_and_a_suffix_makes_it_a_gap():
    body = validate(CompletionRequest, {"model": "m", "prompt": [[1, 2], [3]], "n": 2})
    jobs = completion_jobs(body, settings_with())
    assert [job["task"] for job in jobs] == [
        {"kind": "complete", "prompt": [1, 2]},
        {"kind": "complete", "prompt": [3]},
    ]
    assert {job["num_choices"] for job in jobs} == {2}
    body = validate(CompletionRequest, {**WRITE, "suffix": "。"})
    assert completion_jobs(body, settings_with())[0]["task"] == {
        "kind": "fill",
        "pieces": ["清晨", "。"],
    }
