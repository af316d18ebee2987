from __future__ import annotations

import pytest
from playwright.sync_api import sync_playwright

from .driver import Watch, launch, running_server


@pytest.fixture(scope="session")
def server():
    """The address of a server with the bundled models."""
    with running_server() as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Opens a page of the app; afterwards nothing may have been complained about, or left here."""
    contexts = []
    watches = []

    def open_page(path="fill", address=None, expected=(), width=1280, locale="en-US", **options):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, locale=locale, **options
        )
        contexts.append(context)
        watch = Watch(expected=expected)
        watches.append(watch)
        page = context.new_page()
        watch.attach(page)
        page.goto(f"{address or server}/#/{path}")
        page.wait_for_selector("h1")
        return page

    yield open_page
    for context in contexts:
        context.close()
    for watch in watches:
        watch.check()
