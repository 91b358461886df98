#!/usr/bin/env python3
"""What gets through a relay behind a lossy, delayed path.

    tests/netns/lossy_path.py [ZRC_RELAY]     with root; default: target/debug/zrc-relay

Three network namespaces: clients, path and relay. The link between clients and path has a rate both ways (tbf), the
path loses packets at random (nftables), each way, and delays them (this file again, as a UDP proxy: this kernel need
not have netem). Device and peer are two clients at the near end, so everything crosses the path twice.

    clients --- 50 Mbit/s --- path: 4 % loss, 30 ms --- relay

Runs the relay and `zrc-relay bench`, says what was delivered, and ends with 1 when that is too little. It needs
Python's standard library, iproute2 and nftables; whatever happens, the namespaces are gone afterwards.
"""

import collections
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATE_MBIT = 50
ONE_WAY_DELAY_MS = 30
LOSS_PERCENT = 4
# What the buffers before the slow link hold, in time.
BUFFER_MS = 60

SECS = 5
ATTEMPTS = 3
# Smaller than the largest on purpose: quinn may take losses for a smaller MTU.
PAYLOAD_BYTES = 1100
DATAGRAM_MBIT = 25
# Both directions together. A stream has 256 KiB under way at most, those that wait for something lost included.
STREAM_MBIT = 16
# Of what would have got through with nothing else in the way.
LEAST_DATAGRAMS = 0.9
# Of what was offered: streams repair losses.
LEAST_STREAMS = 0.8

NEAR, PATH_NEAR = "10.66.1.1", "10.66.1.2"
PATH_FAR, FAR = "10.66.2.1", "10.66.2.2"
PORT = 4433

# As Linux numbers it; Python does not name it.
SO_RCVBUFFORCE = 33

RULES = f"""
table inet lossy {{
    counter arrived {{ }}
    counter lost {{ }}
    chain input {{
        type filter hook input priority 0
        meta l4proto udp counter name arrived
        meta l4proto udp numgen random mod 1000 < {10 * LOSS_PERCENT} counter name lost drop
    }}
}}
"""


def main():
    if sys.argv[1:2] == ["--delay"]:
        return delay()
    default = Path(__file__).resolve().parents[2] / "target/debug/zrc-relay"
    binary = str(Path(sys.argv[1] if len(sys.argv) > 1 else default).resolve())
    # An end from outside cleans up, too.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    sweep()
    with tempfile.TemporaryDirectory(prefix="zrc-netns-") as folder, Namespaces() as spaces:
        return measure(binary, Path(folder), spaces)


def measure(binary, folder, spaces):
    path = spaces.start("path", sys.executable, __file__, "--delay", stdout=subprocess.PIPE)
    if not path.stdout.readline():
        raise SystemExit("the path did not start")
    config = folder / "relay.toml"
    config.write_text(
        f'state_dir = "{folder}/state"\n'
        f'[relay]\nlisten_addr = "{FAR}"\nlisten_port = {PORT}\npublic_addr = "{PATH_NEAR}:{PORT}"\n'
        "self_certified = true\ndefault_bandwidth_limit = 0\ndefault_packet_rate = 0\ndefault_quota = 0\n"
        "[ops]\nlisten_port = 0\n"
    )
    said = folder / "said"
    with said.open("w") as stderr:
        spaces.start("relay", binary, "serve", "--config", str(config), stderr=stderr)
    # Said when every socket is bound and relay.json is written.
    for _ in range(300):
        if "http://" in said.read_text():
            break
        time.sleep(0.1)
    else:
        raise SystemExit(f"the relay did not start: {said.read_text()}")

    def bench(mode, mbit):
        rate = round(mbit * 1e6 / 8 / PAYLOAD_BYTES)
        arguments = ["--mode", mode, "--rate", str(rate), "--size", str(PAYLOAD_BYTES), "--secs", str(SECS)]
        command = [binary, "bench", "--relay", f"{folder}/state/relay.json", *arguments, "--json"]
        report = json.loads(spaces.run("clients", *command, timeout=SECS + 20))
        return report, rate * SECS

    def datagrams():
        report, offered = bench("datagram", DATAGRAM_MBIT)
        through = (1 - LOSS_PERCENT / 100) ** 2
        share = report["delivered"] / offered
        p50_ms, p99_ms = report["rtt_p50_us"] / 1000, report["rtt_p99_us"] / 1000
        say(
            f"datagrams: {DATAGRAM_MBIT} Mbit/s offered, {share:.1%} delivered (the losses alone leave {through:.1%}), "
            f"round trip p50 {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms"
        )
        # The test itself: a path that neither loses nor delays proves nothing.
        lost = 100 * spaces.lost_share()
        if not 0.7 * LOSS_PERCENT < lost < 1.3 * LOSS_PERCENT or p50_ms < 4 * ONE_WAY_DELAY_MS:
            raise SystemExit(f"the path lost {lost:.1f} % instead of {LOSS_PERCENT} %, or did not delay")
        return share >= LEAST_DATAGRAMS * through

    def streams():
        report, offered = bench("stream", STREAM_MBIT)
        share = report["delivered"] / offered
        say(f"streams: {STREAM_MBIT} Mbit/s offered, {share:.1%} arrived")
        return share >= LEAST_STREAMS

    say(f"{RATE_MBIT} Mbit/s, {2 * ONE_WAY_DELAY_MS} ms round trip, {LOSS_PERCENT} % loss each way, on each leg")
    # On a machine that does other things too, a pause of its own may look like the path's.
    for try_it in (datagrams, streams):
        if not any(try_it() for _ in range(ATTEMPTS)):
            say(f"FAILED: too few {try_it.__name__}, {ATTEMPTS} times in a row")
            return 1
    return 0


