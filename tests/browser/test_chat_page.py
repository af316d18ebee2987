"""Conversations in the browser."""

import pytest
from playwright.sync_api import expect

from .driver import tab_to, wait_for_answer

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=document.title='owned'>"


def say(page, text):
    page.get_by_test_id("chat-input").fill(text)
    page.get_by_test_id("chat-input").press("Enter")
    expect(page.get_by_test_id("turn-user").last).to_contain_text(text)
    wait_for_answer(page)
    expect(page.get_by_test_id("turn-assistant").last.locator(".bubble")).not_to_be_empty()


def bubbles(page):
    return page.locator(".bubble").all_inner_texts()


def test_a_conversation_survives_a_reload_until_it_is_cleared(visit):
    page = visit("chat")
    say(page, "你这汉子是谁？")
    say(page, "你要往哪里去？")
    said = bubbles(page)
    assert len(said) == 4
    page.reload()
    expect(page.get_by_test_id("turn-user")).to_have_count(2)
    assert bubbles(page) == said
    page.get_by_test_id("clear").click()
    page.reload()
    expect(page.get_by_text("Nothing said yet.")).to_be_visible()


def test_the_whole_conversation_is_sent(visit):
    page = visit("chat")
    sent = []
    page.on("request", lambda r: sent.append(r) if r.url.endswith("/completions") else None)
    say(page, "你好")
    say(page, "去哪里")
    first, answer, second, _ = bubbles(page)
    messages = sent[-1].post_data_json["messages"]
    assert [m["content"] for m in messages] == [first, answer, second]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]


def test_an_answer_is_asked_for_again_and_an_earlier_message_changed(visit):
    page = visit("chat")
    say(page, "你这汉子是谁？")
    say(page, "你要往哪里去？")
    before = bubbles(page)
    page.get_by_test_id("regenerate").click()
    wait_for_answer(page)
    assert bubbles(page)[:3] == before[:3]
    page.get_by_test_id("edit-turn").first.click()
    expect(page.get_by_test_id("edit-field")).to_be_focused()
    page.get_by_test_id("edit-field").fill("这酒多少钱一壶？")
    page.get_by_test_id("edit-save").click()
    expect(page.get_by_test_id("turn-user")).to_have_count(1)
    wait_for_answer(page)
    assert bubbles(page)[0] == "这酒多少钱一壶？"
    assert len(bubbles(page)) == 2


def test_enter_sends_but_not_with_shift_and_not_while_an_input_method_composes(visit):
    page = visit("chat")
    field = page.get_by_test_id("chat-input")
    field.focus()
    page.keyboard.insert_text("一")
    page.keyboard.press("Shift+Enter")
    page.keyboard.insert_text("二")
    expect(field).to_have_value("一\n二")
    devtools = page.context.new_cdp_session(page)
    compose = {"text": "ni hao", "selectionStart": 6, "selectionEnd": 6}
    devtools.send("Input.imeSetComposition", compose)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("turn-user")).to_have_count(0)
    devtools.send("Input.insertText", {"text": "你好"})
    assert field.input_value().replace("\n", "") == "一二你好"
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("turn-user")).to_have_count(1)
    wait_for_answer(page)


def test_markup_stays_text(visit):
    page = visit("chat")
    say(page, HOSTILE)
    assert bubbles(page)[0] == HOSTILE
    page.reload()
    expect(page.get_by_test_id("turn-user").locator(".bubble")).to_have_text(HOSTILE)
    expect(page.locator("main img")).to_have_count(0)
    assert page.title() != "owned"


def test_the_keyboard_alone_is_enough(visit):
    page = visit("chat")
    tab_to(page, "chat-input")
    page.keyboard.insert_text("你叫什么名字？")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("turn-assistant")).to_have_count(1)
    wait_for_answer(page)
    page.get_by_role("heading", level=1).focus()
    tab_to(page, "edit-turn")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("edit-turn")).to_be_focused()
    tab_to(page, "clear")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("turn-user")).to_have_count(0)
    expect(page.get_by_test_id("chat-input")).to_be_focused()
