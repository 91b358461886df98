"""The container file, Compose and Kubernetes: no engine is at hand, so what they say is held to what there is."""

import os
import pathlib
import re
import subprocess
import urllib.error
import urllib.request

import kubernetes_validate
import pytest
import yaml

from conftest import DEPLOY, ROOT, run

#: The schemas that the manifests are held to: the newest of these packages, and one that is some years old.
KUBERNETES = ["1.37", "1.31"]


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "container/Containerfile").read_text()
    lines = re.sub(r"\\\n", " ", "\n".join(l for l in text.splitlines() if not l.startswith("#")))
    return [tuple(line.split(maxsplit=1)) for line in lines.splitlines() if line.strip()]


def manifests() -> list[dict]:
    found = []
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        if path.name != "kustomization.yaml":
            found += [it for it in yaml.safe_load_all(path.read_text()) if it]
    assert len(found) >= 6
    return found


def manifest(kind: str) -> dict:
    return next(it for it in manifests() if it["kind"] == kind)


def relay() -> dict:
    return manifest("StatefulSet")["spec"]["template"]["spec"]["containers"][0]


def test_the_image_is_built_from_what_there_is():
    copied = []
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            copied += rest.split()[:-1]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in copied:
        assert f"!{source}" in ignored, f"{source} does not reach the builder"
    # What the sources pull in from elsewhere is copied too.
    for path in (ROOT / "src").rglob("*.rs"):
        for named in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', path.read_text()):
            target = (path.parent / named).resolve().relative_to(ROOT)
            if target.parts[0] != "tests":
                assert any(str(target) == it or target.parts[0] == it for it in copied), target


def test_the_sources_that_are_copied_are_a_package(tmp_path):
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            *sources, _ = rest.split()
            run("cp", "-r", *[ROOT / source for source in sources], tmp_path)
    run("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1", cwd=tmp_path)


def test_the_image_runs_one_static_program_without_privileges(binary):
    steps = instructions()
    last = max(i for i, (name, _) in enumerate(steps) if name == "FROM")
    assert steps[last][1] == "scratch"
    final = dict(steps[last:])
    user = final["USER"].split(":")
    assert all(int(part) >= 10000 for part in user)
    command = yaml.safe_load(final["HEALTHCHECK"].split("CMD", 1)[1])
    assert command[0] == yaml.safe_load(final["ENTRYPOINT"])[0]
    # Whoever moves the ops port moves what is asked for with it.
    assert command[command.index("--config") + 1] == yaml.safe_load(final["CMD"])[-1]
    run(binary, *command[1:], "--help")
    run(binary, *yaml.safe_load(final["CMD"]), "--help")
    build = next(rest for name, rest in steps if name == "RUN" and "cargo build" in rest)
    assert "musl" in build and "--locked" in build


def test_compose_asks_for_what_there_is(binary):
    compose = yaml.safe_load((DEPLOY / "container/compose.yaml").read_text())
    service = compose["services"]["relay"]
    build = service["build"]
    context = (DEPLOY / "container" / build["context"]).resolve()
    assert context == ROOT and (context / build["dockerfile"]).exists()
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    kind, program, *args = service["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "/zrc-relay")
    run(binary, *args, "--help")
    named = [it.split(":")[0] for it in service["volumes"] if not it.startswith(".")]
    assert set(named) == set(compose["volumes"])


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_the_manifests(version):
    for it in manifests():
        kubernetes_validate.validate(it, version, strict=True)


def test_what_kubernetes_would_refuse_is_found():
    stateful = manifest("StatefulSet")
    stateful["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerport"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(stateful, KUBERNETES[0], strict=True)


def test_every_manifest_is_applied_and_names_what_there_is():
    folder = DEPLOY / "kubernetes"
    custom = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(custom["resources"]) == files
    for generated in custom["configMapGenerator"]:
        assert all((folder / file).exists() for file in generated["files"])
    label = custom["labels"][0]["pairs"]
    stateful = manifest("StatefulSet")["spec"]
    assert stateful["selector"]["matchLabels"] == stateful["template"]["metadata"]["labels"] == label
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == label
    assert manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == label
    ports = {port["name"]: port for port in relay()["ports"]}
    for service in [it for it in manifests() if it["kind"] == "Service"]:
        assert service["spec"]["selector"] == label
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]]["protocol"] == port["protocol"]
    for rule in manifest("NetworkPolicy")["spec"]["ingress"]:
        for port in rule["ports"]:
            assert ports[port["port"]]["protocol"] == port["protocol"]


