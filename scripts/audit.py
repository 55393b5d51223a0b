"""Tells what pip-audit has found, and of which packages it found nothing out.

    pip-audit --format json ... | python -m scripts.audit

Ends with 1 if there are advisories, and with 2 if the audit is not whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_ADVISORIES, _NOT_WHOLE = 1, 2
_Package = Mapping[str, Any]


def told(packages: Sequence[_Package]) -> tuple[list[str], int]:
    """Lines for people, and how the command ends."""
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = []
    for package in packages:
        for advisory in package.get("vulns", ()):
            fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
            lines.append(
                f"{package['name']} {package['version']}: {advisory['id']}, mended in "
                f"{fixed}"
            )
    num_advisories = len(lines)
    num_looked_up = len(packages) - len(skipped)
    lines.append(
        f"{num_advisories} advisories for {num_looked_up} of {len(packages)} packages"
    )
    if skipped:
        lines.append(f"not looked up: {', '.join(skipped)}")
    if not num_looked_up:
        lines.append("nothing could be looked up: an audit needs the network")
    if num_advisories:
        return lines, _ADVISORIES
    if skipped or not packages:
        return lines, _NOT_WHOLE
    return lines, 0


def main() -> int:
    """Read pip-audit's JSON from standard input."""
    try:
        packages = json.load(sys.stdin)["dependencies"]
    except ValueError:
        print("pip-audit gave no answer: an audit needs the network", file=sys.stderr)
        return _NOT_WHOLE
    lines, status = told(packages)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
