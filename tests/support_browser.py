"""A real Chromium without a window, and what the tests ask of a page in it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]
PATIENCE = 60_000.0  #: milliseconds that a page may take on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for a module: Playwright's loop is in the way of others' asyncio.run while it is there."""
    found = shutil.which("chromium")
    assert found is not None, "the mark `needs` has seen it"
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=found, args=FLAGS, timeout=2 * PATIENCE)
        yield one
        one.close()


class Tab:
    """A page in a context of its own, with what its console said.

    :ivar complaints: errors and warnings of the console, exceptions of scripts.
    """

    def __init__(self, context: BrowserContext) -> None:
        self.context, self.complaints = context, list[str]()
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}")
                     if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))

    def text(self, selector: str) -> str:
        """The text of the first match."""
        return str(self.page.locator(selector).first.inner_text())

    def wait(self, expression: str, what: str) -> None:
        """Wait for a JavaScript expression to be true."""
        deadline = time.monotonic() + PATIENCE / 1000
        # not wait_for_function: the page's policy lets nobody eval
        while not self._evaluate(expression):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {PATIENCE / 1000:g} s; the page says\n"
                                     f"{self.page.inner_text('body')[:3000]}\n{self.complaints}")
            self.page.wait_for_timeout(100)

    def _evaluate(self, expression: str) -> Any:
        """Its value; None if the page is just being left."""
        try:
            return self.page.evaluate(expression)
        except Error as error:
            if "navigat" not in error.message:
                raise
            return None

    def wait_text(self, selector: str, text: str) -> None:
        """Wait until an element that matches contains a text."""
        self.wait(f"[...document.querySelectorAll({json.dumps(selector)})].some("
                  f"(one) => one.textContent.includes({json.dumps(text)}))", f"{selector} contains {text!r}")

    def violations(self) -> list[str]:
        """What axe-core finds that is serious or critical."""
        if not AXE.exists():
            pytest.fail("axe-core is missing: tests/run fetches it, or: npm ci --prefix tests")
        self.page.evaluate(AXE.read_text())
        found: list[dict[str, Any]] = self.page.evaluate("axe.run(document).then((found) => found.violations)")
        return [f"{one['id']} ({one['impact']}): {one['help']}: {[node['html'][:200] for node in one['nodes'][:5]]}"
                for one in found if one["impact"] in ("serious", "critical")]

    def overflow(self) -> float:
        """Pixels by which the page is wider than the window."""
        return float(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@pytest.fixture
def tabs(browser: Browser) -> Iterator[Any]:
    """Opens pages that are closed with the test: ``tabs(url, width=…, locale=…)``."""
    opened: list[BrowserContext] = []

    def make(url: str, *, width: int = 1280, height: int = 800, scheme: str = "light", locale: str = "en-GB",
             **options: Any) -> Tab:
        context = browser.new_context(viewport={"width": width, "height": height}, locale=locale,
                                      color_scheme=scheme, **options)  # type: ignore[arg-type]
        opened.append(context)
        tab = Tab(context)
        tab.page.goto(url)
        return tab

    yield make
    for context in opened:
        context.close()
