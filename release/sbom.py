"""Write release/mpcore.cyclonedx.json: the crates compiled into the wheel, as a CycloneDX 1.5 bill of materials.

Usage: ``python release/sbom.py``; needs cargo. maturin puts the file into the wheel. It holds neither a time nor a path
of this machine, so that it is a function of ``Cargo.lock``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from licences import ROOT, compiled_in, metadata, tomllib

TARGET = ROOT / "release" / "mpcore.cyclonedx.json"


def component(package: dict[str, Any], checksums: dict[tuple[str, str], str]) -> dict[str, Any]:
    """One crate: its package URL, licence and the SHA-256 of its archive in the registry."""
    name, version = package["name"], package["version"]
    purl = f"pkg:cargo/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "licenses": [{"expression": package["license"].replace("/", " OR ")}],
        "hashes": [{"alg": "SHA-256", "content": checksums[name, version]}],
    }


def document(found: dict[str, Any], lock: dict[str, Any]) -> dict[str, Any]:
    """The whole bill.

    Args:
        found: what ``cargo metadata`` prints.
        lock: the content of Cargo.lock.
    """
    checksums = {(entry["name"], entry["version"]): entry.get("checksum", "") for entry in lock["package"]}
    packages = compiled_in(found)
    references = {package["id"]: f"pkg:cargo/{package['name']}@{package['version']}" for package in packages}
    version = next(package["version"] for package in found["packages"] if package["name"] == "mpcore-py")
    ours = f"pkg:pypi/mpcore@{version}"
    members = set(found["workspace_members"])
    edges: dict[str, set[str]] = {ours: set()} | {reference: set() for reference in references.values()}
    for node in found["resolve"]["nodes"]:
        source = ours if node["id"] in members else references.get(node["id"])
        if source is not None:
            edges[source] |= {references[entry] for entry in node["dependencies"] if entry in references}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": ours,
                "name": "mpcore",
                "version": version,
                "purl": ours,
                "licenses": [{"expression": "Apache-2.0 OR MIT"}],
            }
        },
        "components": [component(package, checksums) for package in packages],
        "dependencies": [{"ref": source, "dependsOn": sorted(to)} for source, to in sorted(edges.items())],
    }


def main() -> int:
    """Write the file."""
    bill = document(metadata(), tomllib.loads((ROOT / "Cargo.lock").read_text(encoding="utf-8")))
    TARGET.write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {len(bill['components'])} crates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
