"""How a tiny model of an architecture decodes over the kernels, found with the emulator's help.

It is what the self-check would choose on a GPU: the very text of the kernels is run.
"""

from __future__ import annotations

from typing import Any

from rvllm_local.attention.absorbed import keep_latents
from rvllm_local.attention.kernels import KernelBackend
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.residual import install_joined_adds
from rvllm_local.attention.rotation import install_rotations
from rvllm_local.attention.seam import install
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.selfcheck import find_agreeing_runner
from rvllm_local.errors import RvllmError
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.tables import KVTables
from rvllm_local.metal_kernels import AddNorm
from rvllm_local.metal_kernels.gated_delta import GatedDelta
from rvllm_local.models.recurrent_steps import install_gated_delta
from tests.emulator import Emulator
from tests.support.zoo import zoo_config, zoo_model


def kernel_way(arch: str) -> str:
    """The way in words: compiled with what its launches do at once, kernels, or reference."""
    try:
        runner = chosen_runner(arch)
    except RvllmError:
        return "reference"
    if runner._compiled is None:
        return "kernels, row by row" if not runner.mode.batched else "kernels"
    words = ["compiled"]
    if runner.mode.rotates:
        words.append("rotated")
    if runner.mode.joins:
        words.append("joined")
    return ", ".join(words)


def chosen_runner(arch: str, **settings: Any) -> ModelRunner:
    """The runner of the fastest mode that agrees with mlx-lm over emulated kernels.

    `settings` are keys of the configuration that are to be others.
    """
    model, config = zoo_model(arch, config={**zoo_config(arch), **settings})
    paged = install(model)
    keep_latents(model)
    layout = probe_layout(model)
    blocks = layout.split_budget(16_000_000, context=128, max_rows=2, chunk=32)
    arenas = [
        Arena(shape, count) for shape, count in zip(layout.groups, blocks, strict=True)
    ]
    emulator = Emulator()
    backend = KernelBackend(arenas, launcher=emulator)
    add_norm = AddNorm(launcher=emulator, counter=backend.counter)
    joined = install_joined_adds(model, add_norm)
    rotates = install_rotations(model) > 0
    install_gated_delta(model, GatedDelta(launcher=emulator, counter=backend.counter))

    def make(mode: RunMode) -> ModelRunner:
        step = None
        if mode.batched and not mode.dense:
            step = CompiledDecode(
                model,
                layout,
                backend,
                rotates=mode.rotates,
                joined=joined if mode.joins else None,
                compile_step=lambda call: call,
            )
        return ModelRunner(model, layout, backend, mode, config["vocab_size"], step)

    return find_agreeing_runner(
        model,
        make,
        KVTables(layout, blocks),
        paged=paged,
        vocab_size=config["vocab_size"],
        rotates=rotates,
        joins=joined is not None,
    )
