"""Model folders from the Hugging Face hub: the local cache first, then the network; never code, never pickle.

The hub's library owns resuming, checksums, mirrors (HF_ENDPOINT), tokens and offline mode (HF_HUB_OFFLINE).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from rvllm_local.errors import DownloadError, ModelNotFoundError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")
_UNWANTED = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*/*", "consolidated*")


def is_repository_id(name: str) -> bool:
    """True for what looks like `owner/name`."""
    return bool(_REPOSITORY.fullmatch(name)) and ".." not in name


def fetch_repository(repository: str, progress: Callable[[str], None]) -> Path:
    """Folder of the repository's model, fetched if it is not whole in the local cache.

    Raises `ModelNotFoundError` if the hub does not know it, `DownloadError` if it cannot be had.
    """
    cached = _cached(repository)
    if cached is not None:
        return cached
    progress(f"fetching {repository} from the Hugging Face hub")
    folder = _download(repository)
    if not is_whole(folder):
        raise DownloadError(f"{repository} holds no config.json with safetensors weights; choose another repository")
    return folder


def is_whole(folder: Path) -> bool:
    """True if the folder has a configuration and every weight file that its index names."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("model*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return bool(shards) and all(isinstance(shard, str) and (folder / shard).is_file() for shard in shards)


def _cached(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(_WANTED)))
    except (OSError, ValueError):  # not there, or only in part
        return None
    return folder if is_whole(folder) else None


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)))
    except GatedRepoError as error:
        raise DownloadError(f"{repository} is gated: accept its terms there and run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(f"the Hugging Face hub has no repository {repository!r} that you may read") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DownloadError(f"{repository} could not be fetched from the Hugging Face hub: {reason}") from error
