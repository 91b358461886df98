"""The Debian package, built from the program that there is: what is in it, and what its scripts do."""

import gzip
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from conftest import DEPLOY, ROOT, run


@pytest.fixture(scope="module")
def unpacked(package) -> pathlib.Path:
    folder = package.parent / "unpacked"
    run("dpkg-deb", "--raw-extract", package, folder)
    return folder


def test_the_package_says_what_it_is(package):
    field = lambda name: run("dpkg-deb", "--field", package, name).stdout.strip()
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert field("Package") == "zrc-relay"
    assert field("Version").startswith(version)
    assert field("Architecture") == run("dpkg", "--print-architecture").stdout.strip()
    assert "systemd" in field("Depends") and "libc6" in field("Depends")
    summary, *more = field("Description").splitlines()
    assert summary and len(more) >= 3
    assert field("Section") == "net"
    assert field("Maintainer") == "Ann Admin <ann@example.org>"


def test_nobody_is_no_maintainer(tmp_path):
    env = {**os.environ, "ZRC_BIN": "/bin/true", "DEBFULLNAME": "", "DEBEMAIL": ""}
    # Without git's settings, too.
    env |= {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_DIR": str(tmp_path)}
    done = subprocess.run([DEPLOY / "debian/build.sh", "--no-build"], env=env, text=True, capture_output=True)
    assert done.returncode == 2 and "DEBEMAIL" in done.stderr, done


#: What lintian says that is as it should be, and why.
TOLERATED = {
    # Debian's own hardening is C's; Rust checks bounds.
    "hardening-no-fortify-functions",
    # It is not in Debian's archive.
    "initial-upload-closes-no-bugs",
    # Words in libraries.
    "spelling-error-in-binary",
    # cargo-deb makes none; dpkg makes its own while it unpacks.
    "no-md5sums-control-file",
    # A relay without systemd is started by whoever does without.
    "package-supports-alternative-init-but-no-init.d-script",
    "binary-has-unneeded-section",
}


@pytest.mark.skipif(not shutil.which("lintian"), reason="needs Debian's package lintian")
def test_debian_finds_no_fault_with_it(package):
    command = ["lintian", "--allow-root", "--tag-display-limit", "0", "--display-info", "--pedantic", package]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    found = re.findall(r"^[EWIP]: zrc-relay: (\S+).*$", done.stdout, re.M)
    # It has looked: some of these are always there.
    assert "no-md5sums-control-file" in found, done
    assert [tag for tag in found if tag not in TOLERATED] == [], done.stdout


#: In front of what wants to be root: nothing for those who are, and for others a namespace in which they are.
AS_ROOT = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]


