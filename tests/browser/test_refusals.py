"""What the pages show when the server refuses: without the key, and when it has too much to do."""

import re

import pytest
from playwright.sync_api import expect

from .driver import ANSWER_MS, model_status, running_server, wait_for_answer, wait_until

pytestmark = pytest.mark.browser

KEY = "sk-browser-test-0123456789"
# The browser itself logs these answers as errors.
REFUSED = ("status of 401", "status of 429")


@pytest.fixture(scope="module")
def narrow_server():
    """One model, one text at a time, none waiting, and a key."""
    with running_server("cpm1-mini", "--slots", "1", "--max-queue", "0", key=KEY) as address:
        yield address


@pytest.fixture
def unlocked(visit, narrow_server):
    page = visit("story", narrow_server, expected=REFUSED)
    page.get_by_test_id("key").fill("not the key")
    page.get_by_test_id("key").press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server did not accept this key.")
    page.get_by_test_id("key").fill(KEY)
    page.get_by_test_id("key").press("Enter")
    expect(page.get_by_test_id("key-prompt")).to_be_hidden()
    expect(page.get_by_test_id("state")).to_contain_text("ready")
    return page


def test_the_key_is_kept_in_the_tab_only_and_never_shown(unlocked):
    page = unlocked
    page.reload()
    expect(page.get_by_test_id("state")).to_contain_text("ready")
    assert KEY not in page.evaluate("JSON.stringify(localStorage)")
    page.locator("summary").click()
    expect(page.get_by_test_id("snippet")).to_contain_text("Bearer $MARTLET_API_KEY")
    assert KEY not in page.content()


def test_a_full_server_says_when_to_come_back(unlocked, narrow_server):
    page = unlocked
    page.get_by_test_id("length").select_option("short")
    page.evaluate(
        """key => void fetch("/v1/completions", {
          method: "POST",
          headers: { "Content-Type": "application/json", Authorization: `Bearer ${key}` },
          body: JSON.stringify({ model: "cpm1-mini", prompt: "话说", n: 4, max_tokens: 400 }),
        })""",
        KEY,
    )
    wait_until(page, lambda: model_status(narrow_server, "cpm1-mini", KEY)["num_running"] > 0)
    page.get_by_test_id("offer").click()
    expect(page.get_by_test_id("error")).to_contain_text("too much to do")
    retry = page.get_by_test_id("retry")
    expect(retry).to_be_disabled()
    expect(retry).to_contain_text(re.compile(r"^Try again in \d+ s$"))
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_test_id("error")).to_have_count(0)


def test_a_page_without_a_model_for_it_says_which_one_would_do(unlocked):
    page = unlocked
    page.get_by_test_id("nav-chat").click()
    expect(page.get_by_test_id("notice")).to_contain_text("eva-mini")
    expect(page.get_by_test_id("send")).to_be_disabled()


def test_what_was_refused_is_tried_again_after_the_wait(visit):
    page = visit("story", expected=REFUSED)
    page.get_by_test_id("length").select_option("short")
    refusal = {
        "status": 429,
        "headers": {"Retry-After": "2"},
        "json": {"error": {"message": "32 requests wait already", "code": "overloaded"}},
    }
    page.route("**/v1/completions", lambda route: route.fulfill(**refusal), times=1)
    page.get_by_test_id("offer").click()
    expect(page.get_by_test_id("error")).to_contain_text("32 requests wait already")
    retry = page.get_by_test_id("retry")
    expect(retry).to_be_disabled()
    expect(retry).to_be_enabled(timeout=ANSWER_MS)
    retry.click()
    page.get_by_test_id("choice-0").wait_for()
    wait_for_answer(page)
    expect(page.get_by_test_id("error")).to_have_count(0)
    assert all(page.locator(".card .text").all_inner_texts())
