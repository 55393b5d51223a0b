"""The trees of messages that ChatGPT and Open WebUI export, as plain nodes.

What holds no text of a person or an assistant is left out; its children hang on its
parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """One message. `parent` is a node's id; other roles than two are left out."""

    parent: str | None
    role: str
    text: str

    @property
    def is_kept(self) -> bool:
        """Whether it is a person's or an assistant's text."""
        return self.role in ("user", "assistant") and bool(self.text.strip())


@dataclass(frozen=True, slots=True)
class ForeignTree:
    """Nodes by id, parents before children; the chat goes on from `head`."""

    nodes: Mapping[str, Node]
    head: str | None


def read_chatgpt(value: Mapping[str, Any]) -> ForeignTree:
    """One conversation of a ChatGPT export."""
    return _read(value["mapping"], value.get("current_node"), _chatgpt_node)


def read_open_webui(value: Mapping[str, Any]) -> ForeignTree:
    """The `chat` of an Open WebUI export."""
    history = value.get("history")
    nodes = history.get("messages") if isinstance(history, Mapping) else None
    if not isinstance(history, Mapping) or not isinstance(nodes, Mapping):
        return ForeignTree({}, None)
    return _read(nodes, history.get("currentId"), _open_webui_node)


def _chatgpt_node(value: Mapping[str, Any]) -> Node:
    parent = value.get("parent")
    message = value.get("message")
    if not isinstance(message, Mapping):
        return Node(parent, "", "")
    author, content = message.get("author"), message.get("content")
    if not isinstance(author, Mapping) or not isinstance(content, Mapping):
        return Node(parent, "", "")
    parts = content.get("parts")
    texts = parts if isinstance(parts, list) else []
    text = "\n".join(part for part in texts if isinstance(part, str))
    return Node(parent, str(author.get("role", "")), text)


def _open_webui_node(value: Mapping[str, Any]) -> Node:
    content = value.get("content")
    text = content if isinstance(content, str) else ""
    return Node(value.get("parentId"), str(value.get("role", "")), text)


def _read(
    values: Mapping[str, Any],
    current: Any,
    parse: Callable[[Mapping[str, Any]], Node],
) -> ForeignTree:
    nodes: dict[str, Node] = {}
    for node_id, value in values.items():
        if isinstance(value, Mapping):
            nodes[node_id] = parse(value)
    kept: dict[str, Node] = {}
    for node_id in nodes:
        for ancestor in reversed(_path(node_id, nodes, kept)):
            node = nodes[ancestor]
            if node.is_kept:
                parent = _kept_ancestor(node.parent, nodes)
                # A parent that comes later closes a circle: the node becomes a root.
                parent = parent if parent in kept else None
                kept[ancestor] = replace(node, parent=parent)
    return ForeignTree(kept, _kept_ancestor(current, nodes))


def _path(
    node_id: str, nodes: Mapping[str, Node], done: Mapping[str, Node]
) -> list[str]:
    """The node and its ancestors, upwards to one that is done."""
    path: dict[str, None] = {}
    at: str | None = node_id
    while at is not None and at in nodes and at not in done and at not in path:
        path[at] = None
        at = nodes[at].parent
    return list(path)


def _kept_ancestor(node_id: Any, nodes: Mapping[str, Node]) -> str | None:
    """The node itself or the nearest above it that is kept."""
    seen: set[str] = set()
    while isinstance(node_id, str) and node_id in nodes and node_id not in seen:
        if nodes[node_id].is_kept:
            return node_id
        seen.add(node_id)
        node_id = nodes[node_id].parent
    return None
