"""The names that models may be asked for by, beside their own."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from rvllm_local.errors import ModelNotFoundError
from rvllm_local.models.catalogue import Catalogue
from rvllm_local.server.http.problems import Problem

# Anything else was meant for another field.
_NAME = re.compile(r"[\w./:@+-]{0,100}", re.ASCII)
# Agents start helpers of their own with a tier's name, whatever model they were given.
_TIER = re.compile(r"claude-[a-z0-9.-]*(haiku|sonnet|opus)[a-z0-9.@-]*")
LATEST = ":latest"  # a tag that means the only version there is
DEFAULT = "default"


class ModelNames:
    """Finds the model that a name means. `names` are those of all models.

    `aliases` maps other names to them. The name of a tier that some agents ask for
    means the default model.
    """

    def __init__(
        self, names: Collection[str], default: str, aliases: Mapping[str, str]
    ) -> None:
        self._names = set(names)
        self._default = default
        self._aliases = aliases
        for alias, name in aliases.items():
            if name not in names:
                raise ModelNotFoundError(
                    f"{alias!r} cannot mean {name!r}, which is not one of "
                    f"{', '.join(sorted(names))}"
                )

    def add(self, names: Iterable[str]) -> None:
        """Models that can be asked for from now on."""
        self._names.update(names)

    def remove(self, name: str) -> None:
        """A model that can be asked for no more."""
        self._names.discard(name)

    def resolve(self, name: str) -> str:
        """The model's own name. Raises `Problem` 404 that lists them."""
        for candidate in (name, name.removesuffix(LATEST)):
            if candidate in self._aliases:
                return self._aliases[candidate]
            if candidate == DEFAULT:
                return self._default
            if candidate in self._names:
                return candidate
        if _TIER.fullmatch(name):
            return self._default
        raise Problem(404, self._unknown(name), "model_not_found", "model")

    def _unknown(self, name: str) -> str:
        shown = "..."
        if _NAME.fullmatch(name):
            shown = name
        names = ", ".join(sorted(self._names))
        text = f"there is no model {shown!r} here; known are {names}"
        if name in Catalogue.load().entries:
            text += f"; fetch it with: rvllm pull {name}"
        return text
