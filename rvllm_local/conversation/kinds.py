"""The kinds of parts, items and tools that APIs know, and how they are shown.

Only these words are shown in errors, headers and logs: any other text could be a piece
of a prompt.
"""

from __future__ import annotations

import re

_DATE = re.compile(r"_(preview_)?\d{4}_?\d{2}_?\d{2}$")
_KINDS = frozenset(
    (
        "additional_tools",
        "advisor",
        "apply_patch",
        "apply_patch_call",
        "apply_patch_call_output",
        "audio",
        "bash",
        "browser_toolset",
        "code_execution",
        "code_interpreter",
        "code_interpreter_call",
        "compaction",
        "compaction_trigger",
        "computer",
        "computer_call",
        "computer_call_output",
        "computer_screenshot",
        "computer_toolset",
        "computer_use",
        "computer_use_preview",
        "configuration_update",
        "container_upload",
        "custom",
        "custom_tool_call",
        "custom_tool_call_output",
        "document",
        "file",
        "file_search",
        "file_search_call",
        "function",
        "image",
        "image_file",
        "image_generation",
        "image_generation_call",
        "image_url",
        "input_audio",
        "input_file",
        "input_image",
        "input_text",
        "item_reference",
        "local_shell",
        "local_shell_call",
        "local_shell_call_output",
        "mcp",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "mcp_toolset",
        "memory",
        "namespace",
        "output_audio",
        "output_text",
        "program",
        "program_output",
        "programmatic_tool_calling",
        "reasoning",
        "redacted_thinking",
        "refusal",
        "search_result",
        "server_tool_use",
        "shell",
        "shell_call",
        "shell_call_output",
        "str_replace_based_edit_tool",
        "str_replace_editor",
        "text",
        "text_editor",
        "thinking",
        "tool_result",
        "tool_search",
        "tool_search_call",
        "tool_search_output",
        "tool_search_tool_bm",
        "tool_search_tool_regex",
        "tool_use",
        "video",
        "video_url",
        "web_fetch",
        "web_search",
        "web_search_call",
        "web_search_preview",
        "web_search_tool_result",
    )
)
_PICTURES = ("image", "image_url", "image_file", "input_image", "computer_screenshot")
_SOUNDS = ("input_audio", "audio", "output_audio")
_VIDEOS = ("video", "video_url")
_FILES = ("file", "input_file", "document", "container_upload")
# What a part that is no text holds, by the part's kind.
CONTENTS = {
    **dict.fromkeys(_PICTURES, "picture"),
    **dict.fromkeys(_SOUNDS, "sound"),
    **dict.fromkeys(_VIDEOS, "video"),
    **dict.fromkeys(_FILES, "file"),
}


def kind_word(kind: str) -> str:
    """The kind without its date, if an API knows it; else three dots."""
    bare = _DATE.sub("", kind)
    return bare if bare in _KINDS else "..."


def shown_kind(kind: str) -> str:
    """The kind in quotes, if an API knows it; else three dots."""
    word = kind_word(kind)
    return word if word == "..." else repr(word)