def test_a_pod_has_the_time_that_its_goodbye_takes(binary):
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    goodbye = int(re.search(r"within\s+(\d+) seconds", run(binary, "serve", "--help").stdout)[1])
    command = relay()["lifecycle"]["preStop"]["exec"]["command"]
    away = int(re.fullmatch(r"(\d+)s", command[command.index("--deadline") + 1])[1])
    # The command itself waits for two more.
    assert pod["terminationGracePeriodSeconds"] > away + 2 + goodbye


def test_a_pod_is_emptied_by_what_its_preStop_runs(binary, tmp_path):
    """By the words of the manifests: a relay with that configuration, and that command, where they name the socket."""
    program, *command = relay()["lifecycle"]["preStop"]["exec"]["command"]
    assert program == next(yaml.safe_load(rest) for name, rest in instructions() if name == "ENTRYPOINT")[0]
    wanted = run(binary, "check-config", DEPLOY / "kubernetes/relay.toml", "--show").stdout
    socket = re.search(r'^\s*socket = "(.*?)"', wanted, re.M)[1]
    # Where the command looks unless it is told otherwise, on a volume that can be written.
    assert "--socket" not in command and socket in run(binary, "admin", "drain", "--help").stdout
    folders = {mount["mountPath"] for mount in relay()["volumeMounts"] if not mount.get("readOnly")}
    assert str(pathlib.PurePath(socket).parent) in folders
    here = ["--set", f"admin.socket={tmp_path}/admin.sock", "--set", f"state_dir={tmp_path}/state"]
    ports = ["--set", "relay.listen_port=0", "--set", "ops.listen_port=0", "--set", "ops.listen_addr=127.0.0.1"]
    serve = [binary, "serve", "--config", DEPLOY / "kubernetes/relay.toml", *here, *ports]
    child = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
    try:
        ops = next(m[1] for line in child.stderr if (m := re.search(r"(http://127\.0\.0\.1:\d+)", line)))
        for line in child.stderr:
            if line.startswith("clients: "):
                break
        status = lambda path: urllib.request.urlopen(ops + path, timeout=30).status
        paths = {relay()[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
        assert {status(path) for path in paths} == {200}
        run(binary, *command, env={**os.environ, "ZRC_ADMIN_SOCKET": f"{tmp_path}/admin.sock"})
        with pytest.raises(urllib.error.HTTPError, match="503"):
            status(relay()["readinessProbe"]["httpGet"]["path"])
        # Being emptied is no reason to be killed.
        assert status(relay()["livenessProbe"]["httpGet"]["path"]) == 200
    finally:
        child.terminate()
        child.communicate(timeout=60)


def test_whoever_is_connected_is_not_cut_off_when_the_pod_is_not_ready():
    services = [it["spec"] for it in manifests() if it["kind"] == "Service"]
    assert all(service["publishNotReadyAddresses"] for service in services)
    # A stateful set's own service has no address.
    governing = manifest("StatefulSet")["spec"]["serviceName"]
    found = next(it for it in manifests() if it["kind"] == "Service" and it["metadata"]["name"] == governing)
    assert found["spec"]["clusterIP"] == "None"
    budget = manifest("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1 and budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_the_relay_understands_its_configuration(binary, tmp_path):
    check = run(binary, "check-config", DEPLOY / "kubernetes/relay.toml", "--show")
    assert "relay.example.com" in check.stdout
    # Where the probes ask, the relay answers.
    assert re.search(r"0\.0\.0\.0", check.stdout)
    ports = {port["name"]: port["containerPort"] for port in relay()["ports"]}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert relay()[name]["httpGet"]["path"] in ("/livez", "/readyz") and relay()[name]["httpGet"]["port"] == "ops"
    assert ports == {"relay": 4433, "ops": 9433}
    args = relay()["args"]
    run(binary, *args[:1], "--help")
    config = args[args.index("--config") + 1]
    mounts = [mount["mountPath"] for mount in relay()["volumeMounts"]]
    assert any(config.startswith(mount + "/") for mount in mounts)
    refused = tmp_path / "relay.toml"
    refused.write_text((DEPLOY / "kubernetes/relay.toml").read_text() + "\n[nothing]\nkey = 1\n")
    assert subprocess.run([binary, "check-config", refused], capture_output=True).returncode == 78
