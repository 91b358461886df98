#!/usr/bin/env python3
"""Measures zrc-relay beside what people would use instead, and beside a plain UDP forwarder.

Called by benches/peers.sh, which installs and builds what this needs. The relay runs alone on the first core this
process may use, the load (benches/load) on the second. Every row is measured through every relay, `repeats` times,
interleaved, each time through a relay that was started anew on free ports.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "RESULTS.md"
PLOT = HERE / "results.svg"
START_TIMEOUT_SECS = 10
LOAD_TIMEOUT_SECS = 120
ATTEMPTS = 3
# From <linux/prctl.h>.
PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number that the load reports."""

    key: str
    label: str
    unit: str
    better: str = "lower"


CPU = Figure("relay_cpu_us_per_delivered", "relay CPU per packet", "µs")
LOSS = Figure("loss", "loss", "%")
P50 = Figure("rtt_p50_us", "round trip p50", "µs")
P99 = Figure("rtt_p99_us", "round trip p99", "µs")
HIGHEST = Figure("pps", "highest rate below 1 % loss", "packets/s", "higher")
RELAY_SHARE = Figure("relay_cpu_share", "of the relay's core", "%")
LOAD_SHARE = Figure("load_cpu_share", "of the load's core", "%")
MEMORY = Figure("relay_rss_kib_per_pair", "memory per idle allocation", "KiB")
SETUP_CPU = Figure("relay_cpu_ms_per_setup", "relay CPU per set-up", "ms")
SETUPS = Figure("setups_per_sec", "set-ups per second", "/s", "higher")
PER_CORE = Figure("mbytes_per_core_sec", "per second of relay CPU", "MB", "higher")
MBYTES = Figure("mbytes_per_sec", "delivered", "MB/s", "higher")

