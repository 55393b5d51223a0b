"""Asks the Hugging Face hub what a repository offers, and says its errors in our words.

The network is huggingface_hub's: mirrors, proxies, and tokens. Nothing is stored here.
"""

from __future__ import annotations

import os
import re

from rvllm_local.errors import DownloadError, ModelNotFoundError, RvllmError
from rvllm_local.models.hub_plan import RemoteFile
from rvllm_local.models.repository import Repository

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECRET = re.compile(r"hf_[A-Za-z0-9]+|(?<=//)[^/@\s]+(?=@)|(?<=[Bb]earer )\S+")
_TIMEOUT_S = 30


def endpoint() -> str:
    """The hub, or the mirror that HF_ENDPOINT names."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """True if HF_HUB_OFFLINE asks for no network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def offered_files(repository: Repository) -> tuple[str, list[RemoteFile]]:
    """The commit of a revision, and its files.

    Raises `ModelNotFoundError` or `DownloadError`.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=endpoint()).model_info(
            repository.id,
            revision=repository.revision,
            files_metadata=True,
            timeout=_TIMEOUT_S,
        )
    except Exception as error:
        raise explained(repository.id, error) from None
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise DownloadError(
            f"{repository.id}: the hub names no commit; try again later"
        )
    files = []
    for sibling in info.siblings or []:
        name = str(sibling.rfilename)
        if sibling.lfs is None:
            files.append(RemoteFile(name, sibling.size, git_sha1=sibling.blob_id))
        else:
            files.append(RemoteFile(name, sibling.size, sha256=sibling.lfs.sha256))
    return info.sha, files


def explained(repository: str, error: Exception) -> RvllmError:
    """An error of the network or the hub as one of ours, without secrets."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"{repository} is gated: accept its terms on the hub and run "
            "`hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(
            f"{repository} has no such revision; leave out the part after @ for the "
            "newest"
        )
    if _is_bad_token(error):
        return DownloadError(
            f"{repository}: the hub does not accept your token, which is wrong or "
            "expired; run `hf auth login` or unset HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"the Hugging Face hub has no repository {repository!r} that you may read"
        )
    reason = redact(f"{type(error).__name__}: {error}")
    return DownloadError(
        f"{repository} could not be fetched: {reason}; what came is kept, try again "
        "to go on"
    )


def _is_bad_token(error: Exception) -> bool:
    """True if the hub says that the token is no good, whatever was asked for."""
    text = str(error).lower()
    names_token = "token" in text or "credentials" in text
    refused = "expired" in text or "invalid" in text or "is not valid" in text
    return "401" in text and names_token and refused


def redact(text: str) -> str:
    """One line without anything that looks like a token or a password."""
    return _SECRET.sub("***", " ".join(text.split()))[:300]
