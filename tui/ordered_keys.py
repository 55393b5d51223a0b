"""Fields whose keys act in the order in which they were typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import events
from textual.widgets import Input, TextArea

if TYPE_CHECKING:
    from textual.widget import Widget as _Base
else:
    # A widget takes its styles from its first base that is a widget.
    _Base = object


class OrderedKeys(_Base):
    """Does what its own keys mean as they come.

    Textual sends a key that is bound, such as Backspace, on to the app, which then does
    it: letters that were typed after it, and came along with it, would be there before.
    """

    async def _on_key(self, event: events.Key) -> None:
        for binding in self._bindings.key_to_bindings.get(event.key, ()):
            if not binding.priority:
                event.stop()
                event.prevent_default()
                await self.run_action(binding.action)
                return


class OrderedInput(OrderedKeys, Input):
    """A line to write in."""


class OrderedTextArea(OrderedKeys, TextArea):
    """Lines to write in."""