FLOOR, COTURN, HAPROXY = "floor", "coturn", "haproxy"
DATAGRAM, RAW, BARE, STREAM = "datagram", "raw", "bare", "stream"
# How each is called in tables and in the plot.
NAMES = {
    FLOOR: "plain UDP forwarder",
    COTURN: "coturn",
    DATAGRAM: "zrc-relay, datagrams",
    RAW: "zrc-relay, raw channel",
    BARE: "zrc-relay, raw, bare clients",
    HAPROXY: "haproxy, TLS both sides",
    STREAM: "zrc-relay, streams",
}
# How the load calls those that it calls otherwise.
TRANSPORTS = {COTURN: "turn", HAPROXY: "tls"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One load, through several relays."""

    title: str
    relays: list
    # Given to the load; `{secs}` is the length of a run.
    load: str
    # Given to it instead when it only has to work.
    smoke: str
    figures: list
    # How many of them, from the first on.
    plotted: int = 1


PACKETS = [FLOOR, COTURN, DATAGRAM, RAW]
TRAINS = [FLOOR, COTURN, RAW, BARE]
STREAMS = [HAPROXY, STREAM]
LOADED = [CPU, RELAY_SHARE, LOSS, P50, P99]
SEARCHED = [HIGHEST, CPU, RELAY_SHARE, LOAD_SHARE, LOSS]
FLAT_OUT = [PER_CORE, MBYTES, RELAY_SHARE, LOAD_SHARE]
# A search doubles the rate until it does not pass; this is never reached.
ANY_RATE = 20_000_000
ROWS = {
    "sparse": Row(
        "200 sparse pairs, 20 000 packets/s together",
        PACKETS,
        "--pairs 200 --rate 20000 --secs {secs}",
        "--pairs 20 --rate 2000 --secs 0.3",
        LOADED,
    ),
    "wide20": Row(
        "20 pairs, 20 000 packets/s together",
        PACKETS,
        "--pairs 20 --rate 20000 --secs {secs}",
        "--pairs 2 --rate 2000 --secs 0.3",
        LOADED,
    ),
    "dense": Row(
        "one flow, 20 000 packets/s",
        PACKETS,
        "--pairs 1 --rate 20000 --secs {secs}",
        "--pairs 1 --rate 2000 --secs 0.3",
        LOADED,
    ),
    "dense-trains": Row(
        "one flow in GSO trains, 20 000 packets/s",
        TRAINS,
        "--pairs 1 --rate 20000 --train 64 --secs {secs}",
        "--pairs 1 --rate 2000 --train 64 --secs 0.3",
        LOADED,
    ),
    "highest": Row(
        "one flow, as fast as it goes",
        PACKETS,
        f"--pairs 1 --search --rate {ANY_RATE} --secs 0.3",
        "--pairs 1 --search --rate 20000 --secs 0.1",
        SEARCHED,
    ),
    "highest-trains": Row(
        "one flow in GSO trains, as fast as it goes",
        TRAINS,
        f"--pairs 1 --search --train 64 --rate {ANY_RATE} --secs 0.3",
        "--pairs 1 --search --train 64 --rate 20000 --secs 0.1",
        SEARCHED,
    ),
    "round-trip": Row(
        "one flow, 1000 packets/s",
        PACKETS,
        "--pairs 1 --rate 1000 --secs {long_secs}",
        "--pairs 1 --rate 1000 --secs 0.3",
        [P99, P50, CPU],
    ),
    "idle": Row(
        "1000 idle pairs",
        [COTURN, DATAGRAM, RAW, HAPROXY],
        "--pairs 1000 --rate 0 --secs 2",
        "--pairs 20 --rate 0 --secs 0.3",
        [MEMORY, SETUP_CPU, SETUPS, RELAY_SHARE],
        plotted=2,
    ),
    "streams": Row(
        "one pair, streams both ways, flat out",
        STREAMS,
        "--pairs 1 --size 16000 --rate 200000 --secs {secs}",
        "--pairs 1 --size 16000 --rate 500 --secs 0.3",
        FLAT_OUT,
    ),
    "streams20": Row(
        "20 pairs, streams both ways, flat out",
        STREAMS,
        "--pairs 20 --size 16000 --rate 200000 --secs {secs}",
        "--pairs 3 --size 16000 --rate 500 --secs 0.3",
        FLAT_OUT,
    ),
}


@dataclasses.dataclass(frozen=True)
class Goal:
    """A ratio of two relays' figures in one row, or a figure alone, and how far it may go."""

    row: str
    figure: Figure
    relay: str
    against: str | None
    limit: float

    def title(self):
        against = f" / {NAMES[self.against]}" if self.against else ""
        return f"{ROWS[self.row].title}: {self.figure.label}, {NAMES[self.relay]}{against}"

    def is_met_by(self, value):
        return value >= self.limit if self.figure.better == "higher" else value <= self.limit


GOALS = [
    Goal("sparse", CPU, RAW, FLOOR, 1.15),
    Goal("sparse", CPU, RAW, COTURN, 0.40),
    Goal("highest-trains", HIGHEST, BARE, FLOOR, 0.80),
    Goal("highest-trains", HIGHEST, RAW, FLOOR, 0.80),
    Goal("sparse", CPU, DATAGRAM, COTURN, 0.75),
    Goal("highest", HIGHEST, DATAGRAM, COTURN, 4),
    Goal("streams", PER_CORE, STREAM, HAPROXY, 0.7),
    Goal("round-trip", P99, RAW, COTURN, 0.9),
    Goal("round-trip", P99, DATAGRAM, COTURN, 1.2),
    Goal("idle", SETUP_CPU, DATAGRAM, None, 0.6),
    Goal("idle", MEMORY, DATAGRAM, None, 64),
]


class Relay:
    """A relay process of its own for one run; a context manager that gives what the load needs to know."""

    def __init__(self, settings, contender, folder):
        self.settings, self.contender, self.folder = settings, contender, Path(folder)
        self.process = None
        self.load = []

    def __enter__(self):
        starts = {FLOOR: self.floor, COTURN: self.coturn, HAPROXY: self.haproxy}
        try:
            starts.get(self.contender, self.zrc)()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def floor(self):
        port = free_port(socket.SOCK_DGRAM)
        self.spawn([self.settings.binaries / "examples/udpfwd", f"127.0.0.1:{port}"])
        self.wait_for("udp", port)
        self.load = ["--relay", f"127.0.0.1:{port}"]

    def coturn(self):
        port = free_port(socket.SOCK_DGRAM)
        files = f"-b {self.folder}/users.db -l {self.folder}/log --pidfile {self.folder}/pid"
        self.spawn([*COTURN_COMMAND.split(), "-p", str(port), *files.split()])
        self.wait_for("udp", port)
        self.load = ["--relay", f"127.0.0.1:{port}"]

    def haproxy(self):
        port, backend = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_STREAM)
        certificate, config = self.folder / "certificate.pem", self.folder / "haproxy.cfg"
        make_certificate(certificate)
        config.write_text(HAPROXY_CONFIG.format(port=port, backend=backend, certificate=certificate))
        self.spawn(["haproxy", "-db", "-f", config])
        self.wait_for("tcp", port)
        self.load = ["--relay", f"127.0.0.1:{port}", "--backend", f"127.0.0.1:{backend}", "--certificate", certificate]

    def zrc(self):
        command = [self.settings.binaries / "zrc-relay", "--log", "warn", "serve", "--dev", "--state-dir", self.folder]
        self.spawn(command)
        # Said when everything is ready.
        self.wait_until(lambda: "clients:" in (self.folder / "said").read_text())
        self.load = ["--relay", str(self.folder / "relay.json")]

    def spawn(self, command):
        with open(self.folder / "said", "wb") as said:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                preexec_fn=lambda: self.settings.settle(self.settings.relay_core),
            )

    def wait_for(self, protocol, port):
        """Until the process has bound its port: /proc/net lists local addresses in hex."""
        wanted = f":{port:04X}"
        table = Path(f"/proc/net/{protocol}")
        self.wait_until(lambda: any(line.split()[1].endswith(wanted) for line in table.read_text().splitlines()[1:]))

    def wait_until(self, ready):
        deadline = time.monotonic() + START_TIMEOUT_SECS
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "said").read_text(errors="replace")
                raise Failure(f"{NAMES[self.contender]} did not start:\n{said}")
            time.sleep(0.01)


