"""The server under the chat: found, started, followed while it loads, exchanged and ended by whom it belongs to."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from rvllm_local.errors import EndpointError
from rvllm_local.tui.launcher import ServerLauncher
from tests.tui.fake_endpoint import FakeEndpoint

# Loads for two questions, then serves the model that it is named; "bad" cannot be had.
CHILD = """
import json, sys, http.server
model, port, asked = sys.argv[1], int(sys.argv[2]), []
print("rvllm: fetched 45 MB", flush=True)
if model == "bad":
    sys.exit("rvllm: error: bad cannot be fetched")
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        asked.append(self.path)
        body = json.dumps({"data": [{"id": model}], "status": "ok"}).encode()
        self.send_response(503 if len(asked) < 3 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Starting(ServerLauncher):
    """Starts the script above on a free port."""

    def __init__(self, model: str) -> None:
        super().__init__(None, model)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-c",
            CHILD,
            self.model or "",
            self.url.rsplit(":", 1)[1],
        ]


def test_a_server_that_runs_is_left_as_it_was() -> None:
    async def scenario(fake: FakeEndpoint) -> None:
        server = ServerLauncher(fake.url, None)
        endpoint = await server.connect(lambda text: None)
        assert [one.id for one in await endpoint.models()] == ["small", "large"]
        assert (server.is_child, server.offers(())) == (False, ())
        await endpoint.close()
        await server.stop()
        endpoint = await server.connect(lambda text: None)
        await endpoint.close()

    with FakeEndpoint() as fake:
        asyncio.run(scenario(fake))


def test_a_child_is_followed_exchanged_and_ended() -> None:
    async def scenario() -> None:
        server, told = Starting("one"), []
        endpoint = await server.connect(told.append)
        assert server.is_child
        assert any("fetched 45 MB · " in text for text in told)
        assert (await endpoint.models())[0].id == "one"
        await endpoint.close()
        endpoint = await server.restart("two", told.append)
        assert (await endpoint.models())[0].id == "two"
        await endpoint.close()
        with pytest.raises(EndpointError, match="bad cannot be fetched"):
            await server.restart("bad", told.append)
        endpoint = await server.connect(told.append)  # the one before comes back
        assert (await endpoint.models())[0].id == "two"
        assert server._process is not None
        server._process.kill()
        await server._process.wait()
        await endpoint.close()
        endpoint = await server.connect(told.append)
        await endpoint.close()
        await server.stop()
        with pytest.raises(EndpointError, match="no server answers"):
            await ServerLauncher(server.url, None).connect(told.append)

    asyncio.run(scenario())


def test_what_could_be_started_tells_whether_it_fits() -> None:
    server = ServerLauncher(None, None)
    server.is_child = True
    offers = {one.id: one for one in server.offers(())}
    assert offers["smollm2-135m"].fits
    assert "llama3.3-70b" in offers and offers["llama3.3-70b"].size
