"""The outermost layer: who may ask, what, and how much. Nothing passes it that was not checked; the default is no.

It authorises on `scope["path"]` alone and reads a body only after all else was right.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote

from rvllm_local.server.http.body import BodyReader, GoneError
from rvllm_local.server.http.guarded_answer import (
    GuardedAnswer,
    OnAnswer,
    Receive,
    Scope,
    Send,
)
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.refusal_log import RefusalLog
from rvllm_local.server.http.settings import LOOPBACK_NAMES, ServerSettings, is_loopback

logger = logging.getLogger(__name__)

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Allowed = Callable[[str], frozenset[str] | None]

# A target as proxies get it: scheme, host, and a path that may be empty.
_ABSOLUTE = re.compile(r"https?://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(
    r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
)
_JSON = re.compile(
    r"application/json(\s*;\s*charset\s*=\s*\"?utf-8\"?)?", re.IGNORECASE
)
_CORS_HEADERS = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, x-request-id"
_NAMES = re.compile(rb"[A-Za-z0-9-]{1,64}(?:\s*,\s*[A-Za-z0-9-]{1,64}){0,63}")
_BODILESS = ("GET", "HEAD", "DELETE")
_BODIED_DELETE = "/api/delete"  # Ollama names the model in a body there
_UNTYPED = "/api/"
_ONCE = (
    b"host",
    b"origin",
    b"content-type",
    b"content-length",
    b"authorization",
    b"x-api-key",
    b"content-encoding",
)


class Guard:
    """ASGI middleware.

    `allowed` gives the methods of a path, or None for a path that does not exist.
    `on_answer` gets the status of every answer, the guard's own refusals included.
    """

    def __init__(
        self,
        app: App,
        settings: ServerSettings,
        allowed: Allowed,
        on_answer: OnAnswer = lambda status: None,
        refusals: RefusalLog | None = None,
    ) -> None:
        self._app, self._settings, self._allowed = app, settings, allowed
        self._bodies = BodyReader(settings)
        self._refusals = refusals or RefusalLog()
        self._on_answer = on_answer
        self._hosts = {
            name.lower() for name in (*LOOPBACK_NAMES, *settings.allowed_hosts)
        }
        if settings.host not in ("0.0.0.0", "::"):
            self._hosts.add(
                f"[{settings.host}]"
                if ":" in settings.host.strip("[]")
                else settings.host.lower()
            )
        self._keys = [
            hashlib.sha256(key.encode()).digest() for key in settings.api_keys
        ]
        if not self._keys and not is_loopback(settings.host):
            raise ValueError(f"a key is needed to listen on {settings.host}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        hold = self._bodies.hold()
        answer = GuardedAnswer(scope, send, self._on_answer, hold, self._refusals)
        try:
            headers = _in_origin_form(scope, _single(scope["headers"]))
            answer.headers += self._cors(headers)
            self._check(scope, headers)
            if scope["method"] == "OPTIONS":
                await _preflight(headers, answer, self._allowed(scope["path"]))
                return
            body = await self._bodies.read(headers, receive, hold)
            answer.is_body_read = True
            await self._app(scope, body, answer)
        except Problem as problem:
            await answer.refuse(problem)
        except GoneError:
            return
        except Exception as error:
            kind = type(error).__name__
            logger.error("%s %s failed with %s", scope["method"], scope["path"], kind)
            if answer.has_begun:
                raise ConnectionAbortedError(kind) from None
            failure = Problem(500, "the server failed; see its log", "internal_error")
            await answer.refuse(failure)
        finally:
            hold.release()
            self._bodies.trim_after(hold)

    def _check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        self._check_host(headers)
        self._check_origin(headers)
        allowed, method = self._allowed(scope["path"]), scope["method"]
        if allowed is not None:
            scope["route_path"] = scope["path"]
        if (
            method == "OPTIONS"
            and b"origin" in headers
            and b"access-control-request-method" in headers
        ):
            return  # a preflight carries no key
        self._check_key(headers)
        if allowed is None:
            raise Problem(404, self._no_route(scope["path"]), "not_found")
        if method not in allowed:
            names = ", ".join(sorted(allowed))
            raise Problem(
                405,
                f"this method is not allowed here; use {names}",
                "method_not_allowed",
                allowed=names,
            )
        takes_body = method not in _BODILESS or scope["path"] == _BODIED_DELETE
        self._check_body_headers(method, headers, takes_body)
        if takes_body:
            _check_content_type(scope["path"], headers)

    def _no_route(self, path: str) -> str:
        """Why a path leads nowhere, and where it should lead."""
        bare = path.removeprefix("/v1")
        while bare.startswith("/v1/"):
            bare = bare.removeprefix("/v1")
        for candidate in (f"/v1{bare}", bare):
            if candidate != path and self._allowed(candidate) is not None:
                return f"there is no such route; did you mean {candidate}?"
        return "there is no such route; GET /openapi.json lists them"

    def _check_host(self, headers: Mapping[bytes, bytes]) -> None:
        host = _HOST.fullmatch(headers.get(b"host", b"").decode("latin-1"))
        if (
            host is None
            or host["name"].lower() not in self._hosts
            or int(host["port"] or 1) > 65535
        ):
            raise Problem(
                403,
                "the Host header does not name this server; use localhost, or start it with --allow-host",
                "bad_host",
            )

    def _check_origin(self, headers: Mapping[bytes, bytes]) -> None:
        origin = headers.get(b"origin")
        if (
            origin is not None
            and origin.decode("latin-1") not in self._settings.allowed_origins
        ):
            raise Problem(
                403,
                "this web origin may not use the server; allow it with --allow-origin",
                "bad_origin",
            )
        if origin is None and headers.get(b"sec-fetch-site", b"none") not in (
            b"none",
            b"same-origin",
        ):
            raise Problem(403, "web pages may not use the server", "bad_origin")

    def _check_key(self, headers: Mapping[bytes, bytes]) -> None:
        if not self._keys:
            return
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        digest = hashlib.sha256(given).digest()
        if (
            sum(hmac.compare_digest(digest, key) for key in self._keys) == 0
        ):  # all are compared: no timing tells
            raise Problem(
                401,
                "a valid API key is needed, as 'Authorization: Bearer' or 'x-api-key'",
                "invalid_api_key",
            )

    def _check_body_headers(
        self, method: str, headers: Mapping[bytes, bytes], takes_body: bool
    ) -> None:
        length = headers.get(b"content-length")
        if length is not None and not (length.isdigit() and len(length) < 16):
            raise Problem(400, "the Content-Length is not a number", "bad_header")
        if length is not None and b"transfer-encoding" in headers:
            raise Problem(
                400,
                "a request has either Content-Length or Transfer-Encoding, not both",
                "bad_header",
            )
        has_body = b"transfer-encoding" in headers or int(length or 0) > 0
        if not takes_body:
            if has_body:
                raise Problem(400, f"a {method} request has no body here", "bad_body")
            return
        self._bodies.check_size(int(length or 0))
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Problem(
                415, "bodies with a Content-Encoding are not taken", "bad_content_type"
            )

    def _cors(self, headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        if not self._settings.allowed_origins:
            return []
        origin = headers.get(b"origin")
        vary = [(b"vary", b"Origin")]
        if (
            origin is None
            or origin.decode("latin-1") not in self._settings.allowed_origins
        ):
            return vary
        return [
            *vary,
            (b"access-control-allow-origin", origin),
            (
                b"access-control-expose-headers",
                b"x-request-id, request-id, retry-after, x-should-retry, "
                b"x-rvllm-left-out",
            ),
        ]


def _check_content_type(path: str, headers: Mapping[bytes, bytes]) -> None:
    """Refuse a body that is not said to be JSON.

    Some of Ollama's clients say nothing. A web page cannot either without naming its
    origin, which is checked before.
    """
    content_type = headers.get(b"content-type")
    if content_type is None and path.startswith(_UNTYPED):
        return
    if not _JSON.fullmatch((content_type or b"").decode("latin-1").strip()):
        raise Problem(
            415, "the Content-Type must be application/json", "bad_content_type"
        )


def _single(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by lower-case name. Raises `Problem` for a doubled one that decides something."""
    values: dict[bytes, bytes] = {}
    for raw, value in headers:
        name = raw.lower()
        if name in values and name in _ONCE:
            raise Problem(
                400, f"the {name.decode('latin-1')} header comes twice", "bad_header"
            )
        values[name] = value
    return values


async def _preflight(
    headers: Mapping[bytes, bytes], send: Send, allowed: frozenset[str] | None
) -> None:
    """What an allowed origin may send: any header, since the official clients have many of their own."""
    methods = ", ".join(sorted(allowed or ())).encode()
    named = headers.get(b"access-control-request-headers", b"").strip()
    told = [
        (b"access-control-allow-methods", methods),
        (
            b"access-control-allow-headers",
            named if _NAMES.fullmatch(named) else _CORS_HEADERS.encode(),
        ),
        (b"access-control-max-age", b"600"),
    ]
    await send(
        {
            "type": "http.response.start",
            "status": 204 if allowed else 404,
            "headers": told,
        }
    )
    await send({"type": "http.response.body", "body": b""})


def _in_origin_form(
    scope: Scope, headers: Mapping[bytes, bytes]
) -> Mapping[bytes, bytes]:
    """Turn an absolute target into a path; its host counts, and not the header."""
    match = _ABSOLUTE.fullmatch(scope["path"])
    if match is None:
        return headers
    scope["path"] = match[2] or "/"
    scope["raw_path"] = quote(scope["path"]).encode()
    return {**headers, b"host": match[1].encode("latin-1", "replace")}