# What an operator would choose for one core: no log per packet, no limits, no TLS, nothing that is not used; and one relay
# thread, which is coturn's own choice there. Peers on the loopback are allowed because that is where the other client's
# relayed address is.
COTURN_COMMAND = """
    turnserver -n --listening-ip=127.0.0.1 --relay-ip=127.0.0.1 --allow-loopback-peers
    --lt-cred-mech --user=bench:bench --realm=bench --relay-threads=1
    --no-tls --no-dtls --no-tcp --no-tcp-relay --no-cli --no-software-attribute --no-multicast-peers
    --simple-log --no-stdout-log
"""

# One thread for one core, TLS 1.3 with the suite that zrc-relay and its clients agree on, buffers as they are.
HAPROXY_CONFIG = """
global
    nbthread 1
    maxconn 8000
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-server-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
    ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
    mode tcp
    timeout connect 5s
    timeout client 5m
    timeout server 5m
frontend clients
    bind 127.0.0.1:{port} ssl crt {certificate}
    default_backend peers
backend peers
    server peer 127.0.0.1:{backend} ssl verify none
"""


class Failure(Exception):
    """Something that ends the run, said to people."""


class Settings:
    """What one invocation was asked for, and where it runs."""

    def __init__(self, *, secs=3.0, repeats=5, smoke=False, rows=None, relays=None):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise Failure("two cores are needed: one for the relay, one for the load")
        self.relay_core, self.load_core = cores[:2]
        self.smoke = smoke
        self.secs = secs
        self.repeats = 1 if smoke else repeats
        self.binaries = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / ("debug" if smoke else "release")
        self.rows = {name: ROWS[name] for name in rows or ROWS}
        self.relays = relays or list(NAMES)

    @property
    def is_complete(self):
        """Whether the results are worth keeping."""
        return not self.smoke and self.rows.keys() == ROWS.keys() and set(self.relays) == NAMES.keys()

    @staticmethod
    def settle(core):
        """Pins a child to its core, before others that want it, where that is permitted; it dies with its parent."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, {core})
        # Linux shares a core between sessions first; niceness alone counts within one.
        os.setsid()
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text("-15")
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, -15)

    def contenders(self, row):
        return [relay for relay in row.relays if relay in self.relays]


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_certificate(path):
    """One for both sides of a proxy, with its key, that is good for this run."""
    key = path.with_suffix(".key")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE"]
    subprocess.run([*command.split(), *names, "-keyout", key, "-out", path], check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())


def load_command(settings, row, relay):
    """What puts the row's load on this relay."""
    arguments = row.smoke if settings.smoke else row.load.format(secs=settings.secs, long_secs=2 * settings.secs)
    command = [settings.binaries / "examples/load", "--transport", TRANSPORTS.get(relay.contender, relay.contender)]
    return [*command, "--relay-pid", str(relay.process.pid), *relay.load, *arguments.split()]


