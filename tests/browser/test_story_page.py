"""Writing a story on in the browser."""

import pytest
from playwright.sync_api import expect

from .driver import model_status, tab_to, wait_for_answer, wait_until

pytestmark = pytest.mark.browser

OPENING = "却说那老汉推开门，只见"


def offered(page, opening=OPENING):
    """Three continuations, asked for with Tab."""
    page.get_by_test_id("length").select_option("short")
    editor = page.get_by_test_id("story-editor")
    editor.fill(opening)
    editor.press("Tab")
    cards = [page.get_by_test_id(f"choice-{i}") for i in range(3)]
    cards[0].wait_for()
    wait_for_answer(page)
    return editor, [card.locator(".text").inner_text() for card in cards]


def test_tab_offers_three_continuations_and_a_number_takes_one(visit):
    page = visit("story")
    editor, texts = offered(page)
    assert all(texts)
    assert len(set(texts)) == 3
    expect(editor).to_be_focused()
    page.keyboard.press("2")
    assert editor.input_value() == OPENING + texts[1]
    expect(page.get_by_test_id("choice-0")).to_have_count(0)


def test_a_pick_is_undone_and_redone(visit):
    page = visit("story")
    editor, texts = offered(page)
    page.get_by_test_id("choice-2").click()
    assert editor.input_value() == OPENING + texts[2]
    page.get_by_test_id("undo").click()
    expect(editor).to_have_value(OPENING)
    page.get_by_test_id("redo").click()
    assert editor.input_value() == OPENING + texts[2]
    page.keyboard.press("Control+z")
    expect(editor).to_have_value(OPENING)
    page.reload()
    expect(editor).to_have_value(OPENING)


def test_escape_dismisses_and_then_tab_leaves(visit):
    page = visit("story")
    editor, _ = offered(page)
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("choice-0")).to_have_count(0)
    expect(editor).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_test_id("offer")).to_be_focused()
    expect(page.get_by_test_id("choice-0")).to_have_count(0)


def test_numbers_are_only_text_while_nothing_is_offered(visit):
    page = visit("story")
    editor = page.get_by_test_id("story-editor")
    editor.fill("第")
    editor.press("1")
    expect(editor).to_have_value("第1")


def test_stop_frees_the_slots(visit, server):
    page = visit("story")
    page.get_by_test_id("length").select_option("long")
    page.get_by_test_id("story-editor").fill(OPENING)
    before = model_status(server, "cpm1-mini")["output_tokens_total"]
    page.get_by_test_id("offer").click()
    texts = page.locator(".card .text")
    wait_until(page, lambda: any(texts.all_inner_texts()))
    page.get_by_test_id("stop").click()
    expect(page.get_by_test_id("offer")).to_be_visible()

    def is_idle():
        model = model_status(server, "cpm1-mini")
        return model["num_running"] == model["num_waiting"] == 0

    wait_until(page, is_idle)

    def written():
        return model_status(server, "cpm1-mini")["output_tokens_total"] - before

    wait_until(page, lambda: written() > 0)
    assert written() < 3 * 160
    # What had come is there to be picked.
    assert any(texts.all_inner_texts())


def test_markup_stays_text(visit):
    page = visit("story")
    opening = "<img src=x onerror=document.title='owned'>说道："
    editor, texts = offered(page, opening)
    page.keyboard.press("1")
    assert editor.input_value() == opening + texts[0]
    expect(page.locator("main img")).to_have_count(0)
    assert page.title() != "owned"


def test_the_keyboard_alone_is_enough(visit):
    page = visit("story")
    tab_to(page, "story-editor")
    page.keyboard.press("Escape")
    tab_to(page, "length")
    page.keyboard.press("s")
    page.get_by_test_id("story-editor").focus()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(OPENING)
    page.keyboard.press("Tab")
    page.get_by_test_id("choice-0").wait_for()
    wait_for_answer(page)
    page.keyboard.press("Escape")
    tab_to(page, "offer")
    page.keyboard.press("Enter")
    page.get_by_test_id("choice-0").wait_for()
    wait_for_answer(page)
    page.get_by_role("heading", level=1).focus()
    tab_to(page, "model")
    page.get_by_test_id("offer").focus()
    tab_to(page, "choice-1")
    picked = page.get_by_test_id("choice-1").locator(".text").inner_text()
    page.keyboard.press("Enter")
    assert page.get_by_test_id("story-editor").input_value() == OPENING + picked
    expect(page.get_by_test_id("story-editor")).to_be_focused()
