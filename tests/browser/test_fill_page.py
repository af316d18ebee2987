"""Filling blanks in the browser."""

import pytest
from playwright.sync_api import expect

from .driver import ANSWER_MS, tab_to, wait_for_answer

pytestmark = pytest.mark.browser

TEXT = "次日清晨，__，众人都到堂前__。"
HOSTILE = "<img src=x onerror=document.title='owned'>__<script>document.title='owned'</script>__好"


def filled(page):
    """Fill what stands there, and wait for both answers."""
    page.get_by_test_id("fill").click()
    page.get_by_test_id("fill-result").wait_for()
    wait_for_answer(page)
    chips = [page.get_by_test_id(f"blank-{i}") for i in range(2)]
    for chip in chips:
        expect(chip).not_to_be_empty()
    return chips


def test_blanks_are_filled_in_their_place(visit):
    page = visit()
    first, second = filled(page)
    text = page.get_by_test_id("fill-result").inner_text().strip()
    assert text == f"次日清晨，{first.inner_text()}，众人都到堂前{second.inner_text()}。"
    expect(page.get_by_test_id("speed")).to_contain_text("tokens/s")


def test_another_answer_can_be_picked_and_one_blank_asked_for_again(visit):
    page = visit()
    first, second = filled(page)
    kept = second.inner_text()
    first.hover()
    options = page.get_by_test_id("option")
    expect(options).not_to_have_count(0)
    assert all(text.endswith("%") for text in options.all_inner_texts())
    options.last.click()
    picked = options.last.locator(".text").inner_text()
    expect(first).to_have_text(picked)

    sent = []
    page.on("request", lambda request: sent.append(request))
    page.get_by_test_id("reroll").click()
    wait_for_answer(page)
    expect(first).not_to_be_empty()
    expect(second).to_have_text(kept)
    body = next(r for r in sent if r.url.endswith("/v1/fill")).post_data_json
    assert body["text"] == f"次日清晨，__，众人都到堂前{kept}。"


def test_the_same_seed_fills_the_same(visit):
    page = visit()
    page.get_by_test_id("sampling-seed").fill("5")
    page.get_by_test_id("sampling-seed").press("Enter")
    once = [chip.inner_text() for chip in filled(page)]
    assert [chip.inner_text() for chip in filled(page)] == once


def test_blanks_are_set_by_typing_and_by_the_button(visit):
    page = visit()
    editor = page.get_by_test_id("fill-editor")
    editor.fill("")
    editor.press_sequentially("今天__真好，我们去")
    expect(page.locator(".mirror mark")).to_have_count(1)
    page.get_by_test_id("set-blank").click()
    expect(page.locator(".mirror mark")).to_have_count(2)
    expect(editor).to_have_value("今天__真好，我们去__")
    expect(editor).to_be_focused()
    # What the button did is undone like typing.
    page.keyboard.press("Control+z")
    expect(editor).to_have_value("今天__真好，我们去")
    editor.fill("没有空")
    expect(page.get_by_test_id("fill")).to_be_disabled()
    expect(page.get_by_test_id("speed")).to_contain_text("at least one blank")


def test_a_text_can_be_edited_again_with_or_without_the_answers(visit):
    page = visit()
    first, second = filled(page)
    whole = f"次日清晨，{first.inner_text()}，众人都到堂前{second.inner_text()}。"
    page.get_by_test_id("edit").click()
    expect(page.get_by_test_id("fill-editor")).to_have_value(TEXT)
    first, second = filled(page)
    whole = f"次日清晨，{first.inner_text()}，众人都到堂前{second.inner_text()}。"
    page.get_by_role("button", name="Keep as text").click()
    expect(page.get_by_test_id("fill-editor")).to_have_value(whole)


def test_examples_are_one_click_away(visit):
    page = visit()
    page.get_by_test_id("examples").get_by_role("button").nth(1).click()
    expect(page.get_by_test_id("fill-editor")).to_have_value("却说宋江见了，心中__，便道：“__？”")


def test_markup_stays_text(visit):
    page = visit()
    page.get_by_test_id("fill-editor").fill(HOSTILE)
    filled(page)
    expect(page.get_by_test_id("fill-result")).to_contain_text("<img src=x onerror=")
    expect(page.get_by_test_id("fill-result").locator("img, script")).to_have_count(0)
    assert page.title() != "owned"


def test_markup_that_a_model_writes_stays_text(visit):
    page = visit()
    answer = (
        '{"object":"fill.chunk","blank":0,"text":"<img src=x onerror=document.title=1>"}',
        '{"object":"fill.chunk","blank":1,"text":"<b>b</b>"}',
        "[DONE]",
    )
    stream = "".join(f"data: {event}\n\n" for event in answer)
    page.route(
        "**/v1/fill",
        lambda route: route.fulfill(content_type="text/event-stream", body=stream),
    )
    first, second = filled(page)
    expect(first).to_have_text("<img src=x onerror=document.title=1>")
    expect(second).to_have_text("<b>b</b>")
    expect(page.get_by_test_id("fill-result").locator("img, b")).to_have_count(0)


def test_the_keyboard_alone_is_enough(visit):
    page = visit()
    tab_to(page, "fill-editor")
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("那大王听了，")
    page.keyboard.press("Control+b")
    page.keyboard.insert_text("，便")
    page.keyboard.press("Control+b")
    page.keyboard.insert_text("。")
    page.keyboard.press("Control+Enter")
    page.get_by_test_id("fill-result").wait_for()
    wait_for_answer(page)
    tab_to(page, "blank-0")
    expect(page.get_by_test_id("popover")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("option").first).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_test_id("reroll")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("blank-0")).to_be_focused()
    tab_to(page, "edit")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("fill-editor")).to_be_focused(timeout=ANSWER_MS)
    expect(page.get_by_test_id("fill-editor")).to_have_value("那大王听了，__，便__。")
