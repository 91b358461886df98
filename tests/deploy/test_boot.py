"""The package on a machine where systemd runs: the service as its operator sees it, start, reload, watchdog, stop.

systemd is PID 1 of namespaces that the tests make, over this machine's file system and writing to memory: boot.sh."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest

from conftest import DEPLOY, ROOT, run

HERE = pathlib.Path(__file__).resolve().parent
CGROUPS = pathlib.Path("/sys/fs/cgroup")
SYSTEMD = pathlib.Path("/lib/systemd/systemd")

#: Where it keeps track of processes: a tree that it can have alone.
TREE = next((tree for tree in (CGROUPS / "systemd", CGROUPS) if (tree / "cgroup.procs").exists()), None)
OURS = "zrc-relay-boot-"


def lacking() -> str | None:
    """Why there is no way to try it; on CI's machine there is one."""
    if os.geteuid() != 0:
        return "mounts and namespaces for systemd want root"
    if not SYSTEMD.exists():
        return "needs Debian's package systemd"
    if TREE is None or not os.access(TREE, os.W_OK):
        return "systemd wants control groups of its own"
    if os.path.ismount("/usr") or os.path.ismount("/var"):
        return "what is mounted below / is not seen in there"
    probe = ["unshare", "--pid", "--fork", "--mount", "--net", "--uts", "--ipc", "--cgroup", "true"]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        return "no namespaces can be had here"
    version = int(run("systemctl", "--version").stdout.split()[1])
    if TREE != CGROUPS and version >= 256:
        return f"systemd {version} takes no control groups of version 1"
    return None


WHY_NOT = lacking()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def until(what, condition, seconds=30):
    """Waits for something that nobody reports."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return found


class Machine:
    """One that has booted."""

    def __init__(self, init: int):
        self.enter = ["nsenter", "--target", str(init), "--pid", "--mount", "--net", "--uts", "--ipc", "--cgroup", "--"]
        self.network = ["nsenter", "--target", str(init), "--net", "--"]

    def command(self, script: str) -> list[str]:
        login = ["env", "-i", "PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin", "HOME=/root", "LANG=C.UTF-8"]
        return [*self.enter, *login, "sh", "-euc", f"test -e /.zrc-relay-boot; cd /root; {script}"]

    def run(self, script: str) -> str:
        done = subprocess.run(self.command(script), text=True, capture_output=True, timeout=60)
        if done.returncode != 0:
            journal = subprocess.run(self.command("journalctl --lines 30"), text=True, capture_output=True, timeout=60)
            raise AssertionError(f"{script}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{journal.stdout}")
        return done.stdout

    def fails(self, script: str) -> str:
        done = subprocess.run(self.command(script), text=True, capture_output=True, timeout=60)
        assert done.returncode != 0, done
        return done.stdout + done.stderr

    def start(self, script: str) -> subprocess.Popen:
        return subprocess.Popen(self.command(script), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def write(self, path: str, text: str):
        command = self.command(f"mkdir -p $(dirname {path}); cat >{path}")
        subprocess.run(command, input=text, text=True, check=True, timeout=60)

    def show(self, name: str, unit="zrc-relay") -> str:
        return self.run(f"systemctl show --value --property {name} {unit}").strip()

    def metric(self, series: str) -> float | None:
        page = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9433/metrics', timeout=5).read().decode())"
        shown = run(*self.network, sys.executable, "-c", page).stdout
        found = re.search(rf"^{re.escape(series)} (\S+)$", shown, re.M)
        return float(found[1]) if found else None

    def said(self, since: str) -> str:
        """What the service has written after a mark, which is a cursor of the journal."""
        return self.run(f"journalctl --sync; journalctl --unit zrc-relay --output cat --after-cursor {shlex.quote(since)}")

    def mark(self) -> str:
        shown = self.run("journalctl --sync; journalctl --lines 0 --show-cursor")
        return re.search(r"-- cursor: (\S+)", shown)[1]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    for left in TREE.glob(f"{OURS}*"):
        gone(left)
    cgroup = TREE / f"{OURS}{os.getpid()}"
    cgroup.mkdir()
    folder = tmp_path_factory.mktemp("boot")
    booting = subprocess.Popen([HERE / "boot.sh", folder, cgroup], stdin=subprocess.DEVNULL)
    try:
        children = pathlib.Path(f"/proc/{booting.pid}/task/{booting.pid}/children")
        init = until("a child", lambda: booting.poll() is not None or children.read_text().split())
        assert booting.poll() is None, "boot.sh failed, and says above why"
        name = pathlib.Path(f"/proc/{init[0]}/comm")
        until("systemd", lambda: booting.poll() is not None or name.read_text() == "systemd\n")
        machine = Machine(int(init[0]))
        until("its answer", lambda: subprocess.run(machine.command("test -S /run/systemd/private")).returncode == 0)
        machine.run("systemctl is-system-running --wait")
        yield machine
    finally:
        booting.kill()
        booting.wait()
        until("the end of all in there", lambda: gone(cgroup))


def gone(cgroup: pathlib.Path) -> bool:
    """Removes a control group, which works when its last process has ended."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return False
    return True


