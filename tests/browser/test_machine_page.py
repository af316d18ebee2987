"""The picture of the machine, beside what the server says of it."""

import re

import pytest
from playwright.sync_api import expect

from .driver import ANSWER_MS, status_of, tab_to, wait_until

pytestmark = pytest.mark.browser


def test_every_layer_of_every_model_is_shown(visit, server):
    page = visit("machine")
    plans = page.evaluate("fetch('/api/plan').then(answer => answer.json())")["models"]
    assert set(plans) == {model["name"] for model in status_of(server)["models"]}
    for name, plan in plans.items():
        page.get_by_test_id(f"machine-{name}").click()
        for phase, placements in plan["phases"].items():
            page.get_by_test_id(f"phase-{phase}").click()
            blocks = page.locator("[data-block]")
            expect(blocks).to_have_count(len(placements))
            idle = [p["block"] for p in placements if p["computed_on"] is None]
            expect(page.locator("[data-block].idle")).to_have_count(len(idle))
            expect(page.locator("[data-block].in-ram")).to_have_count(len(placements))


def test_a_block_tells_its_size_to_pointer_and_keyboard(visit):
    page = visit("machine")
    line = page.get_by_test_id("block-line")
    page.locator("[data-block='decoder.0']").hover()
    expect(line).to_contain_text(re.compile(r"^decoder\.0: \d\.\d MiB in RAM"))
    tab_to(page, "phase-decode")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator(":focus")).to_have_attribute("data-block", "decoder.1")
    expect(line).to_contain_text("decoder.1")


def test_speed_is_live_while_something_is_written(visit):
    page = visit("machine")
    page.get_by_test_id("machine-cpm1-mini").click()
    idle = re.compile(r"^0 of \d+ slots writing")
    expect(page.get_by_test_id("slots")).to_contain_text(idle)
    page.evaluate(
        """() => void fetch("/v1/completions", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ model: "cpm1-mini", prompt: "话说", n: 3, max_tokens: 200 }),
        }).then(answer => answer.json()).then(answer => (window.answered = answer.object))"""
    )
    expect(page.get_by_test_id("slots")).not_to_contain_text(idle, timeout=ANSWER_MS)
    expect(page.locator(".model[aria-pressed=true]")).not_to_contain_text(
        "0.0 tokens/s", timeout=ANSWER_MS
    )
    wait_until(page, lambda: page.evaluate("window.answered") == "text_completion")
    expect(page.get_by_test_id("slots")).to_contain_text(idle, timeout=ANSWER_MS)


def test_memory_is_shown_as_a_whole(visit, server):
    page = visit("machine")
    total = status_of(server)["host"]["total_ram_bytes"]
    expect(page.get_by_test_id("memory")).to_contain_text(f"{total / 2**30:.1f} GiB")
    for part in ("weights", "cache", "free"):
        expect(page.get_by_test_id("memory")).to_contain_text(part)


def test_a_hidden_page_asks_for_nothing(visit):
    page = visit("machine")
    expect(page.get_by_test_id("layers")).to_be_visible()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { value: true, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.wait_for_timeout(100)
    asked.clear()
    page.wait_for_timeout(2500)
    assert asked == []
    with page.expect_request("**/api/status"):
        page.evaluate(
            """() => {
              Object.defineProperty(document, "hidden", { value: false, configurable: true });
              document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
