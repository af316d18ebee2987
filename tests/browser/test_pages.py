"""What all pages share: loading, languages, themes, width, keyboard, the request that is shown."""

import json
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from .driver import PAGES, overflow, tab_to, wait_for_answer

pytestmark = pytest.mark.browser

TITLES = {
    "en-US": ("Fill in the blanks", "Chat", "Continue a story", "The machine"),
    "zh-CN": ("填空", "对话", "续写故事", "这台机器"),
}
READY = {"fill": "fill", "chat": "chat-input", "story": "offer", "machine": "layers"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", list(TITLES))
def test_the_four_pages_load_in_both_languages_and_themes(visit, locale, scheme):
    page = visit(locale=locale, color_scheme=scheme)
    for name, title in zip(PAGES, TITLES[locale], strict=True):
        page.get_by_test_id(f"nav-{name}").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        expect(page.get_by_test_id(READY[name])).to_be_visible()
        expect(page.get_by_test_id(f"nav-{name}")).to_have_attribute("aria-current", "page")
    assert page.locator("html").get_attribute("lang") == locale.removesuffix("-US")
    is_dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") < (
        "rgb(2"
    )
    assert is_dark == (scheme == "dark")


@pytest.mark.parametrize("locale", list(TITLES))
@pytest.mark.parametrize("name", PAGES)
def test_a_telephone_is_wide_enough(visit, name, locale):
    page = visit(name, width=360, locale=locale)
    expect(page.get_by_test_id(READY[name])).to_be_visible()
    page.locator("summary").click()
    assert overflow(page) == 0


def test_language_and_theme_are_kept(visit):
    page = visit(color_scheme="light")
    page.get_by_test_id("language").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("填空")
    page.get_by_test_id("theme").click()
    page.get_by_test_id("theme").click()
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("填空")
    assert page.locator("html").get_attribute("data-theme") == "dark"


@pytest.mark.parametrize("name", PAGES)
def test_the_shown_request_is_one_that_the_server_answers(visit, name):
    page = visit(name)
    if name == "chat":
        page.get_by_test_id("chat-input").fill("你说\"是\"'否'？")
    page.locator("summary").click()
    expect(page.get_by_test_id("snippet")).to_contain_text("curl")
    # A shell runs it as it stands there; only the length is cut, to be quick.
    command = page.get_by_test_id("snippet").inner_text()
    for length in ("256", "80", "64"):
        command = command.replace(f'"max_tokens": {length}', '"max_tokens": 4')
    shell = ["sh", "-c", command.replace("curl", "curl -sS --fail-with-body", 1)]
    answer = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=True).stdout
    if name == "machine":
        assert json.loads(answer)["models"]
    else:
        assert answer.rstrip().endswith("data: [DONE]")
        assert '"error"' not in answer


def test_the_shown_python_runs(visit):
    page = visit("fill")
    page.locator("summary").click()
    page.get_by_test_id("request-python").click()
    code = page.get_by_test_id("snippet").inner_text()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("次日清晨，")


def test_every_setting_reaches_the_request_and_can_be_reset(visit):
    page = visit("story")
    page.locator("summary").click()
    snippet = page.get_by_test_id("snippet")
    expect(snippet).not_to_contain_text("temperature")
    for field, value in (("temperature", "0.35"), ("top_k", "7"), ("seed", "11")):
        page.get_by_test_id(f"sampling-{field}").fill(value)
        page.get_by_test_id(f"sampling-{field}").press("Enter")
        expect(snippet).to_contain_text(f'"{field}": {value}')
    page.reload()
    page.locator("summary").click()
    expect(snippet).to_contain_text('"seed": 11')
    page.get_by_role("button", name="Reset").click()
    expect(snippet).not_to_contain_text("seed")


def test_the_keyboard_alone_leads_through_the_shell(visit):
    page = visit("fill")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the page")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    tab_to(page, "nav-story")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Continue a story")
    expect(page.get_by_role("heading", level=1)).to_be_focused()


def test_nothing_jumps_while_an_answer_is_streamed(visit):
    page = visit("fill")
    page.evaluate(
        """() => {
          window.shift = 0;
          new PerformanceObserver(list => list.getEntries().forEach(entry => {
            if (!entry.hadRecentInput) window.shift += entry.value;
          })).observe({ type: "layout-shift" });
        }"""
    )
    page.get_by_test_id("fill").click()
    wait_for_answer(page)
    page.get_by_test_id("nav-chat").click()
    page.get_by_test_id("chat-input").fill("你这汉子是谁？")
    page.get_by_test_id("chat-input").press("Enter")
    wait_for_answer(page)
    page.get_by_test_id("nav-story").click()
    page.get_by_test_id("length").select_option("short")
    page.get_by_test_id("offer").click()
    page.get_by_test_id("choice-0").wait_for()
    wait_for_answer(page)
    # A tenth is commonly held to be good; the words behind a blank that is filled do move.
    assert page.evaluate("window.shift") < 0.02
