"""lm-eval scores local tasks through /v1/completions: its numbers are a plain forward's.

It lives in an environment of its own, which takes 0.8 GB and minutes to install. So it
is used where it is there already, or where RVLLM_INSTALL_LM_EVAL=1 asks for it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import platformdirs
import pytest

from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import ModelFiles, locate
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.api import Running

VERSION = "0.4.13"
ENVIRONMENT = platformdirs.user_cache_path("rvllm") / "tests" / f"lm_eval-{VERSION}"
PYTHON = ENVIRONMENT / "bin" / "python"
TASKS = ("sea_likelihood", "sea_choice", "sea_perplexity")
# Every task reads the same rows.
ROWS = [
    {"text": "The sea is", "answer": "salty", "wrong": "sweet", "label": 0},
    {"text": "A harbour is for", "answer": "ships", "wrong": "cars", "label": 1},
    {"text": "Fish swim in", "answer": "water", "wrong": "sand", "label": 0},
]
LIKELIHOOD = """\
task: sea_likelihood
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: " {{answer}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
"""
CHOICE = """\
task: sea_choice
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: ["{{answer}}", "{{wrong}}"]
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
PERPLEXITY = """\
task: sea_perplexity
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}} {{answer}}."
metric_list:
  - metric: byte_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
"""


def write_tasks(folder: Path) -> None:
    """The three tasks, over rows in a file beside them."""
    data = folder / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    source = "dataset_path: json\ntest_split: test\n"
    source += f"dataset_kwargs:\n  data_files:\n    test: {data}\n"
    for name, task in zip(TASKS, (LIKELIHOOD, CHOICE, PERPLEXITY), strict=True):
        (folder / f"{name}.yaml").write_text(task + source)


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of lm-eval's environment."""
    if PYTHON.exists():
        return PYTHON
    if os.environ.get("RVLLM_INSTALL_LM_EVAL") != "1":
        pytest.skip("lm-eval is not installed; RVLLM_INSTALL_LM_EVAL=1 installs it")
    packages = [f"lm_eval=={VERSION}", "tenacity"]
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *packages], check=True)
    return PYTHON


Samples = dict[str, list[dict[str, Any]]]


def evaluate(python: Path, folder: Path, port: int) -> Samples:
    """Every task's samples, as lm-eval logs them."""
    write_tasks(folder)
    arguments = {
        "model": "default",
        "base_url": f"http://127.0.0.1:{port}/v1/completions",
        "tokenizer_backend": "remote",
        "max_length": "512",
        "num_concurrent": "2",
    }
    command = [str(python), "-m", "lm_eval", "run", "--model", "local-completions"]
    joined = ",".join(f"{name}={value}" for name, value in arguments.items())
    command += ["--model_args", joined, "--tasks", ",".join(TASKS)]
    command += ["--include_path", str(folder), "--log_samples"]
    command += ["--output_path", str(folder / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **offline},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    samples: Samples = {}
    for task in TASKS:
        (file,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
        samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
    return samples


class PlainForward:
    """Log-likelihoods from a forward pass without caches, of the same weights."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Tokenizer = read_tokenizer(ModelFiles("folder", folder, "tiny"))
        self._module = load_model(locate(str(folder))).module

    def score(self, before: Sequence[int], after: Sequence[int]) -> float:
        """The log-likelihood of the tokens `after` those `before`."""
        tokens = [*before, *after]
        logits = self._module(mx.array([tokens[:-1]]))[0].astype(mx.float32)
        rows = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        positions = range(len(before) - 1, len(tokens) - 1)
        return float(sum(rows[index, tokens[index + 1]] for index in positions))

    def continuation(self, context: str, text: str) -> float:
        """The log-likelihood of a text after another, tokenized together."""
        before = self.tokenizer.encode(context)
        return self.score(before, self.tokenizer.encode(context + text)[len(before) :])


@pytest.mark.timeout(1200)
def test_its_numbers_are_those_of_a_plain_forward(
    python: Path, api: Running, tiny: Path, tmp_path: Path
) -> None:
    samples = evaluate(python, tmp_path, api.port)
    plain = PlainForward(tiny)
    compared = 0
    for task in TASKS[:2]:
        for sample in samples[task]:
            for request, ((score, _),) in zip(
                sample["arguments"].values(), sample["resps"], strict=True
            ):
                expected = plain.continuation(request["arg_0"], request["arg_1"])
                assert float(score) == pytest.approx(expected, abs=1e-3)
                compared += 1
    prefix = plain.tokenizer.bos_token_id
    if prefix is None:
        prefix = api.engine.limits.eos_token_ids[0]
    for sample in samples[TASKS[2]]:
        text = sample["arguments"]["gen_args_0"]["arg_0"]
        expected = plain.score([prefix], plain.tokenizer.encode(text, bos=False))
        ((score,),) = sample["resps"]
        assert float(score) == pytest.approx(expected, abs=1e-3)
        assert math.isfinite(sample["byte_perplexity"][0])
        compared += 1
    assert compared == len(ROWS) * 4