@pytest.fixture(scope="module")
def installed(machine, package) -> Machine:
    """The package is there, and nobody has said who may use the relay."""
    copy = subprocess.run(machine.command("cat >zrc-relay.deb"), input=package.read_bytes(), timeout=60)
    assert copy.returncode == 0
    # What belongs to others, such as the index of man pages, takes longer than all of this.
    machine.run("dpkg --no-triggers --install zrc-relay.deb; cp /etc/zrc-relay/relay.toml .")
    return machine


@pytest.fixture
def serving(installed) -> Machine:
    """The service as README.md has it installed, open to every device."""
    installed.run(
        """
        systemctl stop zrc-relay
        rm -rf /etc/systemd/system/zrc-relay.service.d /var/lib/zrc-relay /etc/zrc-relay/webhook.secret
        cp relay.toml /etc/zrc-relay/
        sed -i 's/^#\\?self_certified = .*/self_certified = true/' /etc/zrc-relay/relay.toml
        systemctl daemon-reload
        systemctl reset-failed zrc-relay 2>/dev/null || true
        systemctl start zrc-relay
        """
    )
    return installed


def relays(machine: Machine) -> bool:
    """Whether a second of datagrams passes."""
    said = machine.run(f"{BENCH} --secs 1 2>&1")
    sent, delivered = (re.search(rf"^{what} +(\d+)", said, re.M) for what in ("sent", "delivered"))
    return int(sent[1]) == int(delivered[1]) > 0


BENCH = "zrc-relay bench --relay /var/lib/zrc-relay/relay.json --pairs 1 --rate 200"


def test_what_is_installed_does_not_run_before_it_is_configured(installed):
    assert installed.show("ActiveState") == "inactive"
    before = installed.mark()
    installed.fails("systemctl enable --now zrc-relay")
    assert installed.show("ExecMainStatus") == "78"
    assert "this relay would serve nobody" in installed.said(before)
    # systemd would start it anew after RestartSec.
    assert installed.show("SubState") == "failed" and installed.show("NRestarts") == "0"


def test_the_service_relays_with_all_that_is_taken_away_from_it(serving):
    assert serving.run("zrc-relay healthcheck --ready && echo ready") == "ready\n"
    assert re.match(r"relay on \[::\]:4433 \(UDP\)", serving.show("StatusText"))
    assert relays(serving)
    user = serving.run("stat --format %U /proc/$(systemctl show --value -p MainPID zrc-relay)").strip()
    assert user == "zrc-relay"
    listed = serving.run("stat --format '%a %U' /var/lib/zrc-relay /var/lib/zrc-relay/key.pem").split("\n")
    assert listed[:2] == ["700 zrc-relay", "600 zrc-relay"]


def test_a_reload_is_heard_and_a_faulty_file_keeps_what_was(serving):
    process, before = serving.show("MainPID"), serving.mark()
    serving.run("sed -i 's/^#\\?max_allocations = .*/max_allocations = 7/' /etc/zrc-relay/relay.toml")
    serving.run("systemctl reload zrc-relay")
    until("the new limit", lambda: serving.metric("zrc_relay_max_allocations") == 7)
    serving.run("echo 'max_alocations = 9' >>/etc/zrc-relay/relay.toml; systemctl reload zrc-relay")
    until("its fault", lambda: "max_alocations" in serving.said(before))
    assert serving.metric("zrc_relay_max_allocations") == 7
    assert (serving.show("MainPID"), serving.show("ActiveState")) == (process, "active")


