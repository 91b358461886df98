"""fail2ban and CrowdSec, Debian's own, read the log of a relay that has just been attacked, and blame whom they should.

`tests/run.sh bans` unpacks both below target/ without installing them, and says where in ZRC_BAN_TOOLS.
"""

import json
import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from client import Refusal, connect
from conftest import LOCAL
from wire import DEVICE, Grant

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TOOLS = os.environ.get("ZRC_BAN_TOOLS")
pytestmark = pytest.mark.skipif(not TOOLS, reason="run by `tests/run.sh bans`")

CONFIG = LOCAL + """\
[security]
log_addresses = {addresses}
log_lines_per_sec = 100
[guard]
exempt_loopback = {exempt}
allocation_requests_per_minute = 5
"""
ATTACKS = 7
FORMS = ["text", "json", "syslog"]


async def attack(relay, grant, token=None):
    """A connection that is refused."""
    async with connect(relay) as leg:
        with pytest.raises(Refusal):
            await leg.hello(grant, DEVICE, token)


async def expired(relay):
    await attack(relay, Grant(relay.relay_id, expires_at=1))


async def forged(relay):
    grant = Grant(relay.relay_id)
    token = bytearray(grant.token())
    token[170] ^= 1
    await attack(relay, grant, bytes(token))


@pytest.fixture
def attacked(configured):
    """The log of a relay that was attacked from 127.0.0.1."""

    async def run(tmp_path, form, attacks, addresses=True, exempt=True):
        process = configured(
            CONFIG.format(addresses=str(addresses).lower(), exempt=str(exempt).lower()),
            "--log-format",
            "json" if form == "json" else "text",
        )
        for one in attacks:
            await one(process.relay)
        process.stop()
        lines = [line for line in process.said if "security" in line]
        others = [line for line in process.said if "security" not in line]
        assert others, "the relay says where it listens"
        if form == "syslog":
            lines = [f"Nov 20 12:00:00 host zrc-relay[77]: {line}" for line in lines]
        log = tmp_path / f"{form}.log"
        log.write_text("".join(others[:2] + lines + others[2:]))
        return log

    return run