def measure(settings, row, contender):
    """One run through a relay of its own."""
    with tempfile.TemporaryDirectory(prefix="zrc-peers-") as folder, Relay(settings, contender, folder) as relay:
        try:
            done = subprocess.run(
                load_command(settings, row, relay),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                timeout=LOAD_TIMEOUT_SECS,
                preexec_fn=lambda: settings.settle(settings.load_core),
            )
        except subprocess.TimeoutExpired as error:
            raise Failure(f"no end after {LOAD_TIMEOUT_SECS} s: {error.stderr}") from error
    if done.returncode:
        raise Failure(f"the load failed: {done.stderr}")
    figures = json.loads(done.stdout)
    missing = [figure.key for figure in row.figures if figures.get(figure.key) is None]
    if missing:
        raise Failure(f"the load did not measure {', '.join(missing)}")
    if contender == RAW and row.figures[0] is not MEMORY and (figures["raw_share"] or 0) < 0.99:
        raise Failure(f"only {figures['raw_share']} went raw")
    # A relay that loses most of so little does not work, whatever it costs.
    if settings.smoke and (figures.get("loss") or 0) > 0.5:
        raise Failure(f"{figures['loss']:.0%} were lost")
    return figures


def measure_with_patience(settings, row, contender):
    """As `measure`, again when it fails: on a machine that has much else to do a run may be starved."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return measure(settings, row, contender)
        except Failure as failure:
            if attempt == ATTEMPTS:
                raise
            say(f"{row.title}, {NAMES[contender]}: {failure}; trying again")


def run(settings, json_file):
    """Everything that was asked for: {row: {relay: [figures of each repeat]}}; and whether all of it worked. After each
    repeat, what there is goes to the file."""
    runs = {name: {contender: [] for contender in settings.contenders(row)} for name, row in settings.rows.items()}
    all_well = True
    started = time.monotonic()
    for repeat in range(settings.repeats):
        for name, row in settings.rows.items():
            for contender in settings.contenders(row):
                try:
                    figures = measure_with_patience(settings, row, contender)
                except Failure as failure:
                    all_well = False
                    outcome = f"FAILED: {failure}"
                else:
                    runs[name][contender].append(figures)
                    outcome = ", ".join(shown(figures[figure.key], figure) for figure in row.figures)
                at = f"{time.monotonic() - started:4.0f} s  {repeat + 1}/{settings.repeats}"
                say(f"{at}  {name:14} {NAMES[contender]:28} {outcome}")
        if json_file:
            json_file.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1))
    return runs, all_well


def values_of(runs, row, contender, figure):
    return [figures[figure.key] for figures in runs.get(row, {}).get(contender, [])]


def number(value):
    """Three digits that count, groups of thousands apart."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def shown(value, figure):
    return number(value * 100 if figure.unit == "%" else value) + f" {figure.unit}"


def spread(values, figure):
    """Median, and the smallest and the largest behind it."""
    scale = 100 if figure.unit == "%" else 1
    three = [number(value * scale) for value in (statistics.median(values), min(values), max(values))]
    return f"**{three[0]}** ({three[1]} – {three[2]})"


def tables(settings, runs):
    for name, row in settings.rows.items():
        yield f"\n### {row.title}\n"
        yield "| relay | " + " | ".join(f"{figure.label}, {figure.unit}" for figure in row.figures) + " |"
        yield "|---" * (len(row.figures) + 1) + "|"
        for contender, repeats in runs[name].items():
            if repeats:
                cells = [spread(values_of(runs, name, contender, figure), figure) for figure in row.figures]
            else:
                cells = ["failed"] * len(row.figures)
            yield f"| {NAMES[contender]} | " + " | ".join(cells) + " |"


def goals(runs):
    yield "| goal | limit | median | in each repeat | |"
    yield "|---|---|---|---|---|"
    for goal in GOALS:
        ours = values_of(runs, goal.row, goal.relay, goal.figure)
        theirs = values_of(runs, goal.row, goal.against, goal.figure) if goal.against else [1.0] * len(ours)
        if not ours or not theirs:
            continue
        ratio = statistics.median(ours) / statistics.median(theirs)
        each = [our / their for our, their in zip(ours, theirs)]
        sign = "≥" if goal.figure.better == "higher" else "≤"
        unit = "" if goal.against else f" {goal.figure.unit}"
        met = "met" if goal.is_met_by(ratio) else "**not met**"
        limit = f"{sign} {goal.limit:g}{unit}"
        yield f"| {goal.title()} | {limit} | **{number(ratio)}** | {number(min(each))} – {number(max(each))} | {met} |"


def machine():
    """Where and when."""
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in said_by("lscpu").splitlines())}
    packages = said_by("dpkg-query", "--show", "--showformat", "${Package} ${Version}, ", "coturn", "haproxy").rstrip(", ")
    commit = said_by("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10")
    return (
        f"**{datetime.date.today().isoformat()}**, commit `{commit}`, {said_by('rustc', '--version')}, {packages}; "
        f"{cpu.get('Model name')} family {cpu.get('CPU family')}, {cpu.get('CPU(s)')} cores"
        f"{', virtual' if 'Hypervisor vendor' in cpu else ''}, Linux {platform.release()}"
    )


