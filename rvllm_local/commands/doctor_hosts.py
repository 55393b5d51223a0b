"""`rvllm doctor --hosts`: whether the machines of a job can serve a model together."""

from __future__ import annotations

from pathlib import Path

from rvllm_local.commands.finding import Finding
from rvllm_local.config import load_config
from rvllm_local.distributed import frames
from rvllm_local.distributed.agreement import model_mark
from rvllm_local.distributed.gathering import Gathered, Gathering
from rvllm_local.distributed.hosts import read_hosts
from rvllm_local.distributed.measuring import SumTimes, measure
from rvllm_local.distributed.meeting import form_group
from rvllm_local.distributed.team import Team, joined_mark
from rvllm_local.errors import EngineError, RvllmError
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions

_PATIENCE_S = 20.0  # with ranks that are not there yet
_SLOW_ROW_S = 0.002  # a step sums twice a layer


def hosts_findings(path: Path) -> list[Finding]:
    """Reach, versions, models, and the time of a sum over all ranks."""
    try:
        hosts = read_hosts(path)
        backend = load_config().options.backend
        ranks = len(hosts.addresses)
        options = EngineOptions(ranks=ranks, hosts=hosts, backend=backend)
        gathering = Gathering(options, "", _silent, measures=True)
    except RvllmError as error:
        return [Finding("hosts", "failed", str(error))]
    try:
        gathered = gathering.gather(_PATIENCE_S)
        findings = [_reached(gathered), *_models(gathered)]
        return [*findings, *_sums(gathered)]
    except RvllmError as error:
        return [Finding("hosts", "failed", str(error))]
    finally:
        gathering.abandon()


def _reached(gathered: Gathered) -> Finding:
    peers = ", ".join(link.peer for link in gathered.links)
    meeting = gathered.meeting
    detail = (
        f"{len(meeting.addresses)} ranks of the same versions, which the "
        f"{meeting.backend} back end would serve: this machine, {peers}"
    )
    return Finding("hosts", "ok", detail)


def _models(gathered: Gathered) -> list[Finding]:
    """Whether each rank has this machine's default model, or RVLLM_MODEL."""
    config = load_config()
    ours = model_mark(locate(config.model, cache_dir=config.cache_dir))
    findings = []
    ranks = len(gathered.meeting.addresses)
    for rank, link in enumerate(gathered.links, start=1):
        try:
            theirs = joined_mark(link, rank, ranks)
        except RvllmError as error:
            findings.append(Finding("model", "failed", str(error)))
            continue
        if theirs != ours:
            detail = f"rank {rank} has another model than {config.model} here"
            advice = "fetch the same model there, or set RVLLM_MODEL here"
            findings.append(Finding("model", "failed", detail, advice))
    return findings or [
        Finding("model", "ok", f"{config.model} is the same everywhere")
    ]


def _sums(gathered: Gathered) -> list[Finding]:
    team = Team(gathered.links, gathered.processes)
    team.start(gathered.pids)
    team.tell(frames.Go())
    try:
        times = measure(form_group(gathered.meeting, 0))
    except EngineError as error:
        return [Finding("sums", "failed", str(error))]
    finally:
        team.close()
    return [_verdict(times)]


def _verdict(times: SumTimes) -> Finding:
    detail = (
        f"{1e6 * times.row_s:.0f} us for one row, "
        f"{times.bytes_per_s / 1e6:.0f} MB/s for 16 MB"
    )
    if times.row_s > _SLOW_ROW_S:
        advice = "a step takes two such sums a layer: use a cable instead of Wi-Fi"
        return Finding("sums", "warning", detail, advice)
    return Finding("sums", "ok", detail)


def _silent(_message: str) -> None:
    pass
