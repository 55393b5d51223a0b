"""A fake Hugging Face hub on the loopback interface that can cut, corrupt, redirect, stall and lie."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "a" * 40


@dataclass
class FakeHub:
    """One repository. Faults are looked up by file name; each is used up once unless it is kept."""

    repository: str = "owner/tiny"
    commit: str = COMMIT
    files: dict[str, bytes] = field(default_factory=dict)
    names: list[dict[str, Any]] = field(
        default_factory=list
    )  # siblings that have no content
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    redirect: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    ignore_range: bool = False
    plain_git: set[str] = field(
        default_factory=set
    )  # files that have git's checksum only
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    before: Callable[[str], None] = lambda _name: None
    url: str = ""

    def siblings(self) -> list[dict[str, Any]]:
        rows = []
        for name, data in self.files.items():
            row: dict[str, Any] = {
                "rfilename": name,
                "size": len(data),
                "blobId": git_sha1(data),
            }
            if name not in self.plain_git:
                row["lfs"] = {
                    "size": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "pointerSize": 128,
                }
            rows.append(row)
        return rows + self.names

    def fetched(self) -> list[str]:
        """Names of the files that were asked for, in order."""
        return [
            path.rsplit("/", 1)[1]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the hub until the block ends; `hub.url` is where."""

    class Handler(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}
    )
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.fake.requests.append((self.command, path, dict(self.headers)))
        if path.startswith("/api/models"):
            self._info(path)
        elif "/resolve/" in path or path.startswith("/cdn/"):
            self._file(
                path.split("/", 5)[-1]
                if "/resolve/" in path
                else path.split("/", 2)[-1]
            )
        else:
            self._answer(404, b"")

    do_HEAD = do_GET

    def _info(self, path: str) -> None:
        if path == "/api/models":
            rows = [
                {
                    "id": self.fake.repository,
                    "modelId": self.fake.repository,
                    "downloads": 7,
                    "tags": [],
                }
            ]
            return self._answer(200, json.dumps(rows).encode())
        known = path.startswith(f"/api/models/{self.fake.repository}")
        status = self.fake.status.get("api", 200 if known else 404)
        if status != 200:
            code = {404: "RepoNotFound", 403: "GatedRepo"}.get(status, "")
            return self._answer(status, b"{}", {"X-Error-Code": code} if code else {})
        if "/revision/" in path and path.rsplit("/", 1)[1] not in (
            "main",
            self.fake.commit,
            "v1",
        ):
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        body = {
            "id": self.fake.repository,
            "sha": self.fake.commit,
            "siblings": self.fake.siblings(),
            "tags": [],
        }
        return self._answer(200, json.dumps(body).encode())

    def _file(self, name: str) -> None:
        self.fake.before(name)
        if name in self.fake.status:
            return self._answer(self.fake.status[name], b"")
        if name in self.fake.redirect and not self.path.startswith("/cdn/"):
            return self._answer(302, b"", {"Location": self.fake.redirect[name]})
        data = self.fake.files.get(name)
        if data is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if name in self.fake.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0
        if (wanted := self.headers.get("Range")) and not self.fake.ignore_range:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        headers = (
            {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            if start
            else {}
        )
        cuts = self.fake.cut_after.get(name)
        return self._answer(
            206 if start else 200, data[start:], headers, cuts.pop(0) if cuts else None
        )

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass
