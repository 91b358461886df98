#!/usr/bin/env python3
"""The relay's HTTP as outside tools judge it: schemathesis the admin API, slowhttptest the patience of the ops port,
promtool the metrics.

    tests/ops/check.py ZRC_RELAY SCHEMATHESIS SLOWHTTPTEST PROMTOOL [top] [metrics] [slow] [api]
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCHEMATHESIS_SECONDS = 60
# Of each way of being slow. The relay's own timeouts are shorter.
SLOW_SECONDS = 12
SLOW_CALLERS = 1000
WITHIN = 1.0

CONFIG = """
state_dir = "state"
[relay]
listen_addr = "127.0.0.1"
listen_port = 0
self_certified = true
[ops]
listen_port = 0
[admin]
listen_addr = "127.0.0.1"
listen_port = 0
"""


class Relay:
    """A relay in a folder of its own."""

    def __init__(self, binary, folder):
        config = folder / "relay.toml"
        config.write_text(CONFIG)
        made = subprocess.run(
            [binary, "admin", "token", "new", "--name", "check", "--role", "full", "--config", config],
            check=True, capture_output=True, text=True,
        )
        self.token = made.stdout.strip()
        self.process = subprocess.Popen(
            [binary, "serve", "--config", config, "--log", "error"], stderr=subprocess.PIPE, text=True
        )
        said = ""
        for line in self.process.stderr:
            said += line
            if line.startswith("clients:"):
                break
        else:
            sys.exit(f"the relay did not start: {said}")
        # Read, so that it never waits; shown where something failed in it. What is logged changes while it runs.
        def rest():
            for line in self.process.stderr:
                if "ERROR" in line or "panicked" in line:
                    sys.stderr.write(line)

        threading.Thread(target=rest, daemon=True).start()
        self.ops = re.search(r"^ops on (http://\S+)", said, re.M)[1]
        self.admin = re.search(r"^admin API .* on (http://[^\s,]+)", said, re.M)[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def answers_within(url, token=""):
    """How long an answer takes, in seconds; far more than it may where there is none."""
    begun = time.monotonic()
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=2 * WITHIN) as answer:
            json.load(answer)
    except (OSError, ValueError) as error:
        print(f"{url}: {error}")
        return 99.0
    return time.monotonic() - begun


def health(relay):
    """The same of /health, and of the admin port."""
    return max(
        answers_within(f"{relay.ops}/health"), answers_within(f"{relay.admin}/admin/drain", relay.token)
    )


class Pairs:
    """Allocations with traffic on a relay, and their ids. Each has a program of its own: ending one leaves the others."""

    def __init__(self, binary, relay, count):
        command = [binary, "bench", "--relay", relay.ops, "--pairs", "1", "--rate", "50", "--secs", "3600"]
        self.processes = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(count)
        ]
        begun, paired = time.monotonic(), []
        while len(paired) < count:
            if time.monotonic() - begun > 60:
                self.__exit__()
                sys.exit(f"of {count} pairs {len(paired)} came")
            time.sleep(0.05)
            paired = ask(relay, "/admin/allocations?state=paired")["allocations"]
        self.ids = [it["id"] for it in paired]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def ask(relay, path):
    request = urllib.request.Request(relay.admin + path, headers={"Authorization": f"Bearer {relay.token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


#: The path that needs something live, and what has to be among its answers.
LIVE = "/admin/allocations/{id}"
#: Draining, and blocking whatever network, ends what is to be live; the other shares out the wrong tokens.
APART = ["/admin/drain", "/admin/blocks", "/admin/log"]
LIVE_ANSWERS = {("GET", 200), ("GET", 404), ("DELETE", 204), ("DELETE", 404)}


def api(binary, schemathesis, folder):
    """The document describes what the API does, and nothing that fits or does not fit it brings the API down."""
    described = json.loads((ROOT / "src/ops/admin/openapi.json").read_text())
    # Events have no end; tests/it and src/ops/admin/tests.rs read them.
    paths = [path for path in described["paths"] if path != "/admin/events"]
    # The check ignored_auth names a wrong token for each operation, and a relay bears ten from one address in a minute:
    # there are two relays. Allocations live at the one where nothing else ends them.
    beside_live = [path for path in paths if path not in APART]
    for number, half in enumerate((beside_live, [path for path in paths if path in APART])):
        home = Path(folder) / f"api-{number}"
        home.mkdir()
        pairs = 4 if LIVE in half else 0
        with Relay(binary, home) as relay, Pairs(binary, relay, pairs) if pairs else contextlib.nullcontext() as live:
            if live:
                # What it begins with: ids that there are. The others are for the list, and for whatever it makes of that.
                parameter = described["paths"][LIVE]["parameters"][0]
                parameter["examples"] = {f"live-{id[:4]}": {"value": id} for id in live.ids[:2]}
            document, seen = home / "openapi.json", home / "seen.har"
            document.write_text(json.dumps(described))
            chosen = [argument for path in half for argument in ("--include-path", path)]
            run = subprocess.run(
                [
                    schemathesis, "run", "--url", relay.admin, "--header", f"Authorization: Bearer {relay.token}",
                    *chosen, "--max-time", str(SCHEMATHESIS_SECONDS // 2), "--request-timeout", "10", "--no-color",
                    "--report-har-path", seen, document,
                ],
                timeout=4 * SCHEMATHESIS_SECONDS,
                # It keeps notes in the folder that it runs in.
                cwd=home,
            )
            if run.returncode:
                sys.exit("schemathesis found what does not fit; 'seed' above repeats it")
            if health(relay) > 2 * WITHIN:
                sys.exit("after schemathesis the relay does not answer")
            if live:
                missing = LIVE_ANSWERS - answers(seen, LIVE)
                if missing:
                    sys.exit(f"no such answer came on {LIVE}: {sorted(missing)}")
                print(f"schemathesis has met live allocations: {sorted(LIVE_ANSWERS)}")
    if LIVE not in beside_live:
        sys.exit(f"{LIVE} is described no more")


def answers(har, path):
    """Which methods were answered by which status, on a path with one id in it."""
    before, after = path.split("{id}")
    found = set()
    for entry in json.loads(har.read_text())["log"]["entries"]:
        request = entry["request"]
        asked = urllib.parse.urlsplit(request["url"]).path
        if re.fullmatch(rf"{re.escape(before)}[0-9a-fA-F]{{32}}{re.escape(after)}", asked):
            found.add((request["method"], entry["response"]["status"]))
    return found


def slow(relay, slowhttptest):
    """A thousand callers that send or read slowly keep nobody out."""
    modes = {
        "H": ["-H", "-i", "3", "-u", f"{relay.ops}/health"],
        # With the token, which the tool has no place for: otherwise each is refused before its body is waited for.
        "B": [
            "-B", "-i", "3", "-s", "8192", "-u", f"{relay.admin}/admin/blocks",
            "-f", f"application/json\r\nAuthorization: Bearer {relay.token}",
        ],
        "X": ["-X", "-w", "1", "-y", "1", "-n", "5", "-z", "1", "-k", "3", "-u", f"{relay.ops}/metrics"],
    }
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, files), files))
    for mode, options in modes.items():
        command = [
            slowhttptest, "-c", str(SLOW_CALLERS), "-r", "500", "-l", str(SLOW_SECONDS), "-p", "3", *options,
        ]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=enough
        ) as attack:
            output = []
            reader = threading.Thread(target=lambda: output.extend(attack.stdout))
            reader.start()
            begun, worst, probes = time.monotonic(), 0.0, 0
            while attack.poll() is None:
                if time.monotonic() - begun > 4 * SLOW_SECONDS:
                    attack.kill()
                    sys.exit(f"slowhttptest -{mode} does not end")
                worst = max(worst, health(relay))
                probes += 1
                time.sleep(0.1)
            reader.join()
        text = re.sub(r"\x1b\[[0-9;]*m", "", "".join(output))
        # How many came at once, or this shows nothing: closed ones among them, which is the point.
        numbers = {name: [int(n) for n in re.findall(rf"{name}:\s+(\d+)", text)] for name in ("connected", "closed")}
        came = max((a + b for a, b in zip(numbers["connected"], numbers["closed"])), default=0)
        print(f"slowhttptest -{mode}: {came} callers, {probes} probes, the slowest took {worst * 1000:.0f} ms")
        if came < SLOW_CALLERS * 0.9 or probes < 20:
            sys.exit(f"too few callers to show anything:\n{text[-2000:]}")
        if worst > WITHIN:
            sys.exit(f"/health took {worst:.1f} s under slowhttptest -{mode}")


def metrics(relay, promtool):
    """promtool has nothing to say of the metrics."""
    with urllib.request.urlopen(f"{relay.ops}/metrics", timeout=10) as answer:
        text = answer.read()
    run = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    if run.returncode or run.stdout or run.stderr:
        sys.exit(f"promtool: {(run.stdout + run.stderr).decode()}")
    # It sees what there is to see.
    run = subprocess.run([promtool, "check", "metrics"], input=text + b"# TYPE x counter\nx 1\n", capture_output=True)
    if not run.returncode:
        sys.exit("promtool finds nothing wrong with what is wrong")
    print(f"promtool: {text.count(b'# TYPE ')} families, nothing to say")


def top(relay, binary):
    """`top` draws in a terminal, answers to keys, and leaves the terminal as it was."""
    environment = {**os.environ, "TERM": "xterm-256color", "ZRC_ADMIN_TOKEN": relay.token}
    child, terminal = pty.fork()
    if not child:
        os.execve(binary, [binary, "top", "--url", relay.admin, "--interval", "200ms"], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    seen, begun = "", time.monotonic()

    def until(wanted):
        nonlocal seen
        while wanted not in seen:
            if time.monotonic() - begun > 30:
                os.kill(child, signal.SIGKILL)
                sys.exit(f"top does not show {wanted!r}: {seen!r}")
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    seen += os.read(terminal, 65536).decode(errors="replace")
                except OSError:
                    sys.exit(f"top has ended: {seen!r}")

    until("allocations")
    until("q quit")
    os.write(terminal, b"x")
    until("choose an allocation")
    seen = ""
    os.write(terminal, b"q")
    until("\x1b[?1049l")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    if status:
        sys.exit(f"top ended with {status}")
    print("top: drawn, asked, ended, the terminal given back")


def main():
    binary, schemathesis, slowhttptest, promtool = (str(Path(tool).absolute()) for tool in sys.argv[1:5])
    chosen = sys.argv[5:]
    os.environ.pop("RUST_LOG", None)
    steps = {
        "top": lambda relay: top(relay, binary),
        "metrics": lambda relay: metrics(relay, promtool),
        "slow": lambda relay: slow(relay, slowhttptest),
        "api": lambda _: api(binary, schemathesis, folder),
    }
    with tempfile.TemporaryDirectory(prefix="zrc-ops-") as folder:
        with Relay(binary, Path(folder)) as relay:
            for name, step in steps.items():
                if not chosen or name in chosen:
                    step(relay)
                    if health(relay) > 2 * WITHIN:
                        sys.exit(f"after {name} the relay does not answer")


if __name__ == "__main__":
    main()
