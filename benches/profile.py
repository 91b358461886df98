#!/usr/bin/env python3
"""Shows where a relay's CPU time goes under one load of the comparison.

Called by benches/profile.sh, which installs and builds what this needs. Samples the relay with perf while the load of
a row of benches/peers.py is on it, and sorts the samples: by whose code it is, the kernel's part by what it was asked
for, and by function.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import peers

# Whose code a function is: the first crate that its name names. The others are told by their name or library.
OWNERS = {
    "zrc_relay": "zrc-relay",
    "quinn_udp": "quinn-udp",
    "quinn_proto": "quinn-proto",
    "quinn": "quinn",
    "rustls": "TLS and crypto",
    "aws_lc": "TLS and crypto",
    "ed25519_dalek": "TLS and crypto",
    "curve25519_dalek": "TLS and crypto",
    "tokio": "tokio and mio",
    "mio": "tokio and mio",
}
CRATE = re.compile(r"\b(" + "|".join(OWNERS) + r")\w*::")
CRYPTO = re.compile(r"aws_lc|aes|gcm|ghash|sha(1|256|512)|x25519|ecdsa|p256|chacha|EVP_|bn_", re.IGNORECASE)
# What the kernel was asked for: the first of these that a function on the stack names, from the outermost on.
ENTRIES = {
    "sys_sendm": "send",
    "sys_sendto": "send",
    "sys_recvm": "receive",
    "sys_recvfrom": "receive",
    "sys_epoll_ctl": "epoll_ctl",
    "epoll_wait": "wait",
    "epoll_pwait": "wait",
    "sys_poll": "wait",
    "sys_ppoll": "wait",
    "futex": "futex",
    "sys_write": "write",
    "sys_read": "read",
    "getrandom": "randomness",
    "asm_sysvec": "interrupts",
    "page_fault": "page faults",
    "mmap": "memory",
    "madvise": "memory",
    "syscall": "entering and leaving",
}
FREQUENCY_HZ = 1999


def samples_of(recording):
    """The stack of every sample, innermost function first: [(function, library)]."""
    text = subprocess.run(
        ["perf", "script", "--input", recording, "--fields", "ip,sym,dso", "--demangle"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    ).stdout
    for block in text.split("\n\n"):
        stack = []
        for line in block.strip().splitlines():
            match = re.match(r"\s*[0-9a-f]+ (.*) \((.*)\)$", line)
            if match:
                stack.append(match.groups())
        if stack:
            yield stack


def is_kernel(library):
    return library.startswith("[kernel") or library.endswith(".ko") or library == "[unknown]"


def owner_of(function, library):
    crate = CRATE.search(function)
    if crate:
        return OWNERS[crate.group(1)]
    if CRYPTO.search(function):
        return "TLS and crypto"
    if library.endswith(("libc.so.6", "[vdso]")) or re.search(r"mem(cpy|move|set)|malloc|free|mi_", function):
        return "libc: memory, clocks, system calls"
    return "the rest of the program"


def entry_of(stack):
    for function, _ in reversed(stack):
        # What every call goes through says nothing until nothing else is left.
        for part, entry in ENTRIES.items():
            if part in function and (part != "syscall" or function == stack[0][0]):
                return f"kernel: {entry}"
    return "kernel: other"


def print_shares(title, counts, total, most):
    print(f"\n{title}")
    for name, count in counts.most_common(most):
        print(f"{count / total:7.1%}  {name}")


def report(recording, top):
    groups, functions = collections.Counter(), collections.Counter()
    for stack in samples_of(recording):
        function, library = stack[0]
        kernel = is_kernel(library)
        groups[entry_of(stack) if kernel else owner_of(function, library)] += 1
        # Without the hash at the end, copies of a generic function are one.
        functions[("[k] " if kernel else "    ") + re.sub(r"::h[0-9a-f]{16}$", "", function)] += 1
    total = sum(groups.values())
    if not total:
        raise peers.Failure("perf has no samples: is it allowed to take any (kernel.perf_event_paranoid)?")
    kernel = sum(count for group, count in groups.items() if group.startswith("kernel"))
    print(f"{total} samples, {kernel / total:.1%} of them in the kernel")
    print_shares("whose code", groups, total, None)
    print_shares(f"functions, the {top} largest", functions, total, top)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=peers.ROWS, default="sparse")
    parser.add_argument("--relay", choices=peers.NAMES, default=peers.RAW)
    parser.add_argument("--load", help="arguments of the load, instead of the row's")
    parser.add_argument("--secs", type=float, default=5)
    parser.add_argument("--set-up", action="store_true", help="sample while clients connect, too")
    parser.add_argument("--top", type=int, default=40, help="how many functions (40)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep the recording, for perf report")
    arguments = parser.parse_args()
    settings = peers.Settings(secs=arguments.secs)
    row = peers.ROWS[arguments.row]
    if arguments.load:
        row = dataclasses.replace(row, load=arguments.load)
    with tempfile.TemporaryDirectory(prefix="zrc-profile-") as folder:
        recording = arguments.keep or Path(folder) / "perf.data"
        figures = record(settings, row, arguments.relay, folder, recording, arguments.set_up)
        print(f"{row.title}: {peers.NAMES[arguments.relay]}")
        for figure in [figure for figure in row.figures if figures[figure.key] is not None]:
            print(f"{figure.label}: {peers.shown(figures[figure.key], figure)}")
        report(recording, arguments.top)


def record(settings, row, contender, folder, recording, set_up_too):
    """Samples a relay until the load is over; what the load says of it."""
    with peers.Relay(settings, contender, folder) as relay, contextlib.ExitStack() as started:
        command = ["perf", "record", "--quiet", "--call-graph", "fp", "--freq", str(FREQUENCY_HZ)]
        command += ["--output", recording, "--pid", str(relay.process.pid)]
        perf = started.enter_context(ended(subprocess.Popen(command))) if set_up_too else None
        load = subprocess.Popen(
            peers.load_command(settings, row, relay),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: settings.settle(settings.load_core),
        )
        started.enter_context(ended(load))
        if load.stderr.readline() != "set up\n":
            raise peers.Failure(f"the load failed: {load.stderr.read()}")
        perf = perf or started.enter_context(ended(subprocess.Popen(command)))
        said, error = load.communicate(timeout=peers.LOAD_TIMEOUT_SECS)
        # It writes what it has, and ends.
        perf.send_signal(signal.SIGINT)
        perf.wait()
    if load.returncode:
        raise peers.Failure(f"the load failed: {error}")
    return json.loads(said)


@contextlib.contextmanager
def ended(process):
    """Sees to it that a process is not left behind."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    try:
        main()
    except peers.Failure as failure:
        sys.exit(str(failure))