def fail2ban(log):
    """The addresses that the filter finds in the log, one for each failure."""
    root = Path(TOOLS) / "fail2ban"
    filters = root / "etc/fail2ban/filter.d"
    shutil.copy(DEPLOY / "fail2ban/zrc-relay.filter.conf", filters / "zrc-relay.conf")
    done = subprocess.run(
        ["python3", root / "usr/bin/fail2ban-regex", "-c", root / "etc/fail2ban", "-o", "id", log, filters / "zrc-relay.conf"],
        env={**os.environ, "PYTHONPATH": str(root / "usr/lib/python3/dist-packages")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


class LocalApi:
    """As much of CrowdSec's local API as its agent needs to report what it has found."""

    def __init__(self):
        api = self
        self.alerts = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"null")
                if self.path == "/v1/watchers/login":
                    answer = {"code": 200, "expire": "2100-01-01T00:00:00Z", "token": "t"}
                elif self.path == "/v1/alerts":
                    api.alerts += body
                    answer = ["1"] * len(body)
                else:
                    answer = {}
                payload = json.dumps(answer).encode()
                self.send_response(201 if self.path == "/v1/alerts" else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def do_GET(self):
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/"

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def crowdsec(log, folder):
    """What CrowdSec's agent reports of the log: (scenario, address) of each alert."""
    root = Path(TOOLS) / "crowdsec"
    hub = root / "usr/share/crowdsec/hub"
    etc = folder / "etc"
    for stage in ["parsers/s00-raw", "parsers/s01-parse", "parsers/s02-enrich", "scenarios", "postoverflows", "notifications"]:
        (etc / stage).mkdir(parents=True)
    shutil.copytree(root / "etc/crowdsec/patterns", etc / "patterns")
    shutil.copy(hub / "parsers/s00-raw/crowdsecurity/syslog-logs.yaml", etc / "parsers/s00-raw")
    shutil.copy(hub / "parsers/s02-enrich/crowdsecurity/dateparse-enrich.yaml", etc / "parsers/s02-enrich")
    shutil.copy(DEPLOY / "crowdsec/zrc-relay-logs.yaml", etc / "parsers/s01-parse")
    shutil.copy(DEPLOY / "crowdsec/zrc-relay-abuse.yaml", etc / "scenarios")
    (folder / "data").mkdir()
    (folder / "hub").mkdir()
    (etc / "simulation.yaml").write_text("simulation: false\n")
    (folder / "hub/index.json").write_text(json.dumps({kind: {} for kind in ["parsers", "scenarios", "collections", "postoverflows"]}))
    api = LocalApi()
    (etc / "credentials.yaml").write_text(f"url: {api.url()}\nlogin: test\npassword: test\n")
    config = {
        "common": {"daemonize": False, "log_media": "stdout", "log_level": "info", "working_dir": "."},
        "config_paths": {
            "config_dir": str(etc),
            "data_dir": str(folder / "data"),
            "simulation_path": str(etc / "simulation.yaml"),
            "hub_dir": str(folder / "hub"),
            "index_path": str(folder / "hub/index.json"),
            "notification_dir": str(etc / "notifications"),
            "plugin_dir": str(folder / "hub"),
        },
        "crowdsec_service": {"parser_routines": 1},
        "cscli": {"output": "human"},
        "db_config": {"type": "sqlite", "db_path": str(folder / "data/crowdsec.db")},
        "api": {"client": {"credentials_path": str(etc / "credentials.yaml")}},
        "prometheus": {"enabled": False},
    }
    # JSON is YAML.
    (folder / "config.yaml").write_text(json.dumps(config))
    kind = "syslog" if log.name.startswith("syslog") else "zrc-relay"
    try:
        done = subprocess.run(
            [root / "usr/bin/crowdsec", "-c", folder / "config.yaml", "-dsn", f"file://{log}", "-type", kind, "-no-api"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        api.stop()
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    # The parser was loaded: without that, nothing is ever found.
    assert re.search(r"Loaded 1 parser nodes.*zrc-relay-logs", said), said
    return [(alert["scenario"], alert["source"]["ip"]) for alert in api.alerts]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.limit(120)
async def test_fail2ban_counts_what_an_attacker_does_and_not_what_an_honest_client_may(attacked, tmp_path, form):
    log = await attacked(tmp_path, form, [forged, expired] * ATTACKS)
    text = log.read_text()
    assert len(re.findall('"expired"', text)) == ATTACKS, text
    assert fail2ban(log) == ["127.0.0.1"] * ATTACKS, text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.limit(120)
async def test_crowdsec_raises_an_alert_for_an_attacker(attacked, tmp_path, form):
    log = await attacked(tmp_path, form, [forged] * ATTACKS)
    assert crowdsec(log, tmp_path / "crowdsec") == [("zrc-relay/abuse", "127.0.0.1")], log.read_text()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.limit(120)
async def test_whoever_is_over_the_limits_of_a_source_is_counted(attacked, tmp_path, form):
    log = await attacked(tmp_path, form, [expired] * 15, exempt=False)
    text = log.read_text()
    assert len(re.findall('"expired"', text)) == 5, text
    assert len(re.findall('"source_requests"', text)) == 10, text
    assert fail2ban(log) == ["127.0.0.1"] * 10, text
    assert crowdsec(log, tmp_path / "crowdsec") == [("zrc-relay/abuse", "127.0.0.1")], text


@pytest.mark.limit(120)
async def test_clients_with_an_expired_token_are_not_blamed(attacked, tmp_path):
    log = await attacked(tmp_path, "text", [expired] * ATTACKS)
    assert len(re.findall('"expired"', log.read_text())) == ATTACKS
    assert fail2ban(log) == []
    assert crowdsec(log, tmp_path / "crowdsec") == []


@pytest.mark.limit(120)
async def test_nobody_is_named_unless_the_operator_says_so(attacked, tmp_path):
    log = await attacked(tmp_path, "text", [forged] * ATTACKS, addresses=False)
    lines = [line for line in log.read_text().splitlines() if "security" in line]
    assert len(lines) == ATTACKS
    assert not [line for line in lines if "127.0.0.1" in line]
    assert fail2ban(log) == []
