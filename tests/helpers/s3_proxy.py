"""A proxy before an S3 server, on loopback, that fails a share of the requests in seven ways.

Which requests fail and how goes by the seed alone, so far as they come in the same order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from s3 import S3

# Of the last two the server has done what it was asked, and the answer is none, or a 500.
FAULTS = ("500", "503", "reset", "cut", "slow", "lost", "lost-500")
SLOW_S = 0.3
PAIRED_WITHIN_S = 10.0
ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>by the proxy</Message></Error>'


class Counts(NamedTuple):
    requests: int
    faults: dict[str, int]


class Proxy(NamedTuple):
    """`s3` is the same server by way of the proxy."""

    s3: S3
    log: Path

    def counts(self) -> Counts:
        """The requests that it has passed on so far, and those that it has not."""
        ways = self.log.read_text().split()
        return Counts(len(ways), {fault: ways.count(fault) for fault in FAULTS})


@contextmanager
def flaky(
    s3: S3,
    log: Path,
    share: float = 0.0,
    seed: int = 0,
    spoils: str = "",
    pairs: str = "",
    denies: str = "",
) -> Iterator[Proxy]:
    """A proxy that fails this share of the requests, while it is needed.

    Of each key with `spoils` in it the answer to the first PUT is always lost, and that to the
    first GET always cut short. The first PUT of a key with `pairs` in it waits for one of another
    (`paired` in the log), or in vain (`alone`). `denies` is a status and a part of keys: "403 clips/",
    which is the answer to every request for them, listings included.
    """
    arguments = [s3.endpoint, str(log), str(share), str(seed), spoils, pairs, denies]
    with subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        try:
            yield Proxy(S3(f"http://127.0.0.1:{port}", s3.log), log)
        finally:
            process.kill()


async def serve(
    target: str, log: Path, share: float, seed: int, spoils: str, pairs: str, denies: str
) -> None:
    """Say the port, and serve for ever."""
    import aiohttp
    from aiohttp import web
    from yarl import URL

    logging.getLogger("aiohttp.server").disabled = True  # it minds answers that are cut short
    lottery = random.Random(seed)
    seen: set[tuple[str, str]] = set()
    lines = log.open("a", buffering=1)
    put: set[str] = set()
    another = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        fault = lottery.choice(FAULTS) if lottery.random() < share else "none"
        first = (request.method, request.path) not in seen
        seen.add((request.method, request.path))
        if first and spoils and spoils in request.path and request.method in ("GET", "PUT"):
            fault = "cut" if request.method == "GET" else FAULTS[-1 - len(seen) % 2]
        lines.write(f"{fault}\n")
        status, _, denied = denies.partition(" ")
        if denied and denied in unquote(request.raw_path):
            code = "NotImplemented" if status == "501" else "AccessDenied"
            return web.Response(status=int(status), text=ERROR.format(code))
        if fault == "slow":
            await asyncio.sleep(SLOW_S)
        if request.method == "PUT" and pairs and pairs in request.path:
            await second(request.path)
        content = await request.read()
        if fault in ("500", "503"):
            code = "InternalError" if fault == "500" else "SlowDown"
            return web.Response(status=int(fault), text=ERROR.format(code))
        if fault == "reset":
            return _gone(request)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("host", "transfer-encoding", "connection", "expect")
        }
        url = URL(f"{target}{request.raw_path}", encoded=True)
        async with session.request(
            request.method, url, headers=headers, data=content, allow_redirects=False
        ) as real:
            body = await real.read()
            if fault == "lost":
                return _gone(request)
            if fault == "lost-500":
                return web.Response(status=500, text=ERROR.format("InternalError"))
            response = web.StreamResponse(status=real.status)
            for name, value in real.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    response.headers.add(name, value)
            length = real.headers.get("Content-Length") if request.method == "HEAD" else len(body)
            response.content_length = int(length or 0)
            await response.prepare(request)
            if request.method != "HEAD":
                await response.write(body[: len(body) // 2] if fault == "cut" else body)
            if fault == "cut":
                return _gone(request, response)
            return response

    async def second(key: str) -> None:
        put.add(key)
        if len(put) > 1:
            another.set()
            return
        try:
            await asyncio.wait_for(another.wait(), PAIRED_WITHIN_S)
            lines.write("paired\n")
        except TimeoutError:
            lines.write("alone\n")

    def _gone(request: web.Request, response: web.StreamResponse | None = None) -> Any:
        if request.transport:
            request.transport.abort()
        return response or web.Response()

    async with aiohttp.ClientSession(auto_decompress=False) as session:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    target, log, share, seed, *keys = sys.argv[1:]
    asyncio.run(serve(target, Path(log), float(share), int(seed), *keys))
