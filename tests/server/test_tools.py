"""Tools over HTTP: offered, called, answered, forced, in OpenAI's words and in Ollama's."""

import json

import openai
import pytest

from .client import running_server

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 5}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
ASK = [{"role": "user", "content": "6 + 7?"}]
NAMED = {"type": "function", "function": {"name": "add"}}
CALL = ["<tool_call>", '{"name": "add"', ', "arguments": {"a', '": 42}}', "</tool_call>"]
SAID = ["<think>", "h", "</think>", "4", *CALL, "<|im_end|>"]


@pytest.fixture(scope="module")
def caller(make_chatting_model, tmp_path_factory):
    """A server whose model thinks "h", says "4", and calls ``add``."""
    folder = make_chatting_model(
        tmp_path_factory.mktemp("files"),
        template="hermes",
        reply=SAID,
        visible=["<think>", "</think>", *CALL],
        config={"max_position_embeddings": 1024},
    )
    with running_server(
        tmp_path_factory.mktemp("server"),
        models=[str(folder), "eva-mini"],
        options={"slots": 2, "context": 900},
    ) as server:
        server.name = str(folder)
        yield server.wait_until_loaded()


@pytest.fixture
def client(caller):
    with openai.OpenAI(base_url=f"{caller.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def _ask(client, caller, messages=ASK, **fields):
    fields = {"tools": [ADD], **fields}
    return client.chat.completions.create(model=caller.name, messages=messages, **fields)


def test_a_call_stands_in_the_message_and_is_why_it_ended(client, caller):
    choice = _ask(client, caller).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content, choice.message.reasoning_content) == ("4", "h")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "add")
    assert json.loads(call.function.arguments) == {"a": 42}


def test_a_stream_has_the_call_in_its_deltas_and_nothing_of_its_marks(client, caller):
    content, thoughts, calls, reasons = "", "", [], []
    with _ask(client, caller, stream=True, logprobs=True) as stream:
        for chunk in stream:
            (choice,) = chunk.choices
            content += choice.delta.content or ""
            thoughts += getattr(choice.delta, "reasoning_content", None) or ""
            calls += choice.delta.tool_calls or []
            reasons.append(choice.finish_reason)
    assert (content, thoughts) == ("4", "h")
    assert [(call.index, call.type, call.function.name) for call in calls] == [
        (0, "function", "add")
    ]
    assert calls[0].id and json.loads(calls[0].function.arguments) == {"a": 42}
    assert [reason for reason in reasons if reason] == ["tool_calls"]


def test_openais_client_puts_a_stream_of_calls_together(client, caller):
    with client.chat.completions.stream(model=caller.name, messages=ASK, tools=[ADD]) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["add"]


def test_an_answer_with_calls_can_be_sent_back_with_what_the_tools_gave(client, caller):
    told = _ask(client, caller).choices[0].message
    given = {"role": "tool", "tool_call_id": told.tool_calls[0].id, "content": "13"}
    answer = _ask(client, caller, [*ASK, told, given])
    assert answer.usage.prompt_tokens > _ask(client, caller).usage.prompt_tokens
    alone = {**told.model_dump(exclude_none=True), "content": None}
    assert _ask(client, caller, [*ASK, alone, given], tools=openai.omit).choices[0].message.content


def test_without_tools_or_with_none_of_them_the_text_is_as_it_is(client, caller):
    for fields in ({"tools": openai.omit}, {"tool_choice": "none"}, {"tools": []}):
        choice = _ask(client, caller, **fields).choices[0]
        assert choice.finish_reason == "stop"
        assert (choice.message.content, choice.message.tool_calls) == ("4" + "".join(CALL), None)


