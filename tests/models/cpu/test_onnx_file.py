"""Written graphs hand their values out under the names that were asked for."""

from __future__ import annotations

import numpy as np

from rvllm_local.models.cpu.onnx_file import GraphWriter
from rvllm_local.models.cpu.runtime import open_session

ROW = np.array([[1, 2, 3]], dtype=np.float32)
DIMS = ("M", 3)


def doubled(writer: GraphWriter) -> str:
    """A node over an input `x`."""
    x = writer.input("x", "float32", DIMS)
    return writer.node("Add", [x, x])


def operations(writer: GraphWriter) -> bytes:
    return b"".join(bytes(piece) for piece in writer.model())


def test_a_node_is_handed_out_without_a_copy() -> None:
    writer = GraphWriter()
    writer.output(doubled(writer), "y", "float32", DIMS)
    assert b"Identity" not in operations(writer)
    (y,) = open_session(writer.model()).run(["y"], {"x": ROW})
    assert y.tolist() == [[2, 4, 6]]


def test_what_is_handed_out_can_be_read_on() -> None:
    writer = GraphWriter()
    twice = doubled(writer)
    writer.output(twice, "y", "float32", DIMS)
    writer.output(writer.node("Add", [twice, twice]), "z", "float32", DIMS)
    y, z = open_session(writer.model()).run(["y", "z"], {"x": ROW})
    assert y.tolist() == [[2, 4, 6]] and z.tolist() == [[4, 8, 12]]


def test_a_value_has_several_names_and_an_input_another_one() -> None:
    writer = GraphWriter()
    twice = doubled(writer)
    for name in ("y", "again"):
        writer.output(twice, name, "float32", DIMS)
    writer.output("x", "same", "float32", DIMS)
    outputs = open_session(writer.model()).run(["y", "again", "same"], {"x": ROW})
    assert [part.tolist() for part in outputs] == [
        [[2, 4, 6]],
        [[2, 4, 6]],
        [[1, 2, 3]],
    ]
