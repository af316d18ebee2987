"""A real server, a real browser, and what a page did that it must not do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Playwright, Request

PAGES = ("fill", "chat", "story", "machine")
START_SECONDS = 120
# Answers of the small models take a second or two; a busy machine is no failure.
ANSWER_MS = 60_000


@contextmanager
def running_server(*arguments: str, key: str | None = None) -> Iterator[str]:
    """The address of a server whose models are loaded; it is told to stop afterwards."""
    command = [sys.executable, "-m", "martlet", "serve", "--port", "0", "--json", *arguments]
    environment = {**os.environ, **({"MARTLET_API_KEY": key} if key else {})}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield _address_when_ready(process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()


def _address_when_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "ready":
            assert all(model["state"] == "ready" for model in event["models"]), event
            return str(event["address"])
    raise AssertionError(f"the server ended with {process.wait()} before it was ready")


def status_of(address: str, key: str = "") -> dict[str, Any]:
    request = urllib.request.Request(f"{address}/api/status")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        status: dict[str, Any] = json.load(answer)
    return status


def model_status(address: str, name: str, key: str = "") -> dict[str, Any]:
    models = status_of(address, key)["models"]
    return next(model for model in models if model["name"] == name)


def wait_until(page: Page, is_true: Callable[[], bool]) -> None:
    """Ask again and again; the policy of the page forbids to leave that to a script in it."""
    deadline = time.monotonic() + ANSWER_MS / 1000
    while not is_true():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        page.wait_for_timeout(50)


def launch(playwright: Playwright) -> Browser:
    """Chromium that finds no host but this one."""
    return playwright.chromium.launch(
        executable_path="/usr/bin/chromium",
        args=[
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ],
    )


@dataclass
class Watch:
    """What a page asked for and complained about."""

    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def attach(self, page: Page) -> None:
        page.on("request", self._request)
        page.on("console", lambda message: self._complain(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(f"pageerror: {error}"))
        page.expose_function("reportViolation", lambda text: self.complaints.append(f"CSP: {text}"))
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation', e =>"
            " reportViolation(`${e.violatedDirective} ${e.blockedURI}`))"
        )

    def _request(self, request: Request) -> None:
        self.hosts.add(urlsplit(request.url).hostname or request.url)

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(part in text for part in self.expected):
            self.complaints.append(f"{kind}: {text}")

    def check(self) -> None:
        assert self.complaints == []
        assert self.hosts == {"127.0.0.1"}


def wait_for_answer(page: Page) -> None:
    """Until the answer that was just asked for is complete."""
    page.get_by_test_id("stop").wait_for(state="detached", timeout=ANSWER_MS)


def overflow(page: Page) -> int:
    """By how many pixels a page is wider than its window."""
    return int(
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


def tab_to(page: Page, test_id: str, limit: int = 60) -> None:
    """Press Tab until something has the focus; fails if it cannot be reached."""
    for _ in range(limit):
        if page.evaluate("document.activeElement?.dataset.testid") == test_id:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not lead to {test_id}")
