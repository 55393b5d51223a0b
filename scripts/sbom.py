"""The software bill of materials: a CycloneDX document made of constraints.txt.

python -m scripts.sbom
"""

from __future__ import annotations

import json
import sys
import tomllib
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
_FORMAT = "1.5"


def document() -> dict[str, Any]:
    """The document. The same tree gives the same document."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    versions = constrained()
    required = closure(project["dependencies"], versions)
    components = []
    for package in sorted(versions):
        scope = "required" if package in required else "excluded"
        components.append(_component(package, versions[package], scope))
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([name, version, components]))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": _FORMAT,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": f"pkg:pypi/{name}@{version}",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name}@{version}",
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": components,
    }


def constrained() -> dict[str, str]:
    """The exact versions that are installed, by normal names."""
    versions = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        versions[canonicalize_name(requirement.name)] = specifier.version
    return versions


def closure(requirements: list[str], versions: dict[str, str]) -> set[str]:
    """The names that the requirements lead to, as far as constraints have them.

    Tools for development are in constraints.txt, too, and not among them.
    """
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name not in versions:
            continue
        seen.add(key)
        for text in _requires(name):
            inner = Requirement(text)
            extras = requirement.extras or {""}
            marker = inner.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in extras):
                waiting.append(inner)
    return {name for name, _ in seen}


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # of another system
        return []


def _component(name: str, version: str, scope: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "scope": scope,
    }


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
    print()
