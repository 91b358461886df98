#!/usr/bin/env python3
"""Measures one relay with `zrc-relay bench` and prints a table of medians.

    cargo build --release && python3 benches/run.py [--repeats 5] [--secs 5]

The relay runs alone on the first core this process may use, the load on the others. Every row is measured
`repeats` times, the rows interleaved, each time on a relay that was started anew; the table has medians, and
the smallest and largest value behind them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BINARY = Path(__file__).resolve().parent.parent / "target/release/zrc-relay"

DATAGRAMS = ["pps", "loss", "relay_cpu_us_per_delivered", "rtt_p50_us", "rtt_p99_us"]

# What is put on the relay, and which figures of `bench` say something about it.
ROWS = {
    "idle, 1000 pairs": (
        ["--pairs", "1000", "--rate", "0", "--secs", "3"],
        ["relay_rss_kib_per_pair", "relay_cpu_ms_per_setup"],
    ),
    "datagrams, 200 pairs, 20 000/s": (
        ["--pairs", "200", "--rate", "20000"],
        DATAGRAMS,
    ),
    "datagrams, 1 pair, 1000/s": (
        ["--pairs", "1", "--rate", "1000"],
        DATAGRAMS,
    ),
    "datagrams, 1 pair, 20 000/s": (
        ["--pairs", "1", "--rate", "20000"],
        DATAGRAMS,
    ),
    "datagrams, 1 pair, 80 000/s": (
        ["--pairs", "1", "--rate", "80000"],
        DATAGRAMS,
    ),
    "datagrams, 1 pair, flat out (300 000/s offered)": (
        ["--pairs", "1", "--rate", "300000"],
        ["pps", "loss", "relay_cpu_us_per_delivered"],
    ),
    "streams, 1 pair, flat out (records of 16 000 bytes)": (
        ["--pairs", "1", "--rate", "100000", "--size", "16000", "--mode", "stream"],
        ["mbytes_per_sec", "relay_cpu_us_per_kib"],
    ),
}


def measure(arguments, secs, cores):
    """One run against a relay of its own; the figures of `bench`, and two that follow from them."""
    relay_core, load_cores = {cores[0]}, set(cores[1:]) or {cores[0]}
    with tempfile.TemporaryDirectory() as folder:
        relay = subprocess.Popen(
            # Nobody reads its log while it runs; a full pipe would hold it up.
            [BINARY, "--log", "warn", "serve", "--dev", "--state-dir", folder],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, relay_core),
        )
        try:
            for line in relay.stderr:
                if line.startswith("clients:"):
                    break
            else:
                sys.exit("the relay did not start")
            command = [BINARY, "bench", "--relay", f"{folder}/relay.json", "--relay-pid", str(relay.pid), "--json"]
            # Later flags win: a row may say how long it takes.
            command += ([] if "--secs" in arguments else ["--secs", str(secs)]) + arguments
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
                timeout=120,
                preexec_fn=lambda: os.sched_setaffinity(0, load_cores),
            )
        finally:
            relay.kill()
            relay.wait()
            relay.stderr.close()
    figures = json.loads(done.stdout)
    if figures["delivered"]:
        figures["mbytes_per_sec"] = figures["delivered_bytes"] / figures["secs"] / 1e6
        cpu_us = figures["relay_cpu_us_per_delivered"] * figures["delivered"]
        figures["relay_cpu_us_per_kib"] = cpu_us / (figures["delivered_bytes"] / 1024)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--secs", type=int, default=5)
    arguments = parser.parse_args()
    if not BINARY.exists():
        sys.exit(f"{BINARY} is missing: cargo build --release")
    cores = sorted(os.sched_getaffinity(0))
    runs = {name: [] for name in ROWS}
    for repeat in range(arguments.repeats):
        for name, (load, _) in ROWS.items():
            print(f"{repeat + 1}/{arguments.repeats} {name}", file=sys.stderr)
            runs[name].append(measure(load, arguments.secs, cores))
    print("| load | figure | median | min | max |\n|---|---|---|---|---|")
    for name, (_, wanted) in ROWS.items():
        for figure in wanted:
            values = [run[figure] for run in runs[name]]
            shown = [f"{value:,.6g}".replace(",", " ") for value in (statistics.median(values), min(values), max(values))]
            print(f"| {name} | `{figure}` | {' | '.join(shown)} |")


main()
