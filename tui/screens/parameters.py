"""The chat's system prompt, sampling parameters and presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Static, TextArea

from rvllm_local.errors import ParameterError
from rvllm_local.history.types import Chat
from rvllm_local.tui.ordered_keys import OrderedInput, OrderedTextArea
from rvllm_local.tui.personas import preset_note
from rvllm_local.tui.sanitise import clean_copy
from rvllm_local.tui.screens.dialogs import Ask, Choice, Confirm, Dialog, Pick
from rvllm_local.tui.settings import PARAMETERS, parse_parameter


class _Field(OrderedInput):
    """A parameter's value; the arrows go to the ones above and below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Above", id="parameters.above"),
        Binding("down", "app.focus_next", "Below", id="parameters.below"),
    ]


class ParametersScreen(Dialog):
    """Answers with {"system": text, "params": {...}} and, where one was saved, {"preset": name}."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+s",
            "save",
            "Use",
            id="parameters.save",
            priority=True,
        ),
        Binding(
            "ctrl+p",
            "preset",
            "Presets",
            id="parameters.preset",
            priority=True,
        ),
        Binding(
            "ctrl+o",
            "keep",
            "Keep as preset",
            id="parameters.keep",
            priority=True,
        ),
    ]

    def __init__(
        self,
        chat: Chat,
        presets: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__()
        self._chat, self._presets = chat, presets
        self._preset: str | None = None
        self._unused: list[list[str]] = []  # what Esc may drop: told, or not typed

    def compose(self) -> Any:
        with Vertical(classes="dialog"):
            yield Static("System prompt and parameters of this chat", classes="title")
            with VerticalScroll(can_focus=False):
                yield OrderedTextArea(
                    clean_copy(self._chat.system),
                    tab_behavior="focus",
                    placeholder="no system prompt",
                    id="system",
                )
                for name in PARAMETERS:
                    with Horizontal(classes="row"):
                        yield Static(name, classes="label")
                        value = self._chat.params.get(name)
                        yield _Field(
                            "" if value is None else str(value),
                            placeholder="default",
                            compact=True,
                            id=name,
                        )
            yield Static("", classes="problem", markup=False)
            yield Static(
                "Ctrl+S use   Ctrl+P presets   Ctrl+O keep as a preset   Esc close",
                classes="note",
            )

    def on_mount(self) -> None:
        self.query_one("#system").focus()
        self._unused = [self._typed()]

    def _typed(self) -> list[str]:
        fields = [self.query_one(f"#{name}", Input).value for name in PARAMETERS]
        return [self.query_one("#system", TextArea).text, *fields]

    def action_close(self) -> None:
        """Close; what was typed is dropped once that was told."""
        typed = self._typed()
        if typed in self._unused:
            super().action_close()
            return
        self._unused.append(typed)
        told = "Ctrl+S uses what was typed, Esc again drops it"
        self.query_one(".problem", Static).update(told)

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        self.action_save()

    def read(self) -> dict[str, Any] | None:
        """What was typed, or None after telling what is wrong with it."""
        params: dict[str, Any] = {}
        for name in PARAMETERS:
            field = self.query_one(f"#{name}", Input)
            try:
                value = parse_parameter(name, field.value)
            except ParameterError as error:
                self.query_one(".problem", Static).update(str(error))
                field.focus()
                return None
            if value is not None:
                params[name] = value
        return {"system": self.query_one("#system", TextArea).text, "params": params}

    def action_save(self) -> None:
        """Use what was typed."""
        if (values := self.read()) is not None:
            self.dismiss(
                {**values, **({"preset": self._preset} if self._preset else {})}
            )

    def action_keep(self) -> None:
        """Keep what was typed under a name, and use it."""
        if self.read() is None:
            return

        def keep(name: str) -> None:
            self._preset = name
            self.action_save()

        def named(name: str | None) -> None:
            if name in self._presets:
                question = Confirm(f"Replace the preset {name}?")
                self.app.push_screen(
                    question, lambda is_sure: keep(str(name)) if is_sure else None
                )
            elif name:
                keep(name)

        self.app.push_screen(Ask("Name of the preset"), named)

    def action_preset(self) -> None:
        """Fill the fields from a preset."""
        choices = [
            Choice(name, name, preset_note(values))
            for name, values in self._presets.items()
        ]

        def chosen(name: str | None) -> None:
            if name is not None and name in self._presets:
                self.fill(self._presets[name])

        self.app.push_screen(
            Pick("Presets", choices, "Enter fills the fields   Esc closes"), chosen
        )

    def fill(self, values: Mapping[str, Any]) -> None:
        """Put a preset's values into the fields."""
        if "system" in values:
            self.query_one("#system", TextArea).load_text(
                clean_copy(str(values["system"]))
            )
        for name in PARAMETERS:
            self.query_one(f"#{name}", Input).value = (
                "" if values.get(name) is None else str(values[name])
            )
