#!/usr/bin/env python3
"""Writes what zrc-relay is made of as CycloneDX 1.6, for one target and its features: every crate that is compiled in
or builds what is, with version, licence, origin and checksum, and which needs which; and uPlot, which is embedded.

    python3 deploy/sbom.py > zrc-relay.cdx.json
    python3 deploy/sbom.py --target x86_64-unknown-linux-musl --features otel

Reads Cargo.lock and what cargo says of it, and uPlot's file; the same sources give the same file, but for the time
(SOURCE_DATE_EPOCH)."""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import tomllib
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


UPLOT = ROOT / "admin/uPlot.esm.js"


class Package:
    """One version of one crate, or of another kind of package, and what it needs."""

    def __init__(self, name: str, version: str, licence: str, repository: str, kind: str = "cargo"):
        self.name, self.version, self.licence, self.repository = name, version, licence, repository
        self.ref = f"pkg:{kind}/{name}@{version}"
        self.needs: set[str] = set()


def graph(target: str, features: str) -> tuple[Package, dict[str, Package]]:
    """All that is compiled, and the first of them: what nobody else needs. Cargo's tree tells what is really compiled;
    its metadata would add what only tests switch on."""
    command = ["cargo", "tree", "--locked", "--target", target, "--edges", "normal,build", "--prefix", "depth"]
    command += ["--format", "|{p}|{l}|{r}"]
    if features:
        command += ["--features", features]
    tree = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Package] = {}
    above: list[Package] = []
    for line in tree.splitlines():
        # A crate that was shown before is marked and has its needs where it stood first.
        depth, crate, expression, repository = line.removesuffix(" (*)").split("|")
        name, version = crate.split()[:2]
        package = Package(name, version.removeprefix("v"), expression, repository)
        package = found.setdefault(package.ref, package)
        del above[int(depth) :]
        if above:
            above[-1].needs.add(package.ref)
        above.append(package)
    return next(iter(found.values())), found


def uplot() -> tuple[Package, str]:
    """What draws the dashboard's plots, as its file says, and the file's checksum. Cargo does not know of it."""
    text = UPLOT.read_bytes()
    repository, version = re.search(r"(https://\S+/uPlot) \(v([\d.]+)\)", text.decode()).groups()
    return Package("uplot", version, "MIT", repository, "npm"), hashlib.sha256(text).hexdigest()


def licence(expression: str) -> list[dict]:
    # Older manifests write a slash where SPDX has OR.
    return [{"expression": re.sub(r"\s*/\s*", " OR ", expression)}] if expression else []


def component(package: Package, checksums: dict) -> dict:
    made = {"type": "library", "bom-ref": package.ref, "name": package.name, "version": package.version}
    made["purl"] = package.ref
    if licences := licence(package.licence):
        made["licenses"] = licences
    if checksum := checksums.get((package.name, package.version)):
        made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package.repository:
        made["externalReferences"] = [{"type": "vcs", "url": package.repository}]
    return made


def main() -> None:
    host = re.search(r"^host: (.*)$", subprocess.check_output(["rustc", "-vV"], text=True), re.M)[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=host)
    parser.add_argument("--features", default="")
    args = parser.parse_args()

    root, packages = graph(args.target, args.features)
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p["checksum"] for p in lock["package"] if p.get("source") == REGISTRY}
    embedded, checksum = uplot()
    packages[embedded.ref] = embedded
    checksums[embedded.name, embedded.version] = checksum
    root.needs.add(embedded.ref)
    order = [component(packages[ref], checksums) for ref in sorted(packages) if ref != root.ref]
    main_component = component(root, checksums) | {"type": "application"}
    identity = json.dumps([main_component, order, args.target, args.features], sort_keys=True)
    when = datetime.datetime.fromtimestamp(
        int(os.environ.get("SOURCE_DATE_EPOCH") or datetime.datetime.now().timestamp()), datetime.timezone.utc
    )
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",
        "version": 1,
        "metadata": {
            "timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": main_component,
            "properties": [
                {"name": "cargo:target", "value": args.target},
                {"name": "cargo:features", "value": args.features or "default"},
            ],
        },
        "components": order,
        "dependencies": [{"ref": ref, "dependsOn": sorted(packages[ref].needs)} for ref in sorted(packages)],
    }
    print(json.dumps(bom, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
