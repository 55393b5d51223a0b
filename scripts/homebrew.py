"""Writes the Homebrew formula: every wheel for an Apple Silicon Mac, by address and hash.

python -m scripts.homebrew           writes the formula anew from its own resources
python -m scripts.homebrew --fetch   asks the package index for the wheels first

The versions are those of constraints.txt. pip resolves as if it ran on a Mac, but reads
conditions as on this machine, so that the packages of macOS alone are named here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.sbom import constrained

ROOT = Path(__file__).parents[1]
FORMULA = ROOT / "packaging" / "homebrew" / "rvllm-local.rb"
PYTHON = "3.13"
PLATFORM = "macosx_14_0_arm64"
BUILDER = "setuptools"
_RESOURCE = re.compile(
    r'resource "([^"]+)" do\n\s+url "([^"]+)"[^\n]*\n\s+sha256 "([^"]+)"'
)


@dataclass(frozen=True)
class Resource:
    """A wheel."""

    name: str
    url: str
    sha256: str

    def text(self) -> str:
        """What Homebrew is told of it."""
        return (
            f'  resource "{self.name}" do\n'
            f'    url "{self.url}", using: :nounzip\n'
            f'    sha256 "{self.sha256}"\n'
            "  end\n"
        )


def project() -> dict[str, Any]:
    """The project's table of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)["project"]
    return table


def requirements() -> list[str]:
    """What a Mac needs, the builder of the wheel included."""
    words = [BUILDER]
    for text in project()["dependencies"]:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or marker.evaluate({"platform_system": "Darwin"}):
            requirement.marker = None
            words.append(str(requirement))
    # Half of mlx, on macOS; its version is mlx's.
    words.append(f"mlx-metal=={constrained()['mlx']}")
    return words


def fetch() -> list[Resource]:
    """Ask the package index. Raises `ValueError` for a file of another place."""
    versions = constrained()
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder, "constraints.txt"), Path(folder, "report")
        rows = [f"{name}=={version}" for name, version in versions.items()]
        constraints.write_text("\n".join(row for row in rows if "mlx-cpu" not in row))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
        command += ["--ignore-installed", "--only-binary=:all:", "--implementation=cp"]
        command += ["--platform", PLATFORM, "--python-version", PYTHON]
        command += ["--target", folder, "--report", str(report)]
        command += ["--constraint", str(constraints), *requirements()]
        subprocess.run(command, check=True)
        resolved = json.loads(report.read_text())["install"]
    resources = []
    for row in resolved:
        source = row["download_info"]
        if not source["url"].startswith("https://files.pythonhosted.org/"):
            raise ValueError(f"{source['url']} is not of the package index")
        digest = source["archive_info"]["hashes"]["sha256"]
        name = canonicalize_name(row["metadata"]["name"])
        resources.append(Resource(name, source["url"], digest))
    return sorted(resources, key=lambda resource: resource.name)


def resources_in(formula: str) -> list[Resource]:
    """The wheels that a formula names."""
    return [Resource(*groups) for groups in _RESOURCE.findall(formula)]


def formula(resources: list[Resource]) -> str:
    """The formula's text."""
    table = project()
    head = f"""\
# Made by scripts/homebrew.py from pyproject.toml and constraints.txt. It builds a checkout
# of the sources, whose folder HOMEBREW_RVLLM_SOURCE names; the rest are fixed wheels.
class RvllmLocal < Formula
  desc "Local runtime and server of language models for Apple Silicon"
  version "{table["version"]}"
  license "{table["license"]}"
  head "file://#{{ENV.fetch("HOMEBREW_RVLLM_SOURCE", Dir.home + "/rvllm-local")}}", using: :git, branch: "main"

  depends_on arch: :arm64
  depends_on macos: :sonoma
  depends_on "python@{PYTHON}"

"""
    tail = f"""\
  def install
    wheels = buildpath/"wheels"
    wheels.mkpath
    resources.each {{ |wheel| cp wheel.cached_download, wheels/File.basename(wheel.url) }}
    system "python{PYTHON}", "-m", "venv", libexec
    pip = [libexec/"bin/python", "-m", "pip", "install", "--no-index", "--no-deps"]
    system(*pip, *wheels.glob("*.whl"))
    system(*pip, "--no-build-isolation", buildpath)
    bin.install_symlink libexec/"bin/rvllm"
  end

  test do
    assert_match "rvllm", shell_output("#{{bin}}/rvllm --help")
  end
end
"""
    return head + "\n".join(row.text() for row in resources) + "\n" + tail


def main() -> None:
    """Write the formula."""
    if "--fetch" in sys.argv[1:]:
        resources = fetch()
    else:
        resources = resources_in(FORMULA.read_text(encoding="utf-8"))
    FORMULA.parent.mkdir(parents=True, exist_ok=True)
    FORMULA.write_text(formula(resources), encoding="utf-8")
    print(f"{FORMULA.relative_to(ROOT)}: {len(resources)} wheels")


if __name__ == "__main__":
    main()