class Namespaces:
    """clients, path and relay, linked; what runs in them ends with them."""

    def __init__(self):
        self.names = {role: f"zrc-{os.getpid()}-{role}" for role in ("clients", "path", "relay")}
        self.children = []

    def __enter__(self):
        try:
            self.build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_):
        self.remove()

    def build(self):
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for near, far, near_addr, far_addr in [
            ("clients", "path", NEAR, PATH_NEAR),
            ("path", "relay", PATH_FAR, FAR),
        ]:
            ends = [(self.names[near], f"to-{far}", near_addr), (self.names[far], f"to-{near}", far_addr)]
            (near_space, near_link, _), (far_space, far_link, _) = ends
            ip("link", "add", near_link, "netns", near_space, "type", "veth", "peer", far_link, "netns", far_space)
            for space, link, addr in ends:
                ip("-n", space, "addr", "add", f"{addr}/24", "dev", link)
                # Trains of packets (GSO) are taken apart here, or they would be lost as a whole.
                ip("-n", space, "link", "set", link, "gso_max_segs", "1", "up")
        for role, link in [("clients", "to-path"), ("path", "to-clients")]:
            limit = ["rate", f"{RATE_MBIT}mbit", "burst", "16kb", "latency", f"{BUFFER_MS}ms"]
            call("tc", "-n", self.names[role], "qdisc", "add", "dev", link, "root", "tbf", *limit)
        self.run("path", "nft", "--file", "-", given=RULES)

    def lost_share(self):
        """What the path has lost of all that came to it, by its own count."""
        counted = json.loads(self.run("path", "nft", "--json", "list", "counters"))["nftables"]
        packets = {item["counter"]["name"]: item["counter"]["packets"] for item in counted if "counter" in item}
        return packets["lost"] / packets["arrived"]

    def remove(self):
        for child in self.children:
            child.kill()
            child.wait()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)

    def start(self, role, *command, **options):
        child = subprocess.Popen(["ip", "netns", "exec", self.names[role], *command], **options)
        self.children.append(child)
        return child

    def run(self, role, *command, timeout=10, given=None):
        done = subprocess.run(
            ["ip", "netns", "exec", self.names[role], *command],
            input=given,
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout,
            check=False,
        )
        ended = [child.args[4] for child in self.children if child.poll() is not None]
        if ended:
            raise SystemExit(f"{Path(ended[0]).name} ended before its time")
        if done.returncode:
            raise SystemExit(f"{Path(command[0]).name} in {role} ended with {done.returncode}")
        return done.stdout


def sweep():
    """Removes what was left by a run that was killed."""
    listed = subprocess.run(["ip", "netns", "list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    for line in listed.splitlines():
        name = line.split()[0]
        parts = name.split("-")
        if len(parts) == 3 and parts[0] == "zrc" and parts[1].isdigit() and not Path("/proc", parts[1]).exists():
            ip("netns", "delete", name)


def delay():
    """Passes packets on between clients and relay, each ONE_WAY_DELAY_MS later, in order."""
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    near.bind((PATH_NEAR, PORT))
    selector = selectors.DefaultSelector()
    far_of, near_of = {}, {}

    def watch(sock):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)

    watch(near)
    print("ready", flush=True)
    waiting = collections.deque()
    while True:
        wait_s = waiting[0][0] - time.monotonic() if waiting else None
        # The selector waits for whole milliseconds.
        for key, _ in selector.select(None if wait_s is None else max(0, math.ceil(wait_s * 1000) / 1000)):
            sock = key.fileobj
            due = time.monotonic() + ONE_WAY_DELAY_MS / 1000
            for _ in range(64):
                try:
                    packet, source = sock.recvfrom(2048)
                except BlockingIOError:
                    break
                except ConnectionRefusedError:
                    continue
                if sock is near:
                    if source not in far_of:
                        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                        far.connect((FAR, PORT))
                        watch(far)
                        far_of[source], near_of[far] = far, source
                    waiting.append((due, far_of[source], packet, None))
                else:
                    waiting.append((due, near, packet, near_of[sock]))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, sock, packet, to = waiting.popleft()
            try:
                sock.sendto(packet, to) if to else sock.send(packet)
            except (BlockingIOError, ConnectionRefusedError):
                pass


def say(text):
    print(text, flush=True)


def ip(*arguments):
    call("ip", *arguments)


def call(*command):
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
