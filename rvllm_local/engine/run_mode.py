"""The ways in which a family of models can be called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunMode:
    """How a family can be called.

    batched: many rows a decode call, with an array of offsets.
    dense: the model does its own attention arithmetic on gathered keys and values.
    rotates: in compiled steps the kernels rotate queries and keys.
    joins: in compiled steps an addition to the residual stream is launched together
        with the norm after it.
    """

    batched: bool
    dense: bool
    rotates: bool = False
    joins: bool = False
