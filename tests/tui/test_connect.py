"""The server under the chat: found, started, followed while it loads, exchanged and ended by whom it belongs to."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from rvllm_local.errors import EndpointError
from rvllm_local.models.catalogue import Catalogue
from rvllm_local.tui.endpoint import ChatEndpoint
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.lease import Lease
from rvllm_local.tui.offers import catalogue_models
from rvllm_local.tui.state import ModelInfo
from tests.support.ports import spare_ports
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


# Prints how much has come, then is done; "bad" cannot be had.
PULL = """
import sys
if sys.argv[1] == "bad":
    sys.exit("rvllm: error: no such model")
print("rvllm: fetched 100 MB\\nrvllm: fetched 200 MB", flush=True)
"""
ROOT = Path(__file__).parents[2]


class Starting(ServerLauncher):
    """Starts the script above on a free port."""

    def __init__(self, model: str) -> None:
        super().__init__(None, model, grace_s=0.3)
        (port,) = spare_ports(1)
        self.url = f"http://127.0.0.1:{port}"

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
        assert "fetching one · 45 MB" in told
        assert not any("fetched" in text for text in told)
        assert (await endpoint.models())[0].id == "one"
        await endpoint.close()
        endpoint = await server.restart("two", told.append)
        assert (await endpoint.models())[0].id == "two"
        await endpoint.close()
        with pytest.raises(EndpointError, match="bad cannot be fetched"):
            await server.restart("bad", told.append)
        endpoint = await server.connect(told.append)  # the one before comes back
        assert (await endpoint.models())[0].id == "two"
        await endpoint.close()
        await server.stop()
        async with asyncio.timeout(60):
            while await answers(server.url):
                await asyncio.sleep(0.05)

    asyncio.run(scenario())


def test_loading_is_timed_from_the_end_of_the_download() -> None:
    async def scenario() -> None:
        now, told = [0.0], []
        server = ServerLauncher(None, "one", clock=lambda: now[0])
        ours, keepers = socket.socketpair()
        lease = Lease(*await asyncio.open_connection(sock=ours))
        server.lease = lease
        lease.lines.append("rvllm: fetched 45 MB")
        server._report = told.append
        now[0] = 90.0
        server.tell_progress()
        lease.lines.append("rvllm: loading one")
        now[0] = 93.0
        server.tell_progress()
        assert told == ["fetched 45 MB", "loading one · for 3 s"]
        keepers.close()
        await lease.release()

    asyncio.run(scenario())


async def answers(url: str) -> bool:
    endpoint = ChatEndpoint(url)
    try:
        await endpoint.health()
    except EndpointError:
        return False
    finally:
        await endpoint.close()
    return True


def test_chats_share_a_server_that_outlives_the_first() -> None:
    async def scenario() -> None:
        first = Starting("one")
        second = Starting("one")
        second.url = first.url
        await (await first.connect(lambda text: None)).close()
        await (await second.connect(lambda text: None)).close()
        assert second.is_child and second.lease is not None
        await first.stop()
        async with asyncio.timeout(60):
            while second.lease.count != 1:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)  # longer than the grace
        assert await answers(first.url)
        await second.stop()
        async with asyncio.timeout(60):
            while await answers(first.url):
                await asyncio.sleep(0.05)

    asyncio.run(scenario())


def test_a_killed_chat_lets_go_of_its_server() -> None:
    script = f"""
import asyncio, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.tui.test_connect import Starting
async def main():
    server = Starting("one")
    await server.connect(lambda text: None)
    print(server.url, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""

    async def scenario() -> None:
        chat = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
        )
        assert chat.stdout is not None
        url = (await chat.stdout.readline()).decode().strip()
        assert await answers(url)
        chat.kill()
        await chat.wait()
        async with asyncio.timeout(60):
            while await answers(url):
                await asyncio.sleep(0.05)

    asyncio.run(scenario())


def test_a_fetch_has_no_time_limit_and_says_why_it_failed() -> None:
    class Fetching(ServerLauncher):
        def pull_command(self, name: str) -> list[str]:
            return [sys.executable, "-c", PULL, name]

    async def scenario() -> None:
        launcher, told = Fetching(None, None), []
        await launcher.fetch(ModelInfo("slow", size=400_000_000), told.append)
        assert told[-1].startswith("fetching slow · ██████░░░░░░ 50% · 200 of 400 MB")
        with pytest.raises(EndpointError, match="bad was not fetched: no such model"):
            await launcher.fetch(ModelInfo("bad"), told.append)

    asyncio.run(scenario())


def test_what_could_be_started_tells_whether_it_fits() -> None:
    offers = {info.id: info for info in catalogue_models(())}
    assert offers["smollm2-135m"].fits
    assert "llama3.3-70b" in offers and offers["llama3.3-70b"].size


def test_a_cpu_keeps_packed_weights_small_and_widens_the_others() -> None:
    entries = Catalogue.load().entries
    packed, plain = entries["qwen3-8b"], entries["smollm2-1.7b"]
    assert packed.read_bytes(is_on_cpu=True) == packed.size
    assert packed.size < packed.weight_bytes(is_on_cpu=True) < 8.2e9 * 4
    assert plain.read_bytes(is_on_cpu=True) == plain.weight_bytes(is_on_cpu=True)
    assert plain.weight_bytes(is_on_cpu=True) == round(1.7e9 * 4)
    assert plain.weight_bytes(is_on_cpu=False) == plain.size
