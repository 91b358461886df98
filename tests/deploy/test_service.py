"""The systemd unit and its drop-ins, read by systemd itself."""

import math
import re
import shutil

import pytest

from conftest import DEPLOY, ROOT, run

UNIT = DEPLOY / "systemd/zrc-relay.service"


def unit(folder, binary, *drop_ins):
    """The unit as it would be installed, with the program that there is."""
    text = UNIT.read_text()
    adapted = text.replace("ExecStart=zrc-relay ", f"ExecStart={binary} ")
    assert adapted != text
    (folder / "zrc-relay.service").write_text(adapted)
    for drop_in in drop_ins:
        below = folder / "zrc-relay.service.d"
        below.mkdir(exist_ok=True)
        shutil.copy(DEPLOY / "systemd" / drop_in, below)
    return folder / "zrc-relay.service"


def exposure(path) -> float:
    said = run("systemd-analyze", "security", "--no-pager", "--offline=true", path).stdout
    return float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)[1])


@pytest.mark.parametrize("drop_ins", [[], ["credentials.conf"], ["low-port.conf"]], ids=str)
def test_systemd_understands_the_unit(tmp_path, binary, drop_ins):
    path = unit(tmp_path, binary, *drop_ins)
    said = run("systemd-analyze", "verify", "--man=no", path)
    # A slip in a key is a warning to systemd, and one here.
    assert "zrc-relay" not in said.stderr, said.stderr


def test_a_slip_in_the_unit_is_found(tmp_path, binary):
    path = unit(tmp_path, binary)
    path.write_text(path.read_text().replace("WatchdogSec=", "WatchdgSec="))
    said = run("systemd-analyze", "verify", "--man=no", path)
    assert "zrc-relay.service" in said.stderr


def test_the_service_is_exposed_to_little(tmp_path, binary):
    assert exposure(unit(tmp_path, binary)) <= 2.0
    low = tmp_path / "low"
    low.mkdir()
    path = unit(low, binary)
    # Offline, systemd reads no drop-ins.
    settings = (DEPLOY / "systemd/low-port.conf").read_text().split("[Service]\n")[1]
    path.write_text(path.read_text().replace("\n[Install]", f"\n{settings}\n[Install]"))
    assert exposure(path) <= 2.0
    # The measure measures.
    path.write_text(re.sub(r"^(Protect|Private|Restrict|SystemCall|Capab)\w+=.*\n", "", path.read_text(), flags=re.M))
    assert exposure(path) > 4.0


def test_the_unit_and_the_program_agree(binary):
    text = UNIT.read_text()
    setting = lambda key: re.search(rf"^{key}=(.*)$", text, re.M)[1]
    assert setting("Type") == "notify"
    # Wrong command line, files or configuration: as the help tells.
    help_text = run(binary, "--help").stdout
    for code in setting("RestartPreventExitStatus").split():
        assert re.search(rf"^  {code} ", help_text, re.M), code
    # Longer than the relay takes to say goodbye.
    goodbye = int(re.search(r"within\s+(\d+) seconds", run(binary, "serve", "--help").stdout)[1])
    assert int(setting("TimeoutStopSec")) > goodbye
    assert int(setting("WatchdogSec")) >= 10


def test_the_user_is_made_by_sysusers(tmp_path):
    user = re.search(r"^User=(\S+)$", UNIT.read_text(), re.M)[1]
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", DEPLOY / "systemd/sysusers.d/zrc-relay.conf")
    made = (tmp_path / "etc/passwd").read_text()
    assert re.search(rf"^{user}:.*:/var/lib/zrc-relay:/usr/sbin/nologin$", made, re.M), made


def test_the_kernel_allows_what_the_relay_asks_for():
    lines = [line for line in (DEPLOY / "sysctl.conf").read_text().splitlines() if line and line[0] != "#"]
    settings = {key.strip(): int(value) for key, value in (line.split("=") for line in lines)}
    asked = re.search(r"SOCKET_BUFFER_BYTES: usize = ([0-9 *]+);", (ROOT / "src/relay/steer.rs").read_text())[1]
    for key in ("net.core.rmem_max", "net.core.wmem_max"):
        assert settings[key] == math.prod(map(int, asked.split("*")))
