"""A browser whose pages may ask one server alone, and in which every fault that it reports fails the test."""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from stub import ROOT, Stub

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
CHROMIUM = os.environ.get("ZRC_CHROMIUM", "/usr/bin/chromium")
AXE = Path(os.environ.get("ZRC_AXE", TARGET / "dashboard" / "node_modules" / "axe-core" / "axe.min.js"))
PICTURES = TARGET / "dashboard" / "pictures"
WAIT_MS = 15_000
VIOLATIONS = """
    addEventListener("securitypolicyviolation", (event) =>
        console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""

expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="session")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
        )
        yield browser
        browser.close()


class Visit:
    """A page, and what the browser had to say of it."""

    def __init__(self, chromium, scheme="light", width=1280, height=900):
        self.context = chromium.new_context(
            color_scheme=scheme,
            viewport={"width": width, "height": height},
            reduced_motion="reduce",
        )
        self.context.set_default_timeout(WAIT_MS)
        self.scheme = scheme
        self.faults = []
        self.expected = []
        self.asked = []
        self.page = self.context.new_page()
        self.page.add_init_script(VIOLATIONS)
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def hear(self, message):
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text} ({message.location.get('url')})")

    def expect_fault(self, pattern):
        """The browser may say this, as it does when an answer has an error's status."""
        self.expected.append(re.compile(pattern))

    def picture(self, name):
        """For people to look at, under target/."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        # The pointer would leave a mark on whatever is below it.
        self.page.mouse.move(0, 0)
        self.page.screenshot(path=PICTURES / f"{name}-{self.scheme}.png", full_page=True)

    def accessible(self, where):
        """axe-core finds nothing serious."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert found["passes"], "axe-core has looked at nothing"
        serious = [
            f"{rule['id']} ({rule['impact']}): {rule['help']}: {[node['html'][:200] for node in rule['nodes'][:3]]}"
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
        ]
        assert not serious, f"{where}:\n" + "\n".join(serious)

    def close(self, origin):
        self.context.close()
        bad = [fault for fault in self.faults if not any(pattern.search(fault) for pattern in self.expected)]
        assert not bad, bad
        elsewhere = [url for url in self.asked if not url.startswith(origin)]
        assert not elsewhere, elsewhere
        named = [url for url in self.asked if "zrc_admin" in url]
        assert not named, f"a token in an address: {named}"


@pytest.fixture
def visits(chromium):
    """Opens pages: `visits(origin)`. At the end none may have had a fault."""
    open_ones = []

    def visit(origin, **how):
        opened = Visit(chromium, **how)
        open_ones.append((opened, origin))
        return opened

    yield visit
    for opened, origin in open_ones:
        opened.close(origin)


@pytest.fixture
def stub():
    server = Stub()
    yield server
    server.stop()
