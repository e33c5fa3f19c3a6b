"""A headless Chromium for tests and pictures of the console: this machine's own, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VIEWS = ("windows", "monitor", "logs", "trouble", "pipeline")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def needed() -> str:
    """Chromium's path; the test is skipped where there is none, but not in CI."""
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has no Chromium: .ci/chromium.sh installs it")
        pytest.skip("no Chromium here: install Debian's chromium to test the console's page")
    return CHROMIUM


@contextmanager
def chromium(path: str) -> Iterator[Any]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """What a page complains of, and whom it talks to."""

    def __init__(self, page: Any) -> None:
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))


def shoot(
    browser: Any, url: str, folder: Path, *, width: int = 1360, height: int = 860, pause_ms: int = 1000
) -> list[Path]:
    """Every view in both themes."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for theme in ("light", "dark"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
        for view in VIEWS:
            page.goto(f"{url}#{view}")
            page.wait_for_selector(f"#tab-{view}[aria-current]")
            page.wait_for_selector("#live[data-kind=live]")
            page.wait_for_timeout(pause_ms)
            if view in ("logs", "trouble"):
                page.locator(".row:not(.unread)").nth(1).click()
            if view == "pipeline":
                page.click("#put")
                page.wait_for_selector(".trace li")
            page.wait_for_timeout(pause_ms)
            made.append(folder / f"{view}-{theme}.png")
            page.screenshot(path=made[-1])
        page.close()
    return made
