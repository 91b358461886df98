"""What deploy/ holds, checked against the program and against the tools that read it. Run by tests/run.sh deploy, which
says where both are: ZRC_BIN, and ZRC_DEPLOY_TOOLS for Debian's packages that are unpacked and not installed."""

import os
import pathlib
import re
import subprocess
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
#: What a relay's metrics are called.
NAMES = r"(?:zrc_relay|process)_\w+"


def run(*command, **more) -> subprocess.CompletedProcess:
    """Runs a command that must succeed; its output is in the failure where it does not."""
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True, timeout=300, **more)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def binary() -> pathlib.Path:
    return pathlib.Path(os.environ["ZRC_BIN"]).resolve()


@pytest.fixture(scope="session")
def tools() -> pathlib.Path:
    return pathlib.Path(os.environ["ZRC_DEPLOY_TOOLS"]).resolve()


@pytest.fixture(scope="session")
def package(binary, tmp_path_factory) -> pathlib.Path:
    """The Debian package, of the program that there is."""
    folder = tmp_path_factory.mktemp("package")
    # Where cargo-deb looks for what is not to be built.
    (folder / "target/musl-test").mkdir(parents=True)
    # Without its symbols, as a release is packed.
    run("strip", "--output-file", folder / "target/musl-test/zrc-relay", binary)
    env = {**os.environ, "ZRC_BIN": str(binary), "CARGO_TARGET_DIR": str(folder / "target")}
    env |= {"DEBFULLNAME": "Ann Admin", "DEBEMAIL": "ann@example.org"}
    built = folder / "zrc-relay.deb"
    pack = ["--no-build", "--no-strip", "--fast", "--profile", "musl-test", "--output", built]
    done = run(DEPLOY / "debian/build.sh", *pack, env=env)
    assert "warning" not in done.stderr, done.stderr
    return built


class Metrics:
    """What a relay shows: names, and which values each label of each name takes."""

    def __init__(self, text: str):
        self.types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
        self.labels: dict[str, dict[str, set[str]]] = {}
        for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.M):
            values = self.labels.setdefault(name, {})
            for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
                values.setdefault(label, set()).add(value)

    def missing(self, expression: str) -> list[str]:
        """What an expression names that no relay shows: metrics, and values of their labels."""
        wrong = []
        for name, selector in re.findall(rf"\b({NAMES})\b(\{{[^}}]*\}})?", expression):
            if name not in self.labels:
                wrong.append(name)
                continue
            for label, how, value in re.findall(r'(\w+)\s*(=~|=)\s*"([^"]*)"', selector):
                if label in ("job", "instance") or "$" in value:
                    continue
                known = self.labels[name].get(label, set())
                for part in value.split("|") if how == "=~" else [value]:
                    if part not in known:
                        wrong.append(f'{name}{{{label}="{part}"}}')
        # What it is divided by has to be there as well.
        for by, inside in re.findall(rf"\bby \(([^)]*)\) \((?:\w+\()*({NAMES})", expression):
            for label in map(str.strip, by.split(",")):
                if label not in ("job", "instance") and label not in self.labels.get(inside, {}):
                    wrong.append(f"{inside} by {label}")
        return wrong


@pytest.fixture(scope="session")
def metrics(binary, tmp_path_factory) -> Metrics:
    """Of a relay that runs."""
    state = tmp_path_factory.mktemp("metrics")
    relay = subprocess.Popen(
        # What is shown by country and region is only there where somebody wants it.
        [binary, "serve", "--dev", "--state-dir", state, "--set", "relay.region=here",
         "--set", f"ops.geoip_path={ROOT / 'tests/vectors/countries.mmdb'}"],
        stderr=subprocess.PIPE, text=True
    )
    try:
        ops = next(m[1] for line in relay.stderr if (m := re.search(r"(http://127\.0\.0\.1:\d+)", line)))
        with urllib.request.urlopen(ops + "/metrics", timeout=30) as page:
            text = page.read().decode()
    finally:
        relay.terminate()
        relay.communicate(timeout=60)
    shown = Metrics(text)
    assert len(shown.types) > 20, text
    return shown
