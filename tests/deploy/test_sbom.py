"""The list of what the program is made of, held to CycloneDX's own schema and to Cargo.lock."""

import hashlib
import json
import os
import sys
import tomllib

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from conftest import DEPLOY, ROOT, run

ENV = {**os.environ, "SOURCE_DATE_EPOCH": "1795178980"}


def sbom(*args) -> str:
    return run(sys.executable, DEPLOY / "sbom.py", *args, env=ENV).stdout


def test_the_list_is_what_cyclonedx_says():
    text = sbom()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"library"', '"thing"', 1)) is not None
    assert sbom() == text, "the same sources, another list"
    bom = json.loads(text)
    assert bom["metadata"]["timestamp"] == "2026-11-20T12:49:40Z"


def test_everything_that_is_compiled_in_is_listed():
    bom = json.loads(sbom())
    listed = {(it["name"], it["version"]): it for it in bom["components"]}
    names = {name for name, _ in listed}
    assert {"quinn", "rustls", "aws-lc-sys", "tokio", "axum"} <= names
    # Only for tests, or for other systems.
    assert not {"criterion", "proptest", "windows-sys", "opentelemetry"} & names
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(it["name"], it["version"]): it.get("checksum") for it in lock["package"]}
    # The one that is no crate has a test of its own.
    crates = {key: it for key, it in listed.items() if it["purl"].startswith("pkg:cargo/")}
    assert [name for name, _ in listed.keys() - crates.keys()] == ["uplot"]
    for key, it in crates.items():
        assert it["hashes"][0]["content"] == checksums[key] and it["licenses"], key
    refs = {it["bom-ref"] for it in bom["components"]} | {bom["metadata"]["component"]["bom-ref"]}
    # Told apart by features, too: these come in with what only tests switch on.
    assert not {"der-parser", "x509-parser"} & names
    with_spans = json.loads(sbom("--features", "otel"))
    assert "opentelemetry-otlp" in {it["name"] for it in with_spans["components"]}
    assert {it["ref"] for it in bom["dependencies"]} == refs


def test_what_is_embedded_is_listed():
    bom = json.loads(sbom())
    [it] = [it for it in bom["components"] if it["name"] == "uplot"]
    text = (ROOT / "admin/uPlot.esm.js").read_bytes()
    assert f"uPlot (v{it['version']})\n".encode() in text
    assert it["purl"] == it["bom-ref"] == f"pkg:npm/uplot@{it['version']}"
    assert it["licenses"] == [{"expression": "MIT"}]
    assert it["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(text).hexdigest()}]
    needs = {it["ref"]: it["dependsOn"] for it in bom["dependencies"]}
    assert it["bom-ref"] in needs[bom["metadata"]["component"]["bom-ref"]]
