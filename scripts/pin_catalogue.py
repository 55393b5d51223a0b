"""Pins the catalogue to the commits that the hub has now, with the true sizes of what would be fetched.

    python scripts/pin_catalogue.py [NAME ...]      # all entries of the hub without names

An entry that the hub does not give is left as it is, and named. Nothing is downloaded; `verified` is not touched, since only
a person who has run a model can say that. Gated models need `HF_TOKEN`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rvllm_local.errors import RvllmError
from rvllm_local.models.catalogue import Catalogue, CatalogueEntry
from rvllm_local.models.hub_api import offered_files
from rvllm_local.models.hub_plan import choose_files
from rvllm_local.models.repository import Repository

CATALOGUE = Path(__file__).parents[1] / "models" / "catalog.toml"


def pinned(text: str, name: str, commit: str, size: int) -> str:
    """The catalogue's text with another commit and size in the section `name`; all else stays as it was typed."""
    head, section, rest = re.split(
        rf"(^\[{re.escape(name)}\]\n(?:[^\[\n].*\n|\n)*)", text, maxsplit=1, flags=re.M
    )
    section = re.sub(
        r'^revision = ".*"$', f'revision = "{commit}"', section, flags=re.M
    )
    section = re.sub(r"^size = .*$", f"size = {size:_}", section, flags=re.M)
    return head + section + rest


def look_up(entry: CatalogueEntry) -> tuple[str, int]:
    """The main branch's commit, and the bytes of the files that a pull would fetch."""
    assert entry.repo is not None
    commit, files = offered_files(Repository(entry.repo))
    return commit, sum(
        file.size or 0 for file in choose_files(entry.repo, files, entry.file or None)
    )


def main(arguments: list[str] | None = None, catalogue: Path = CATALOGUE) -> int:
    """Rewrite the catalogue. Returns 1 when an entry could not be looked up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    names = parser.parse_args(arguments).names
    entries = Catalogue.load().entries
    failed = 0
    for name in names or [name for name, entry in entries.items() if entry.repo]:
        try:
            commit, size = look_up(entries[name])
        except RvllmError as error:
            print(f"{name}: left as it is: {error}")
            failed = 1
            continue
        catalogue.write_text(
            pinned(catalogue.read_text(encoding="utf-8"), name, commit, size),
            encoding="utf-8",
        )
        print(f"{name}: {commit}, {size / 1e9:.2f} GB")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
