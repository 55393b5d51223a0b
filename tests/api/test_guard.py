"""Who may ask, what, and how: on every route that the application has, found by walking it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route

from rvllm_local.server.app import Server
from rvllm_local.server.http.guard import Guard
from rvllm_local.server.http.settings import ServerSettings
from tests.api.conftest import ORIGIN
from tests.support.api import CHAT, PacedClient, Running, served

KEY = "correct-horse-battery"
ALL_METHODS = (
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "BREW",
)


def walk(server: Server) -> Iterator[tuple[str, str, Route]]:
    """Every method and path of the application."""
    for route in server.routes:
        path = (
            route.path_format.replace("{name}", "tiny")
            .replace("{request_id}", "x")
            .replace("{response_id}", "x")
        )
        for method in sorted(route.methods or ()):
            yield method, path, route


def ask(api: Running, method: str, path: str, **headers: str) -> httpx.Response:
    body = b"{}" if method == "POST" else None
    types = {"content-type": "application/json"} if body else {}
    return api.client.request(method, path, content=body, headers={**types, **headers})


def test_the_walk_finds_the_routes(api: Running) -> None:
    found = {path for _, path, _ in walk(api.server)}
    assert {
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/health",
        "/metrics",
    } <= found


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8473", "127.0.0.1.evil.example", "localhost.", "localhost/x?", "localhost@evil.example",
     "[::2]", "0.0.0.0", "localhost:99999", "", "127.1", "localhost#", " localhost\tx"],
)  # fmt: skip
def test_a_foreign_host_is_refused_on_every_route(api: Running, host: str) -> None:
    for method, path, _ in walk(api.server):
        data = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        status = api.raw(data).split(b"\r\n")[0]
        assert status.split()[1] in (b"403", b"400"), (method, path, status)


def test_a_foreign_origin_is_refused_on_every_route(api: Running) -> None:
    for method, path, _ in walk(api.server):
        for origin in (
            "https://evil.example",
            "null",
            f"{ORIGIN}.evil.example",
            ORIGIN.upper(),
            "http://localhost:3000",
        ):
            assert ask(api, method, path, origin=origin).status_code == 403, (
                method,
                path,
                origin,
            )
        assert (
            ask(api, method, path, **{"sec-fetch-site": "cross-site"}).status_code
            == 403
        )


def test_other_methods_are_refused_on_every_route(api: Running) -> None:
    for path in {path for _, path, _ in walk(api.server)}:
        allowed = {method for method, other, _ in walk(api.server) if other == path}
        for method in set(ALL_METHODS) - allowed:
            answer = ask(api, method, path)
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/", "/v2/chat/completions", "/v1/chat/completions/", "//v1/models", "/v1/../health", "/health/",
     "/V1/models", "/docs", "/v1/chat%2Fcompletions/x", "/health%00", "/v1/engine/explain/", "/%2e%2e/etc/passwd"],
)  # fmt: skip
def test_an_unknown_route_is_refused(api: Running, path: str) -> None:
    data = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert api.raw(data).split()[1] in (b"404", b"405")


def test_who_asks_whether_anything_answers_is_told(api: Running) -> None:
    assert api.client.get("/").json()["routes"] == "/openapi.json"
    assert api.client.head("/").status_code == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/health", b"200"),
        ("HTTP://127.0.0.1:80/v1/models?x=1", b"200"),
        ("http://[::1]/health", b"200"),
        ("http://evil.example/health", b"403"),
        ("http:///health", b"403"),
        ("http://localhost", b"200"),
        ("http://localhost/v2", b"404"),
        ("ftp://localhost/health", b"404"),
    ],
)
def test_an_absolute_target_has_the_host_that_counts(
    api: Running, target: str, status: bytes
) -> None:
    head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert api.raw(head.encode()).split()[1] == status


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonx",
     "application/json; charset=latin-1", "text/plain; application/json"],
)  # fmt: skip
def test_another_content_type_is_refused_on_every_route_with_a_body(
    api: Running, kind: str
) -> None:
    for method, path, _ in walk(api.server):
        if method == "POST":
            answer = api.client.post(
                path, content=b"{}", headers={"content-type": kind}
            )
            assert answer.status_code == 415, path


def test_only_ollamas_routes_take_a_body_without_a_type(api: Running) -> None:
    """A web page could send one, but not without its origin."""
    for method, path, _ in walk(api.server):
        if method != "POST":
            continue
        status = api.client.post(path, content=b"{}").status_code
        assert (status == 415) == (not path.startswith("/api/")), path
        told = {"origin": "https://evil.example"}
        assert api.client.post(path, content=b"{}", headers=told).status_code == 403


@pytest.mark.parametrize(
    "extra",
    ["Host: localhost", "Content-Type: text/plain", "Origin: https://example.org\r\nOrigin: https://evil.example",
     "Transfer-Encoding: chunked", "Content-Length: 3", "Content-Length: -1", "Content-Encoding: gzip"],
)  # fmt: skip
def test_a_doubtful_head_is_refused(api: Running, extra: str) -> None:
    head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2"
    answer = api.raw(f"{head}\r\n{extra}\r\nConnection: close\r\n\r\n{{}}".encode())
    assert answer.split()[1] in (b"400", b"403", b"415"), answer


def test_a_body_where_none_belongs_is_refused(api: Running) -> None:
    assert api.client.request("GET", "/health", content=b"{}").status_code == 400


def test_an_allowed_origin_may_ask_and_only_it_is_named(api: Running) -> None:
    answer = api.post(CHAT, headers={"origin": ORIGIN})
    assert (
        answer.status_code == 200
        and answer.headers["access-control-allow-origin"] == ORIGIN
    )
    flight = api.client.options(
        "/v1/chat/completions",
        headers={"origin": ORIGIN, "access-control-request-method": "POST"},
    )
    assert (
        flight.status_code == 204
        and "POST" in flight.headers["access-control-allow-methods"]
    )
    asks = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-stainless-os,x-a",
    }
    assert (
        api.client.options("/v1/messages", headers=asks).headers[
            "access-control-allow-headers"
        ]
        == "x-stainless-os,x-a"
    )
    assert "access-control-allow-origin" not in api.client.get("/health").headers


@pytest.fixture(scope="module")
def locked(tiny: Path) -> Iterator[Running]:
    settings = ServerSettings(
        port=0, api_keys=(KEY, "another-key"), allowed_origins=(ORIGIN,)
    )
    with served(
        {"tiny": tiny}, settings, opener=lambda files, options: PacedClient()
    ) as running:
        yield running


def test_a_key_is_asked_for_on_every_route(locked: Running) -> None:
    wrong: list[dict[str, bytes]] = [
        {}, {"authorization": b"Bearer wrong"}, {"x-api-key": b"wrong"}, {"authorization": b"Basic " + KEY.encode()},
        {"authorization": "Bearer schlüssel".encode()}, {"authorization": b"Bearer"}, {"x-api-key": KEY[:-1].encode()},
    ]  # fmt: skip
    for method, path, _ in walk(locked.server):
        for headers in wrong:
            answer = locked.client.request(method, path, headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401, (method, path, headers)


def test_either_form_of_a_key_opens(locked: Running) -> None:
    for headers in (
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"x-api-key": "another-key"},
    ):
        assert locked.post(CHAT, headers=headers).status_code == 200


def test_a_preflight_needs_no_key_and_gets_nothing_else(locked: Running) -> None:
    headers = {"origin": ORIGIN, "access-control-request-method": "POST"}
    assert locked.client.options("/v1/messages", headers=headers).status_code == 204
    assert (
        locked.client.options(
            "/v1/messages", headers={**headers, "origin": "https://evil.example"}
        ).status_code
        == 403
    )


def test_without_a_key_only_loopback_is_served() -> None:
    with pytest.raises(ValueError, match="a key is needed"):
        Guard(None, ServerSettings(host="0.0.0.0"), lambda path: None)  # type: ignore[arg-type]


def test_refusals_have_the_shape_of_their_api(api: Running) -> None:
    assert "type" in ask(api, "PUT", "/v1/messages").json()["error"]
    assert ask(api, "PUT", "/v1/messages").json()["type"] == "error"
    assert set(ask(api, "PUT", "/v1/models").json()["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }
    theirs = api.client.get(
        "/v1/models/none", headers={"anthropic-version": "2023-06-01"}
    )
    assert theirs.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("origin", ["app://obsidian.md", "tauri://localhost"])
def test_a_desktop_apps_window_and_a_container_may_be_allowed(
    tiny: Path, origin: str
) -> None:
    settings = ServerSettings(
        port=0, allowed_origins=(origin,), allowed_hosts=("host.docker.internal",)
    )
    with served({"tiny": tiny}, settings, opener=lambda *_: PacedClient()) as running:
        preflight = running.client.options(
            "/v1/chat/completions",
            headers={
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "content-type,x-stainless-lang",
            },
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin
        host = f"host.docker.internal:{running.port}"
        for headers in ({"origin": origin}, {"host": host}):
            answer = running.client.get("/v1/models", headers=headers)
            assert answer.status_code == 200
        for headers in ({"origin": "null"}, {"host": "elsewhere.example"}):
            assert running.client.get("/v1/models", headers=headers).status_code == 403
