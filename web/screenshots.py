"""Make docs/images/web-*.png anew from a server with the bundled models.

Usage: python web/screenshots.py ADDRESS, with playwright and Chromium installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
WIDE, NARROW = (1200, 720), (360, 740)
LANGUAGES = {"light": "en-US", "dark": "zh-CN"}
# What people would have typed and set before the picture; the seeds make it the same each time.
STORED = {
    "fill.text": "行了半日，只见前面一座__，十分__。师徒三人走到山门前，只听得里面有人叫道：“__！”",
    "sampling.fill": {"seed": 11},
    "sampling.chat": {"seed": 5},
    "sampling.write": {"seed": 9},
}


def main(address: str) -> None:
    """Take every picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        for scheme, locale in LANGUAGES.items():
            context = browser.new_context(
                viewport={"width": WIDE[0], "height": WIDE[1]}, color_scheme=scheme, locale=locale
            )
            suffix = "" if scheme == "light" else f"-{scheme}"
            for name, prepare in PICTURES.items():
                _take(context, address, name, prepare, f"web-{name}{suffix}.png")
            context.close()
        context = browser.new_context(
            viewport={"width": NARROW[0], "height": NARROW[1]}, locale="zh-CN"
        )
        _take(context, address, "fill", _fill, "web-fill-narrow.png")
        browser.close()


def _take(
    context: BrowserContext, address: str, name: str, prepare: Callable[[Page], None], file: str
) -> None:
    page = context.new_page()
    for key, value in STORED.items():
        script = (
            f"localStorage.setItem({json.dumps('martlet.' + key)}, {json.dumps(json.dumps(value))})"
        )
        page.add_init_script(script)
    page.goto(f"{address}/#/{name}")
    prepare(page)
    # The machine has no part of its own that scrolls, so it is shown to its end.
    page.screenshot(path=IMAGES / file, full_page=name == "machine")
    page.close()


def _wait(page: Page) -> None:
    # The button is there before the key or click that began the answer is done with.
    page.get_by_test_id("stop").wait_for(state="detached", timeout=60_000)


def _fill(page: Page) -> None:
    page.get_by_test_id("fill").click()
    _wait(page)
    page.get_by_test_id("blank-0").hover()
    page.get_by_test_id("popover").wait_for()


def _chat(page: Page) -> None:
    for text in ("你这汉子是谁？", "你要往哪里去？", "今日天气甚好，我们出去走走如何？"):
        page.get_by_test_id("chat-input").fill(text)
        page.get_by_test_id("chat-input").press("Enter")
        _wait(page)


def _story(page: Page) -> None:
    page.get_by_test_id("length").select_option("short")
    page.get_by_test_id("story-editor").fill("却说那老汉推开门，只见")
    page.get_by_test_id("story-editor").press("Tab")
    _wait(page)


def _machine(page: Page) -> None:
    page.get_by_test_id("machine-cpm2-mini").click()
    page.get_by_test_id("phase-decode").click()
    page.evaluate(
        """() => { for (let i = 0; i < 6; i++) void fetch("/v1/fill", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ model: "cpm2-mini", text: "却说__", alternatives: 8 }),
        }); }"""
    )
    page.wait_for_timeout(4000)
    page.locator("[data-block='decoder.3']").hover()


PICTURES: dict[str, Callable[[Page], None]] = {
    "fill": _fill,
    "chat": _chat,
    "story": _story,
    "machine": _machine,
}

if __name__ == "__main__":
    main(sys.argv[1])
