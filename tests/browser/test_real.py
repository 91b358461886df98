"""The dashboard before a relay that is real, with `zrc-relay bench` as its clients."""

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect

from stub import ROOT

BIN = Path(os.environ.get("ZRC_BIN", ROOT / "target" / "debug" / "zrc-relay"))
PATIENCE_S = 60


class Relay:
    """A relay with an admin API on a free port, until it is stopped."""

    def __init__(self, folder, admin=True):
        self.folder = folder
        self.port = 0
        self.child = None
        self.admin = admin
        (folder / "state").mkdir(mode=0o700)
        self.tokens = {role: self.token("new", "--name", f"{role}-of-test", "--role", role) for role in ("full", "read")}
        self.start()

    def start(self):
        # The same port again after a restart: the page is still open.
        listen = f'[admin]\nlisten_addr = "127.0.0.1"\nlisten_port = {self.port}\n' if self.admin else ""
        (self.folder / "relay.toml").write_text(
            f'state_dir = "{self.folder}/state"\n'
            '[relay]\nlisten_addr = "127.0.0.1"\nlisten_port = 0\nself_certified = true\n'
            f"[ops]\nlisten_port = 0\n{listen}"
        )
        self.said = []
        self.child = subprocess.Popen(
            [BIN, "serve", "--config", self.folder / "relay.toml"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        listening = threading.Event()

        def read():
            for line in self.child.stderr:
                self.said.append(line)
                if line.startswith("clients: "):
                    listening.set()
            listening.set()

        threading.Thread(target=read, daemon=True).start()
        assert listening.wait(PATIENCE_S) and self.child.poll() is None, "".join(self.said)
        self.ops = self.find(r"^ops on (http://\S+)")
        if self.admin:
            self.url = self.find(r"^admin API and dashboard on (http://[^\s,]+)")
            self.port = int(self.url.split(":")[2].strip("/"))

    def find(self, pattern):
        for line in self.said:
            if found := re.search(pattern, line):
                return found[1].rstrip("/") + "/"
        raise AssertionError(f"no {pattern} in {self.said}")

    def token(self, *arguments):
        """What `zrc-relay admin token` prints."""
        command = [BIN, "admin", "token", *arguments, "--state-dir", self.folder / "state"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self):
        self.child.kill()
        self.child.wait()

    def bench(self, pairs=2, secs=300):
        """Clients that send for a long time; ended by whoever asked for them."""
        # Slowly: whoever else runs tests on this machine would like some of it.
        arguments = ["--pairs", str(pairs), "--rate", "200", "--size", "1000", "--secs", str(secs)]
        return subprocess.Popen(
            [BIN, "bench", "--relay", self.folder / "state" / "relay.json", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def relay(tmp_path):
    relay = Relay(tmp_path)
    yield relay
    relay.stop()


@pytest.fixture
def clients(relay):
    child = relay.bench()
    yield child
    child.kill()
    child.wait()


def sign_in(visit, relay, then="#/overview", role="full"):
    page = visit.page
    page.goto(relay.url + then)
    page.get_by_label("Admin token").fill(relay.tokens[role])
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#state")).to_have_text("Ready")
    return page


def used_bytes(row):
    """What the column says has been used."""
    number, unit = row.locator(".text").text_content().split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_allocation_lives_moves_bytes_is_killed_and_is_gone(relay, clients, visits, scheme):
    visit = visits(relay.url, scheme=scheme)
    # The details are asked for once more before they are known to have ended.
    visit.expect_fault("status of 404")
    page = sign_in(visit, relay)
    expect(page.locator("#now-allocations")).to_have_text("2")
    expect(page.locator("#now-bytes")).to_have_text(re.compile(r"^\d.* kB/s$"))
    expect(page.locator("#plot-bytes canvas")).to_be_visible()
    # One that the relay has signed itself, for a year less the day that it is backdated.
    expect(page.locator("#facts")).to_contain_text(re.compile(r"self-signed, until 20\d\d-\d\d-\d\d \(36[34] d"))
    visit.accessible("overview")
    visit.picture("real-overview")

    page.get_by_role("link", name="Allocations").click()
    rows = page.locator("#rows tr")
    expect(rows).to_have_count(2)
    row = rows.first
    before = used_bytes(row)
    expect(row).to_contain_text("paired")
    expect(row.locator("td").nth(3)).to_have_text(re.compile(r"^\d.*B/s$"))
    page.wait_for_function(
        "before => document.querySelector('#rows tr .text').textContent !== before", arg=row.locator(".text").text_content()
    )
    assert used_bytes(row) > before > 0

    id = row.get_attribute("data-key")
    row.get_by_role("button", name="Details").click()
    expect(page.locator("#legs li")).to_have_count(2)
    expect(page.locator("#legs")).to_contain_text("127.0.0.1:")
    expect(page.locator("#plot-detail .legend b").first).to_have_text(re.compile(r"^[1-9].*B$"))
    visit.accessible("details")
    visit.picture("real-details")
    page.locator("#detail-kill").click()
    expect(page.locator("#kill-id")).to_have_text(id)
    page.locator("#kill-reason").fill("by a <b>test</b>")
    visit.picture("real-kill")
    page.get_by_role("button", name="Kill it").click()
    expect(page.locator("#told")).to_contain_text("has been killed")
    expect(page.locator(f"#rows tr[data-key='{id}']")).to_have_count(0)
    expect(page.locator("#detail-said")).to_contain_text("KILLED")

    page.get_by_role("link", name="Activity").click()
    expect(page.locator("#events")).to_contain_text(f"{id}: KILLED after")
    expect(page.locator("#audit tr").first).to_contain_text(f"{id}: by a <b>test</b>")
    expect(page.locator("#audit tr").first).to_contain_text("full-of-test")
    page.get_by_label("Log this from now on").fill("info,zrc_relay::relay=debug")
    page.keyboard.press("Enter")
    expect(page.locator("#log-now")).to_contain_text("zrc_relay::relay=debug")
    expect(page.locator("#audit tr").first).to_contain_text("info,zrc_relay::relay=debug")
    visit.accessible("activity")
    visit.picture("real-activity")


def test_a_network_is_blocked_and_let_in_again(relay, visits):
    visit = visits(relay.url)
    visit.expect_fault("status of 400")
    page = sign_in(visit, relay, "#/guard")
    expect(page.locator("#level")).to_have_text("normal")
    expect(page.locator("#blocks-empty")).to_have_text("Nobody is kept out.")
    visit.picture("real-guard-empty")
    network = page.get_by_label("Address or network")
    network.fill("300.1.2.3")
    page.get_by_role("button", name="Block", exact=True).click()
    expect(page.locator("#block-said")).not_to_be_empty()
    network.fill("203.0.113.77/24")
    page.get_by_label("Reason", exact=True).fill("<i>scans</i>")
    page.get_by_role("button", name="Block", exact=True).click()
    row = page.locator("#blocks tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("203.0.113.0/24")
    expect(row).to_contain_text("<i>scans</i>")
    expect(page.locator("#nav-blocks")).to_have_text("1")
    visit.accessible("guard")
    visit.picture("real-guard")
    row.get_by_role("button").click()
    page.get_by_role("button", name="Unblock it").click()
    expect(row).to_have_count(0)
    page.get_by_role("link", name="Activity").click()
    expect(page.locator("#audit tr")).to_have_count(2)


def test_a_blocked_client_is_gone(relay, clients, visits):
    page = sign_in(visits(relay.url), relay, "#/allocations")
    expect(page.locator("#rows tr")).to_have_count(2)
    page.get_by_role("link", name="Guard").click()
    page.get_by_label("Address or network").fill("127.0.0.0/8")
    page.get_by_role("button", name="Block", exact=True).click()
    page.get_by_role("link", name="Overview").click()
    expect(page.locator("#now-connections")).to_have_text("0")


def test_the_relay_is_drained_and_taken_back(relay, clients, visits):
    visit = visits(relay.url)
    page = sign_in(visit, relay)
    page.get_by_role("button", name="Drain …", exact=True).click()
    page.get_by_label("Deadline").fill("600")
    page.get_by_role("button", name="Drain it").click()
    expect(page.locator("#state")).to_have_text("Draining")
    expect(page.locator("#notice")).to_contain_text("allocations end at")
    visit.accessible("draining")
    page.get_by_role("button", name="Stop draining …").click()
    page.get_by_role("button", name="Stop draining", exact=True).click()
    expect(page.locator("#state")).to_have_text("Ready")


def test_wrong_tokens_are_refused_and_then_throttled(relay, visits):
    visit = visits(relay.url)
    visit.expect_fault("status of (401|429)")
    page = visit.page
    page.goto(relay.url)
    said = page.locator("#sign-in-said")
    for guess in range(11):
        page.get_by_label("Admin token").fill(f"zrc_admin_guess{guess}")
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in-button")).not_to_have_text("One moment …")
    expect(said).to_contain_text("Too many wrong tokens came from this address.")
    expect(page.locator("#sign-in-button")).to_be_disabled()
    visit.picture("real-throttled")
    # A right one is always good.
    page.reload()
    sign_in(visit, relay)


def test_a_token_that_may_only_look(relay, visits):
    visit = visits(relay.url)
    page = sign_in(visit, relay, "#/guard", role="read")
    expect(page.locator("#role")).to_be_visible()
    expect(page.locator("#block-add")).to_be_disabled()
    expect(page.get_by_role("button", name="Drain …")).to_be_disabled()
    page.get_by_role("link", name="Activity").click()
    expect(page.locator("#log-now")).to_have_text("info")
    expect(page.locator("#log")).to_be_hidden()


def test_a_token_that_is_revoked_is_out(relay, visits):
    visit = visits(relay.url)
    visit.expect_fault("status of 401")
    page = sign_in(visit, relay, "#/allocations")
    relay.token("revoke", "full-of-test")
    expect(page.locator("#sign-in-said")).to_contain_text("You have been signed out")
    expect(page.locator("#views")).to_be_hidden()


def test_the_relay_is_killed_and_comes_back(relay, visits):
    visit = visits(relay.url)
    visit.expect_fault("ERR_")
    page = sign_in(visit, relay)
    relay.child.send_signal(signal.SIGKILL)
    relay.child.wait()
    expect(page.locator("#state")).to_have_text("Not answering")
    expect(page.locator("#notice")).to_contain_text("No answer from the relay.")
    relay.start()
    expect(page.locator("#state")).to_have_text("Ready", timeout=30_000)
    expect(page.locator("#notice")).to_be_hidden()


def test_the_ops_port_has_the_status_page_and_says_where_the_dashboard_is(tmp_path, visits):
    relay = Relay(tmp_path, admin=False)
    try:
        for scheme in ("light", "dark"):
            visit = visits(relay.ops, scheme=scheme)
            page = visit.page
            page.goto(relay.ops)
            expect(page.locator("#state")).to_have_text("Ready")
            expect(page.locator("#plot-bytes canvas")).to_be_visible()
            visit.accessible("status page")
            visit.picture("status")
        visit.expect_fault("status of 404")
        page.get_by_role("link", name="Dashboard").click()
        page.get_by_label("Admin token").fill("zrc_admin_x")
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in-said")).to_contain_text("The admin API does not answer here. It is off by default")
    finally:
        relay.stop()
