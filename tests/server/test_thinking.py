"""Models with a chat template over HTTP: system messages, thoughts, and what turns them on."""

import pytest

from .client import events, running_server

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}]


@pytest.fixture(scope="module")
def thinker(make_chatting_model, tmp_path_factory):
    folder = make_chatting_model(tmp_path_factory.mktemp("files"))
    with running_server(
        tmp_path_factory.mktemp("server"), models=[str(folder)], options={"slots": 2}
    ) as server:
        server.name = str(folder)
        yield server.wait_until_loaded()


def _chat(server, **fields):
    body = {"model": server.name, "messages": MESSAGES, **fields}
    return server.post("/v1/chat/completions", body)


def test_the_answer_is_the_content_and_the_thoughts_stand_beside_it(thinker):
    answer = _chat(thinker).json()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("42", "hm")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 8


def test_a_stream_tells_them_apart_in_its_deltas(thinker):
    deltas = [e["choices"][0]["delta"] for e in events(_chat(thinker, stream=True))]
    assert deltas[0] == {"role": "assistant", "content": ""}
    told = [delta for delta in deltas[1:] if delta]
    assert told == [
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "4"},
        {"content": "2"},
    ]


def test_thinking_is_turned_off_in_the_words_of_each_interface(thinker):
    for fields in (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
    ):
        message = _chat(thinker, **fields).json()["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "42", "refusal": None}
    body = {"model": thinker.name, "messages": MESSAGES, "stream": False}
    message = thinker.post("/api/chat", {**body, "think": False}).json()["message"]
    assert message == {"role": "assistant", "content": "42"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"chat_template_kwargs": {"x": 1}}, "invalid_value", "chat_template_kwargs.x"),
        (
            {"chat_template_kwargs": {"enable_thinking": "no"}},
            "invalid_type",
            "chat_template_kwargs.enable_thinking",
        ),
        ({"chat_template": "{{ x }}"}, "unsupported_parameter", "chat_template"),
        ({"reasoning_effort": "high"}, "unsupported_parameter", "reasoning_effort"),
        ({"tools": [{"type": "web_search"}]}, "invalid_value", "tools"),
    ],
)
def test_other_words_for_a_template_are_refused(thinker, fields, code, param):
    reply = _chat(thinker, **fields)
    assert (reply.status, reply.code) == (400, code)
    assert reply.json()["error"]["param"] == param


def test_earlier_thoughts_may_be_sent_back(thinker):
    told = {"role": "assistant", "content": "42", "reasoning_content": "hm"}
    messages = [*MESSAGES, told, MESSAGES[1]]
    assert _chat(thinker, messages=messages).json()["choices"][0]["message"]["content"] == "42"
    body = {"model": thinker.name, "stream": False}
    told = {"role": "assistant", "content": "42", "thinking": "hm"}
    messages = [*MESSAGES, told, MESSAGES[1]]
    reply = thinker.post("/api/chat", {**body, "messages": messages})
    assert reply.json()["message"]["content"] == "42"
    refused = [{"role": "user", "content": "6 * 7?", "reasoning_content": "hm"}]
    assert _chat(thinker, messages=refused).status == 400


def test_ollamas_clients_see_thoughts_as_thinking(thinker):
    body = {"model": thinker.name, "messages": MESSAGES, "think": True}
    whole = thinker.post("/api/chat", {**body, "stream": False}).json()["message"]
    assert whole == {"role": "assistant", "content": "42", "thinking": "hm"}
    asked = {"model": thinker.name, "prompt": "6 * 7?", "system": "Be brief.", "stream": False}
    generated = thinker.post("/api/generate", asked).json()
    assert (generated["response"], generated["thinking"]) == ("42", "hm")
    shown = thinker.post("/api/show", {"model": thinker.name}).json()
    assert shown["capabilities"] == ["completion", "thinking"]


def test_the_status_tells_what_a_chat_can_be_told(thinker):
    told = thinker.model(thinker.name)
    assert (told["thinks"], told["chat_controls"]) == (True, ["system", "thinking"])
    assert (told["family"], told["weight_type"]) == ("llama", "float32")
    assert told["num_weights"] > 0


def test_the_same_model_goes_on_with_a_text_where_it_is_asked_to(thinker):
    """Behind a line break stands what the model always says there, marks and all."""
    body = {"model": thinker.name, "prompt": "6 * 7?\n", "stream": False}
    assert "42" in thinker.post("/api/generate", {**body, "raw": True}).json()["response"]
    reply = thinker.post("/api/generate", {**body, "raw": True, "think": True})
    assert (reply.status, "think is not supported" in reply.json()["error"]) == (400, True)
    completed = thinker.post("/v1/completions", {"model": thinker.name, "prompt": "6 * 7?\n"})
    assert completed.json()["choices"][0]["text"] == "<think>hm</think>\n\n42"


def test_what_the_template_or_the_messages_do_not_allow_is_the_clients_mistake(thinker):
    reply = _chat(thinker, messages=[*MESSAGES, {"role": "assistant", "content": "42"}])
    assert reply.status == 400
    assert "end with one from the user" in reply.json()["error"]["message"]


def test_logprobs_and_several_choices_count_thoughts_too(thinker):
    answer = _chat(thinker, n=2, logprobs=True).json()
    for choice in answer["choices"]:
        assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == (
            "42",
            "hm",
        )
        spelled = "".join(token["token"] for token in choice["logprobs"]["content"])
        assert spelled == "<think>hm</think>\n\n42"