def said_by(*command):
    """What a program says of itself, or nothing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


BEGIN, END = "<!-- measured: benches/peers.py writes from here -->", "<!-- measured: to here -->"


def write_results(settings, runs, load_averages):
    """Puts the figures into RESULTS.md, and leaves what people wrote around them."""
    before, after = load_averages
    lines = [
        BEGIN,
        f"\n{machine()}; load average {before:.1f} before, {after:.1f} after (the two busy cores included).",
        f"{settings.repeats} repeats of {settings.secs:g} s, median (smallest – largest).\n",
        *goals(runs),
        "\n![bars of the medians](results.svg)",
        *tables(settings, runs),
        "",
    ]
    text = RESULTS.read_text()
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    RESULTS.write_text(head + "\n".join(lines) + "\n" + END + tail)
    PLOT.write_text(plot(settings, runs))


PLOT_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.note { fill: #59636e }
.spread { stroke: #1f2328; stroke-width: 1.5 }
.floor { fill: #8c959f } .coturn, .haproxy { fill: #d4843e } .datagram { fill: #3b7dd8 }
.raw, .bare { fill: #1a9a85 } .stream { fill: #8a63d2 }
@media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .note { fill: #9198a1 } .spread { stroke: #e6edf3 }
}
"""


def plot(settings, runs):
    """Bars of the medians with their spread, a panel for each figure, each with a scale of its own."""
    left, bar, right = 205, 400, 215
    width, step, thick = left + bar + right, 24, 15
    shapes, y = [], 0
    for name, row in settings.rows.items():
        for figure in row.figures[: row.plotted]:
            measured = {contender: values_of(runs, name, contender, figure) for contender in runs[name]}
            measured = {contender: values for contender, values in measured.items() if values}
            if not measured:
                continue
            scale = bar / max(max(values) for values in measured.values())
            y += 36
            shapes.append(f'<text class="title" x="8" y="{y}">{row.title}</text>')
            y += 18
            note = f"{figure.label}, {figure.unit} ({figure.better} is better)"
            shapes.append(f'<text class="note" x="8" y="{y}">{note}</text>')
            y += 10
            for contender, values in measured.items():
                median, low, high = (round(value * scale, 1) for value in (statistics.median(values), min(values), max(values)))
                middle = y + thick / 2
                shapes += [
                    f'<text x="{left - 8}" y="{y + thick - 3}" text-anchor="end">{NAMES[contender]}</text>',
                    f'<rect class="{contender}" x="{left}" y="{y}" width="{median}" height="{thick}" rx="2"/>',
                    f'<path class="spread" d="M{left + low} {middle}H{left + high}"/>',
                    f'<text x="{left + max(median, high) + 8}" y="{y + thick - 3}">'
                    f"{shown(statistics.median(values), figure)}</text>",
                ]
                y += step
    y += 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}" role="img">'
    return "\n".join([head, f"<style>{PLOT_STYLE}</style>", *shapes, "</svg>", ""])


def say(text):
    print(text, file=sys.stderr, flush=True)


def stop(*_):
    """What is running is stopped on the way out."""
    say("stopped from outside (SIGTERM)")
    sys.exit(143)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="how often each row is measured through each relay (5)")
    parser.add_argument("--secs", type=float, default=3, help="how long a load lasts (3)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"only these of {', '.join(ROWS)}")
    parser.add_argument("--relays", nargs="+", choices=NAMES, metavar="RELAY",
                        help=f"only these of {', '.join(NAMES)}")
    parser.add_argument("--smoke", action="store_true", help="only see whether everything works, with debug binaries")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to put every figure of every run")
    signal.signal(signal.SIGTERM, stop)
    arguments = vars(parser.parse_args())
    json_file = arguments.pop("json")
    settings = Settings(**arguments)
    before = os.getloadavg()[0]
    runs, all_well = run(settings, json_file)
    if settings.is_complete:
        write_results(settings, runs, (before, os.getloadavg()[0]))
        say(f"written: {RESULTS.relative_to(ROOT)}, {PLOT.relative_to(ROOT)}")
    if not settings.smoke:
        print("\n".join([*goals(runs), *tables(settings, runs)]))
    if not all_well:
        sys.exit("some runs failed, see above; again: benches/peers.sh --rows ROW --relays RELAY")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit(130)
