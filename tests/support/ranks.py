"""Jobs of ranks on loopback, models for them, and how a test looks at their processes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from rvllm_local import LLM
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.conversation.model import ConversationModel, detect_style
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.ports import spare_ports
from tests.support.tiny import save_tokenizer
from tests.support.zoo import zoo_config, zoo_model

needs_ring = pytest.mark.skipif(
    not mx.distributed.is_available("ring"), reason="this MLX has no ring back end"
)

FAMILIES = ("llama", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_5")
# Those of which each of four ranks can have layers of every kind.
PIPELINES = (
    "qwen2",
    "qwen3_moe",
    "deepseek_v3",
    "deepseek_v32",
    "ministral3",
    "qwen3_5",
)
_LAYERS = 2  # each sums twice over all ranks
PIPELINE_LAYERS = 8  # two for each of four ranks
MOST_RANKS = 4  # that the heads of `save_for_ranks` can be divided between


def save_for_ranks(family: str, folder: Path) -> Path:
    """Write a tiny model of a family that two ranks can serve, and four."""
    config = zoo_config(family)
    text = config.get("text_config", config)
    text["num_hidden_layers"] = _LAYERS
    text["num_key_value_heads"] = MOST_RANKS
    if "linear_num_key_heads" in text:
        text["linear_num_key_heads"] = MOST_RANKS
        text["layer_types"] = text["layer_types"][:_LAYERS]
    return _saved(family, config, folder)


def _saved(family: str, config: dict[str, Any], folder: Path) -> Path:
    model, config = zoo_model(family, config=config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    save_tokenizer(folder)
    return folder


def save_for_pipeline(family: str, folder: Path) -> Path:
    """Write a tiny model of a family; two ranks can have its layers, and four."""
    config = zoo_config(family)
    text = config.get("text_config", config)
    text["num_hidden_layers"] = PIPELINE_LAYERS
    if family == "ministral3":
        text["layer_types"] = ["sliding_attention", "full_attention"]
        text["sliding_window"] = 48
    for name in ("layer_types", "mlp_layer_types"):
        if name in text:
            text[name] = (text[name] * PIPELINE_LAYERS)[:PIPELINE_LAYERS]
    return _saved(family, config, folder)


@contextlib.contextmanager
def served_by_ranks(folder: Path, ranks: int = 2, **options: object) -> Iterator[LLM]:
    """An `LLM` whose engine is so many processes of this machine."""
    client = ProcessClient(str(folder), EngineOptions(ranks=ranks, **options))
    files = locate(str(folder))
    tokenizer = read_tokenizer(files)
    style = detect_style(files, tokenizer)
    model = ConversationModel(files.name, tokenizer, style, client.limits)
    with LLM.over(client, model) as llm:
        yield llm


def both_ways(
    folders: Sequence[Path],
    ranks: int,
    *,
    pipeline: bool = False,
    timeout: float | None = 280,
) -> dict[str, list[list[int]]]:
    """Each model's tokens through mlx-lm's own forward on all ranks, and the engine's."""
    command = [sys.executable, "-m", "tests.support.rank_group"]
    if pipeline:
        command.append("--pipeline")
    addresses = ",".join(free_hosts(ranks))
    paths = [str(folder) for folder in folders]
    processes = []
    for rank in range(ranks):
        arguments = [*command, str(rank), addresses, *paths]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        processes.append(process)
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks
    tokens: dict[str, list[list[int]]] = json.loads(printed[0])
    return tokens


def free_hosts(count: int) -> list[str]:
    """Addresses of this machine; below the first one's port there is a free one, too."""
    _, *ports = spare_ports(count + 1)
    return [f"127.0.0.1:{port}" for port in ports]


def followers_of(leader: int) -> list[int]:
    """The processes of the other ranks, which rank 0 has started, in their order.

    While it loads it starts others as well, which last for a moment.
    """
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="],
        capture_output=True,
        text=True,
        check=True,
    )
    followers = []
    for line in listing.stdout.splitlines():
        child, parent, command = line.split(maxsplit=2)
        if int(parent) == leader and "rvllm_local.distributed.follower" in command:
            followers.append(int(child))
    return sorted(followers)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    children = []
    for line in listing.stdout.splitlines():
        child, parent = line.split()
        if int(parent) == pid:
            children.append(int(child))
    return children