def may_be_root() -> bool:
    try:
        return not AS_ROOT or subprocess.run([*AS_ROOT, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def dpkg(root, *args):
    """dpkg on a system of its own below `root`, where scripts are run by this one and told where to look."""
    forced = ["--force-depends", "--force-script-chrootless", "--force-confold"]
    log = ["--log", root / "dpkg.log"]
    command = [*AS_ROOT, "dpkg", "--root", root, *log, *forced, *args]
    # It wants ldconfig and start-stop-daemon, which not everybody has in theirs.
    return run(*command, env={**os.environ, "PATH": f"{root}/stubs:{os.environ['PATH']}:/usr/sbin:/sbin"})


@pytest.mark.skipif(not may_be_root(), reason="dpkg installs as root alone, and no user namespace can be had")
def test_what_an_operator_has_outlives_an_upgrade_and_a_removal_and_not_a_purge(package, tmp_path, monkeypatch):
    # As it is for who is not root.
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "stubs", "etc"]:
        (tmp_path / folder).mkdir(parents=True)
    for file in ["status", "available"]:
        (tmp_path / "var/lib/dpkg" / file).write_text("")
    # What asks the system that runs, or would be asked of it.
    for tool in ["systemctl", "deb-systemd-invoke", "deb-systemd-helper"]:
        stub = tmp_path / "stubs" / tool
        stub.write_text("#!/bin/sh\nexit 0\n")
        stub.chmod(0o755)
    said = dpkg(tmp_path, "--install", package).stdout
    assert "say in /etc/zrc-relay/relay.toml who may use it" in said
    assert re.search(r"^zrc-relay:", (tmp_path / "etc/passwd").read_text(), re.M)
    config, key = tmp_path / "etc/zrc-relay/relay.toml", tmp_path / "var/lib/zrc-relay/key.pem"
    changed = config.read_text() + "# by its operator\n"
    config.write_text(changed)
    key.parent.mkdir(mode=0o700)
    key.write_text("a key")
    said = dpkg(tmp_path, "--install", package).stdout
    assert "say in" not in said, "who upgrades knows"
    assert (config.read_text(), key.read_text()) == (changed, "a key")
    dpkg(tmp_path, "--remove", "zrc-relay")
    assert not (tmp_path / "usr/bin/zrc-relay").exists()
    assert (config.read_text(), key.read_text()) == (changed, "a key")
    dpkg(tmp_path, "--purge", "zrc-relay")
    assert not config.parent.exists() and not key.parent.exists()
    assert "zrc-relay" not in (tmp_path / "var/lib/dpkg/status").read_text()


def test_everything_is_where_debian_has_it(package, unpacked):
    files = {}
    for line in run("dpkg-deb", "--contents", package).stdout.splitlines():
        mode, owner, _, _, _, path = line.split(maxsplit=5)
        assert owner in ("0/0", "root/root"), line
        assert mode[8] == "-", f"anybody may write: {line}"
        if mode[0] == "-":
            files[path.removeprefix("./")] = mode
    for path in [
        "usr/bin/zrc-relay",
        "etc/zrc-relay/relay.toml",
        "usr/lib/systemd/system/zrc-relay.service",
        "usr/lib/sysusers.d/zrc-relay.conf",
        "usr/lib/sysctl.d/60-zrc-relay.conf",
        "usr/share/man/man1/zrc-relay.1.gz",
        "usr/share/man/man1/zrc-relay-serve.1.gz",
        "usr/share/bash-completion/completions/zrc-relay",
        "usr/share/zsh/vendor-completions/_zrc-relay",
        "usr/share/fish/vendor_completions.d/zrc-relay.fish",
        "usr/share/doc/zrc-relay/copyright",
        "usr/share/doc/zrc-relay/changelog.gz",
        "usr/share/doc/zrc-relay/changelog.Debian.gz",
        "usr/share/doc/zrc-relay/LICENSE-MIT",
        "usr/share/doc/zrc-relay/LICENSE-APACHE",
        "usr/share/doc/zrc-relay/examples/credentials.conf",
        "usr/share/doc/zrc-relay/examples/grafana/zrc-relay.json",
        "usr/share/doc/zrc-relay/examples/prometheus/zrc-relay.rules.yml",
    ]:
        assert path in files, sorted(files)
    executable = [path for path, mode in files.items() if "x" in mode]
    assert executable == ["usr/bin/zrc-relay"]
    assert not [path for path in files if path.startswith(("usr/local/", "var/", "run/", "opt/"))]
    # What an operator changes is asked about at an upgrade, and nothing else is.
    assert (unpacked / "DEBIAN/conffiles").read_text().split() == ["/etc/zrc-relay/relay.toml"]
    assert not [path for path in files if path.startswith("etc/") and path != "etc/zrc-relay/relay.toml"]
    page = gzip.decompress((unpacked / "usr/share/man/man1/zrc-relay-serve.1.gz").read_bytes()).decode()
    assert ".TH zrc-relay-serve" in page


def test_the_licence_of_what_is_embedded_comes_along(unpacked):
    words = (unpacked / "usr/share/doc/zrc-relay/copyright").read_text().split()
    licences = [(ROOT / name).read_text().split() for name in ("LICENSE-MIT", "admin/uPlot.LICENSE")]
    assert licences[0] != licences[1]
    for licence in licences:
        # cargo-deb indents it, and has a dot where a line is empty.
        assert " ".join(licence) in " ".join(word for word in words if word != "."), licence[:8]


def test_the_man_pages_are_sound(unpacked):
    for path in sorted((unpacked / "usr/share/man/man1").glob("*.gz")):
        page = gzip.decompress(path.read_bytes()).decode()
        if shutil.which("groff"):
            said = run("groff", "-man", "-Tutf8", "-ww", "-z", input=page)
            assert not said.stderr, f"{path.name}: {said.stderr}"
        assert page.startswith(".ie") or ".TH zrc-relay" in page


def test_the_service_starts_the_program_that_is_installed(unpacked):
    unit = (unpacked / "usr/lib/systemd/system/zrc-relay.service").read_text()
    command = re.search(r"^ExecStart=(.*)$", unit, re.M)[1].split()
    assert (unpacked / "usr/bin" / command[0]).exists()
    assert (unpacked / command[command.index("--config") + 1].lstrip("/")).exists()
    user = re.search(r"^User=(.*)$", unit, re.M)[1]
    assert re.search(rf"^u {user} ", (unpacked / "usr/lib/sysusers.d/zrc-relay.conf").read_text(), re.M)


def script(unpacked, tmp_path, name, *args) -> list[str]:
    """Runs one of the package's scripts where everything that it calls only says that it was called."""
    calls = tmp_path / "calls"
    calls.write_text("")
    stubs = tmp_path / "stubs"
    stubs.mkdir(exist_ok=True)
    for tool in ["systemd-sysusers", "deb-systemd-helper", "deb-systemd-invoke", "systemctl", "rm", "systemd-tmpfiles"]:
        stub = stubs / tool
        # As on a machine that has never had the package.
        said = 'case "$*" in *debian-installed*|*was-enabled*) exit 1 ;; esac'
        stub.write_text(f'#!/bin/sh\necho "{tool} $*" >>{calls}\n{said}\n')
        stub.chmod(0o755)
    path = unpacked / "DEBIAN" / name
    assert path.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", path], check=True)
    run("sh", path, *args, env={"PATH": f"{stubs}:/usr/bin:/bin"})
    return calls.read_text().splitlines()


def test_installing_makes_the_user_and_starts_nothing(unpacked, tmp_path):
    calls = script(unpacked, tmp_path, "postinst", "configure", "")
    users = [call for call in calls if call.startswith("systemd-sysusers")]
    assert users == ["systemd-sysusers zrc-relay.conf"], calls
    # A relay that nobody has told whom to serve would not start.
    assert not [call for call in calls if re.search(r"\b(start|enable)\b", call)], calls


def test_purging_takes_the_keys_and_removing_does_not(unpacked, tmp_path):
    rms = lambda calls: [call for call in calls if call.startswith("rm ")]
    assert not rms(script(unpacked, tmp_path, "postrm", "remove"))
    assert rms(script(unpacked, tmp_path, "postrm", "purge")) == ["rm -rf /var/lib/zrc-relay"]
    script(unpacked, tmp_path, "prerm", "remove")