def test_a_call_that_is_cut_off_is_text(client, caller):
    choice = _ask(client, caller, max_tokens=6).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert choice.message.content == "4" + "".join(CALL[:2])


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_call_can_be_forced_and_keeps_to_the_schema(client, caller, choice, is_streamed):
    pytest.importorskip("llguidance")
    fields = {"tool_choice": choice, "max_tokens": 60, "seed": 1, "parallel_tool_calls": False}
    if is_streamed:
        with _ask(client, caller, stream=True, **fields) as stream:
            chunks = [chunk.choices[0] for chunk in stream]
        assert not any(chunk.delta.content for chunk in chunks)
        calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        reason = chunks[-1].finish_reason
    else:
        answer = _ask(client, caller, **fields).choices[0]
        assert answer.message.content is None
        calls, reason = answer.message.tool_calls, answer.finish_reason
    assert reason == "tool_calls"
    assert [call.function.name for call in calls] == ["add"]
    assert 1 <= json.loads(calls[0].function.arguments)["a"] <= 5


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": {}}, "tools", "list"),
        ({"tools": [{**ADD, "type": "custom"}]}, "tools", 'no type "function"'),
        ({"tools": [ADD, ADD]}, "tools", "two tools are called add"),
        ({"tools": [ADD] * 129}, "tools", "at most 128"),
        ({"tool_choice": "add"}, "tool_choice", "must be auto"),
        ({"tool_choice": 5}, "tool_choice", "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice", "no tools"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "boolean"),
        ({"response_format": {"type": "json_object"}}, None, "no room for calls of tools"),
        ({"functions": [{"name": "add"}]}, "functions", "not supported"),
        ({"model": "eva-mini"}, None, "has no chat template; leave tools out"),
        ({"messages": [{"role": "tool", "content": "13"}]}, None, "which no call has"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]},
            "messages.0.tool_calls.0.type",
            "required",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages.0.content", "required"),
    ],
)
def test_what_cannot_be_done_with_tools_is_refused(caller, fields, param, words):
    body = {"model": caller.name, "messages": ASK, "tools": [ADD], **fields}
    reply = caller.post("/v1/chat/completions", body)
    assert reply.status == 400, reply.body
    error = reply.json()["error"]
    assert (error["param"], words in error["message"]) == (param, True), error


def test_tools_count_as_part_of_the_prompt(caller):
    large = {"type": "function", "function": {"name": "add", "description": "?" * 60_000}}
    body = {"model": caller.name, "messages": [{"role": "user", "content": "?" * 6000}]}
    reply = caller.post("/v1/chat/completions", {**body, "tools": [large]})
    assert (reply.status, reply.code) == (400, "context_length_exceeded")
    assert "characters" in reply.json()["error"]["message"]


def test_ollamas_clients_get_calls_with_arguments_as_objects(caller):
    body = {"model": caller.name, "messages": ASK, "tools": [ADD]}
    told = {"function": {"name": "add", "arguments": {"a": 42}}}
    whole = caller.post("/api/chat", {**body, "stream": False}).json()
    assert whole["message"] == {
        "role": "assistant",
        "content": "4",
        "thinking": "h",
        "tool_calls": [told],
    }
    assert whole["done_reason"] == "stop"
    lines = [json.loads(line) for line in caller.post("/api/chat", body).body.splitlines()]
    assert [
        line["message"].get("tool_calls") for line in lines if line["message"]["content"] == ""
    ][-2:] == [[told], None]
    given = {"role": "tool", "content": "13", "tool_name": "add"}
    messages = [*ASK, whole["message"], given]
    again = caller.post("/api/chat", {**body, "messages": messages, "stream": False}).json()
    assert again["prompt_eval_count"] > whole["prompt_eval_count"]
    unnamed = [*ASK, whole["message"], {"role": "tool", "content": "13"}]
    assert caller.post("/api/chat", {**body, "messages": unnamed, "stream": False}).status == 200
    wrong = [*ASK, whole["message"], {**given, "tool_name": "sub"}]
    assert caller.post("/api/chat", {**body, "messages": wrong}).status == 400
    shown = caller.post("/api/show", {"model": caller.name}).json()
    assert shown["capabilities"] == ["completion", "thinking", "tools"]