def test_keys_of_root_and_a_low_port_come_by_drop_ins(serving):
    serving.run(
        """
        systemctl stop zrc-relay
        live=/etc/letsencrypt/live/relay.example.com below=/etc/systemd/system/zrc-relay.service.d
        mkdir -p $live $below
        mv /var/lib/zrc-relay/cert.pem $live/fullchain.pem; mv /var/lib/zrc-relay/key.pem $live/privkey.pem
        rm -r /var/lib/zrc-relay
        printf whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw >/etc/zrc-relay/webhook.secret
        chown root:root $live/* /etc/zrc-relay/webhook.secret; chmod 600 $live/* /etc/zrc-relay/webhook.secret
        cp /usr/share/doc/zrc-relay/examples/*.conf $below/
        """
    )
    # The paths that the drop-in's own comment tells.
    told = (DEPLOY / "systemd/credentials.conf").read_text()
    lines = dict(re.findall(r"^#   (\w+) = (.*)$", told, re.M))
    for key, value in {**lines, "listen_port": "443", "webhook_url": '"https://127.0.0.1:1/"'}.items():
        serving.run(f"sed -i 's|^#\\?{key} = .*|{key} = {value}|' /etc/zrc-relay/relay.toml")
        serving.run(f"grep -q '^{key} = {value}' /etc/zrc-relay/relay.toml")
    serving.run("systemctl daemon-reload; systemctl start zrc-relay")
    assert ":443 (UDP)" in serving.show("StatusText")
    assert relays(serving)
    assert "key.pem" not in serving.run("ls /var/lib/zrc-relay")


def test_a_relay_that_stands_still_is_started_anew(serving):
    serving.write("/etc/systemd/system/zrc-relay.service.d/soon.conf", "[Service]\nWatchdogSec=5\nWatchdogSignal=SIGKILL\nRestartSec=0\n")
    serving.run("systemctl daemon-reload; systemctl restart zrc-relay")
    process = serving.show("MainPID")
    # It is fed for longer than it would live unfed.
    serving.run("sleep 6")
    assert serving.show("MainPID") == process
    serving.run(f"sh -c 'kill -STOP {process}'")
    until("another process", lambda: serving.show("MainPID") not in ("0", process))
    until("the service", lambda: serving.show("ActiveState") == "active")
    assert serving.show("NRestarts") == "1"
    serving.run("zrc-relay healthcheck --ready")


def test_who_is_there_is_told_when_it_stops(serving):
    clients = serving.start(f"{BENCH} --secs 600 2>&1")
    until("a pair", lambda: serving.metric('zrc_relay_forwarded_datagrams_total{from="peer"}'))
    before = serving.mark()
    serving.run("systemctl stop zrc-relay")
    assert (serving.show("Result"), serving.show("ExecMainStatus")) == ("success", "0")
    assert "leaving: telling the clients" in serving.said(before)
    told, _ = clients.communicate(timeout=60)
    assert re.search(r"^closed +1 DRAINING$", told, re.M), told


def test_the_lines_of_readme_for_systemd_run(installed):
    lines = re.findall(r"^    ((?:systemd-run|systemctl) --user .*)$", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) == 2
    begin, end = lines
    # One who has signed in has a manager of the own services; here, it is started by hand.
    installed.run(
        """
        systemctl stop zrc-relay
        mkdir -p -m 0700 /run/user/0
        systemd-run --quiet --unit manager --property Delegate=yes --property Type=notify \
            --setenv XDG_RUNTIME_DIR=/run/user/0 --setenv HOME=/root /lib/systemd/systemd --user
        zrc-relay init first --name localhost --open
        """
    )
    user = "export XDG_RUNTIME_DIR=/run/user/0;"
    installed.run(f"{user} {begin}")
    assert installed.run("zrc-relay healthcheck --ready --config first/relay.toml && echo ready") == "ready\n"
    installed.run(f"{user} {end}")
    installed.fails("zrc-relay healthcheck --config first/relay.toml")


def test_an_upgrade_starts_the_new_one_and_a_purge_leaves_nothing(serving):
    serving.run("systemctl enable zrc-relay")
    process = serving.show("MainPID")
    serving.run("dpkg --no-triggers --install zrc-relay.deb")
    assert serving.show("ActiveState") == "active" and serving.show("MainPID") != process
    serving.run("dpkg --no-triggers --remove zrc-relay")
    assert serving.show("ActiveState") == "inactive"
    serving.run("test -e /var/lib/zrc-relay/key.pem; test ! -e /usr/bin/zrc-relay")
    serving.run("dpkg --no-triggers --purge zrc-relay; test ! -e /var/lib/zrc-relay; test ! -e /etc/zrc-relay")
    assert serving.show("LoadState") == "not-found"
