"""Models of today in the browser: thoughts, their switch, what the system says, long names."""

import pytest
from playwright.sync_api import expect

from ..chatting import REPLY
from ..server import client
from .driver import overflow, tab_to, wait_for_answer

pytestmark = pytest.mark.browser

THOUGHTS = "<b>hm"


@pytest.fixture(scope="module")
def thinking_server(make_chatting_model, tmp_path_factory):
    """A model that thinks in markup and answers 42, and beside it EVA."""
    said = [*REPLY[:1], *THOUGHTS, *REPLY[3:]]
    folder = make_chatting_model(tmp_path_factory.mktemp("files"), reply=said)
    with client.running_server(
        tmp_path_factory.mktemp("server"), models=[str(folder), "eva-mini"], options={"slots": 2}
    ) as server:
        server.name = str(folder)
        yield server.wait_until_loaded()


@pytest.fixture
def chat(visit, thinking_server):
    """The page of chats with that model, which writes slowly enough to be watched."""
    thinking_server.faults(step_seconds=0.2)
    page = visit("chat", thinking_server.address)
    page.get_by_test_id("model").select_option(thinking_server.name)
    yield page
    thinking_server.faults()


def ask(page, text="6 * 7?"):
    page.get_by_test_id("chat-input").fill(text)
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_test_id("chat-input").press("Enter")
    return sent.value.post_data_json


def answer(page):
    return page.get_by_test_id("turn-assistant").last


def test_thoughts_are_open_until_the_answer_begins(chat):
    ask(chat)
    thoughts = answer(chat).get_by_test_id("thoughts")
    expect(thoughts).to_have_attribute("open", "")
    expect(thoughts).to_contain_text("Thinking")
    expect(chat.get_by_test_id("speed")).to_contain_text("thinking")
    expect(answer(chat).locator(".bubble")).to_have_text("42")
    expect(thoughts).not_to_have_attribute("open", "")
    wait_for_answer(chat)
    chat.get_by_role("heading", level=1).focus()
    tab_to(chat, "thoughts-summary")
    chat.keyboard.press("Enter")
    expect(answer(chat).get_by_test_id("thought-text")).to_be_visible()
    expect(answer(chat).get_by_test_id("thought-text")).to_have_text(THOUGHTS)
    expect(chat.locator("main b")).to_have_count(0)


def test_thoughts_are_neither_sent_back_nor_kept(chat):
    ask(chat)
    wait_for_answer(chat)
    body = ask(chat, "Sure?")
    assert [message["content"] for message in body["messages"]] == ["6 * 7?", "42", "Sure?"]
    assert "hm" not in str(body)
    wait_for_answer(chat)
    expect(chat.get_by_test_id("thoughts")).to_have_count(2)
    chat.reload()
    expect(chat.locator(".bubble")).to_have_text(["6 * 7?", "42", "Sure?", "42"])
    expect(chat.get_by_test_id("thoughts")).to_have_count(0)


def test_thinking_is_switched_off_and_on_and_stays_so(chat):
    assert "chat_template_kwargs" not in ask(chat)
    wait_for_answer(chat)
    chat.get_by_test_id("think").select_option("off")
    assert ask(chat)["chat_template_kwargs"] == {"enable_thinking": False}
    wait_for_answer(chat)
    expect(answer(chat).locator(".bubble")).to_have_text("42")
    expect(answer(chat).get_by_test_id("thoughts")).to_have_count(0)
    chat.reload()
    expect(chat.get_by_test_id("think")).to_have_value("off")
    chat.get_by_test_id("think").select_option("on")
    assert ask(chat)["chat_template_kwargs"] == {"enable_thinking": True}
    expect(answer(chat).get_by_test_id("thoughts")).to_be_visible()
    wait_for_answer(chat)


def test_what_the_system_says_comes_first_where_the_model_takes_it(chat):
    chat.get_by_test_id("system").fill("Be brief.")
    told = {"role": "system", "content": "Be brief."}
    assert ask(chat)["messages"] == [told, {"role": "user", "content": "6 * 7?"}]
    wait_for_answer(chat)
    expect(answer(chat).locator(".bubble")).to_have_text("42")
    chat.get_by_test_id("model").select_option("eva-mini")
    expect(chat.get_by_test_id("system")).to_have_count(0)
    expect(chat.get_by_test_id("think")).to_have_count(0)
    chat.get_by_test_id("sampling-max_tokens").fill("2")
    chat.get_by_test_id("sampling-max_tokens").press("Enter")
    assert [m["role"] for m in ask(chat)["messages"]] == ["user", "assistant", "user"]
    wait_for_answer(chat)
    expect(chat.get_by_test_id("error")).to_have_count(0)
    expect(chat.get_by_test_id("turn-assistant").first).to_contain_text("tiny-llama")
    expect(answer(chat)).to_contain_text("eva-mini")


def test_an_answer_may_be_stopped_among_its_thoughts_and_asked_for_again(chat):
    ask(chat)
    expect(answer(chat).get_by_test_id("thoughts")).to_be_visible()
    chat.get_by_test_id("stop").click()
    expect(answer(chat)).to_contain_text("stopped")
    expect(answer(chat).locator(".bubble")).to_have_count(0)
    chat.get_by_test_id("regenerate").click()
    expect(answer(chat).locator(".bubble")).to_have_text("42")
    wait_for_answer(chat)
    chat.get_by_test_id("edit-turn").click()
    chat.get_by_test_id("edit-field").fill("7 * 6?")
    chat.get_by_test_id("edit-save").click()
    expect(answer(chat).locator(".bubble")).to_have_text("42")
    wait_for_answer(chat)
    expect(chat.locator(".bubble")).to_have_text(["7 * 6?", "42"])


def test_thoughts_that_leave_no_room_for_an_answer_are_told(chat):
    chat.get_by_test_id("sampling-max_tokens").fill("4")
    chat.get_by_test_id("sampling-max_tokens").press("Enter")
    ask(chat)
    wait_for_answer(chat)
    expect(chat.get_by_test_id("no-answer")).to_contain_text("Allow more")
    chat.get_by_test_id("sampling-max_tokens").fill("")
    chat.get_by_test_id("sampling-max_tokens").press("Enter")
    messages = ask(chat, "Well?")["messages"]
    assert messages == [{"role": "user", "content": "6 * 7?\nWell?"}]
    wait_for_answer(chat)
    expect(answer(chat).locator(".bubble")).to_have_text("42")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_long_names_fit_a_telephone(visit, thinking_server, locale):
    page = visit("chat", thinking_server.address, width=360, locale=locale)
    page.get_by_test_id("model").select_option(thinking_server.name)
    ask(page)
    wait_for_answer(page)
    page.get_by_test_id("thoughts-summary").click()
    expect(page.get_by_test_id("thought-text")).to_be_visible()
    assert overflow(page) == 0
    page.get_by_test_id("nav-machine").click()
    expect(page.get_by_test_id("layers")).to_be_visible()
    assert overflow(page) == 0


def test_the_machine_tells_what_a_model_is(visit, thinking_server):
    page = visit("machine", thinking_server.address)
    page.get_by_test_id(f"machine-{thinking_server.name}").click()
    for fact in ("Llama", "chat · write on · think first", "float32", "M"):
        expect(page.get_by_text(fact, exact=fact != "M").first).to_be_visible()
