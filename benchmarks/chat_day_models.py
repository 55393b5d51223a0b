"""What gives the models of a day with the chat: a slow package index, and a hub that cuts.

Both listen on this machine's loopback.
"""

from __future__ import annotations

import contextlib
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rvllm_local.models.cache_folder import models_folder
from rvllm_local.models.catalogue import Catalogue, CatalogueEntry
from tests.support.hub import FakeHub
from tests.support.tiny import save_tiny

RIVAL = "qwen3-0.6b"


@contextlib.contextmanager
def slow_index(folder: Path, entry: CatalogueEntry, download_s: float) -> Iterator[str]:
    """A package index with the one wheel, which takes so many seconds to come."""
    wheel = make_wheel(folder, entry)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                self.send_response(200)
                self.send_header("Content-Length", str(wheel.stat().st_size))
                self.end_headers()
                self.send_slowly()
                return
            page = f'<a href="/files/{wheel.name}">{wheel.name}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def send_slowly(self) -> None:
            began, size, sent = time.monotonic(), wheel.stat().st_size, 0
            with wheel.open("rb") as source, contextlib.suppress(OSError):
                while part := source.read(256 * 1024):
                    self.wfile.write(part)
                    sent += len(part)
                    due = began + download_s * sent / size
                    time.sleep(max(0.0, due - time.monotonic()))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()


def make_wheel(folder: Path, entry: CatalogueEntry) -> Path:
    """The wheel of the default model, from the copy that is in this machine's cache."""
    assert entry.pypi is not None
    model = models_folder() / entry.name / entry.file
    if not model.is_file():
        raise SystemExit(f"{model} is not here; run: rvllm pull {entry.name}")
    name, _, version = entry.pypi.requirement.partition("==")
    name = name.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        archive.write(model, entry.pypi.member)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def cutting_hub(folder: Path) -> FakeHub:
    """A hub with a small model under the rival's name; its first transfer is cut."""
    source = save_tiny("qwen3", folder / "rival")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    repository = Catalogue.load().entries[RIVAL].repo
    assert repository is not None
    return FakeHub(repository, files=files, cut_after={"model.safetensors": [20_000]})
