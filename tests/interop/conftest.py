"""Runs coroutine tests, each with a limit, against one relay for the whole run."""

import asyncio
import inspect
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from client import Relay
from wire import Grant

#: A relay for this machine alone, which anybody may use: the beginning of a configuration.
LOCAL = """
[relay]
listen_addr = "127.0.0.1"
listen_port = 0
self_certified = true
[ops]
listen_port = 0
"""

DEFAULT_BIN = Path(__file__).resolve().parents[2] / "target" / "debug" / "zrc-relay"


# What a relay says to whoever started it, and how each line of its log begins.
ANNOUNCED = ("zrc-relay ", "relay on ", "ops on ", "admin API ", "admin socket ", "clients: ", "leaving: ")
LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z +(ERROR|WARN|INFO|DEBUG|TRACE) ")


def check_log(lines):
    """One event, one line, whatever clients send; and addresses at debug alone."""
    for line in lines:
        line = line.removesuffix("\n")
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e]", line), f"not escaped: {line!r}"
        if line.startswith(ANNOUNCED):
            continue
        begin = LINE.match(line)
        assert begin, f"no line of the log: {line!r}"
        assert begin[1] in ("DEBUG", "TRACE") or "127.0.0.1" not in line, f"an address: {line!r}"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test may be a coroutine; it fails when it takes longer than its limit."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    marker = pyfuncitem.get_closest_marker("limit")
    limit_s = marker.args[0] if marker else 30
    names = inspect.signature(pyfuncitem.obj).parameters
    given = {name: value for name, value in pyfuncitem.funcargs.items() if name in names}

    async def limited():
        async with asyncio.timeout(limit_s):
            await pyfuncitem.obj(**given)

    asyncio.run(limited())
    return True


class Process:
    """A running relay: its state directory, what it said, and its end."""

    def __init__(self, state_dir, *arguments):
        binary = os.environ.get("ZRC_BIN", DEFAULT_BIN)
        self.state_dir = Path(state_dir)
        self.said = []
        self.stopped = False
        self.child = subprocess.Popen(
            [binary, "serve", "--state-dir", state_dir, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.listening = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        try:
            assert self.listening.wait(30), "it did not say where it listens within 30 s"
            self.relay = Relay.read(self.state_dir / "relay.json")
        except (AssertionError, OSError, ValueError) as error:
            self.child.kill()
            self.child.wait()
            self.reader.join()
            pytest.fail(f"the relay did not start: {error}\n" + "".join(self.said))

    def _read(self):
        for line in self.child.stderr:
            self.said.append(line)
            # The addresses are said when every socket is bound and relay.json is written.
            if "http://" in line:
                self.listening.set()
        self.listening.set()

    async def says(self, text, times=1):
        """Waits until it has said this so many times."""
        while sum(text in line for line in self.said) < times:
            await asyncio.sleep(0.01)

    def rss_bytes(self):
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the relay is gone")

    def stop(self):
        """SIGTERM, once: a second one would not let it say goodbye. Returns the exit code."""
        self.stopped = True
        self.child.terminate()
        try:
            code = self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            pytest.fail("the relay did not stop within 30 s")
        finally:
            self.reader.join()
            self.child.stderr.close()
        return code


@pytest.fixture(scope="session")
def process(tmp_path_factory):
    """`serve --dev`; must stop cleanly and must not have panicked."""
    process = Process(tmp_path_factory.mktemp("relay"), "--dev", "--log", "info,zrc_relay=debug,security=debug")
    yield process
    assert process.child.poll() is None, "the relay ended by itself:\n" + "".join(process.said)
    code = process.stop()
    said = "".join(process.said)
    assert code == 0, f"exit code {code}:\n{said}"
    assert "panic" not in said, said
    assert "DEBUG" in said
    check_log(process.said)


@pytest.fixture
def relay(process):
    return process.relay


@pytest.fixture
def grant(relay):
    """A fresh grant with new keys on this relay."""
    return Grant(relay.relay_id)


@pytest.fixture
def configured(tmp_path):
    """Starts a relay with a configuration of its own: configured("[section]\nkey = value", "--log", "debug")."""
    started = []

    def start(text, *arguments):
        file = tmp_path / "relay.toml"
        file.write_text(text)
        started.append(Process(tmp_path / "state", "--config", str(file), *arguments))
        return started[-1]

    yield start
    codes = [process.child.returncode if process.stopped else process.stop() for process in started]
    assert codes == [0] * len(started), "".join(line for process in started for line in process.said)


@pytest.fixture
def stopwatch():
    began = time.monotonic()
    return lambda: time.monotonic() - began
