"""What stands between a socket and the service: who may ask, how much, how many at once, how long, and what leaks out.

One ASGI middleware, so that it also guards what the framework itself answers. Starlette has none for the size and time
of a body, for foreign origins or for requests under way; its `TrustedHostMiddleware` knows `[::1]` only in recent
releases, and does not say by which name the server may be called.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guards", "Limits", "allowed_hosts", "is_loopback"]

MULTIPART_OVERHEAD: Final = 16_384
"""What a form may add to the picture it carries, in bytes."""

# Pages bring a policy of their own, with the digests of their script and style.
HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one client, and all of them together, may ask.

    Attributes:
        picture_bytes: Largest picture.
        requests: POST requests under way at once.
        body_s: Longest time for a request's body to arrive, in seconds.
        answer_s: Longest time for a whole request, in seconds.
    """

    picture_bytes: int
    requests: int
    body_s: float = 30.0
    answer_s: float = 120.0

    def too_large(self) -> HTTPException:
        """Return the answer to a picture that is larger than the limit."""
        return HTTPException(413, f"the picture is larger than the limit of {self.picture_bytes / 1e6:g} MB")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def allowed_hosts(host: str) -> frozenset[str] | None:
    """Return the names a request may call the server by when it listens on `host`; ``None`` for any.

    A page of a stranger can have its own name resolve to 127.0.0.1 (DNS rebinding), but cannot make a browser send
    another Host header than that name.
    """
    return frozenset({"localhost", "127.0.0.1", "::1", host.strip("[]").lower()}) if is_loopback(host) else None


class Guards:
    """ASGI middleware around the whole service.

    Refuses names and origins that are not ours, bodies that are too large or too slow, and more requests than it may
    have under way; adds the security headers; and turns an unforeseen exception into an identifier, whose traceback is
    logged here and told to nobody.

    Args:
        app: What is guarded.
        limits: How much is allowed.
        hosts: Names the server may be called by; ``None`` for any.
        log: Called with a line for every request.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, hosts: frozenset[str] | None, log: Callable[[str], None] | None = None
    ) -> None:
        self.app = app
        self.limits = limits
        self.hosts = hosts
        self.log = log
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0
        problem: HTTPException | None = None
        facts: dict[str, str] = {}

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in HEADERS.items():
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        try:
            async with asyncio.timeout(self.limits.answer_s):
                await self._admit(scope, receive, answer)
        except HTTPException as error:
            problem = error
        except TimeoutError:
            problem = HTTPException(504, f"no answer within {self.limits.answer_s:g} s - try again later")
        except Exception:  # a bug of ours: the traceback stays here
            facts["id"] = secrets.token_hex(6)
            logging.getLogger("transferkit.serve").exception("request %s failed", facts["id"])
            problem = HTTPException(500, "internal error; the server's log has it under this id")
        if problem is not None:
            if status:  # too late to say anything: cut the connection, so that nobody takes a part for the whole
                raise ConnectionAbortedError("the response had already begun")
            said = JSONResponse({"error": problem.detail, **facts}, problem.status_code, problem.headers)
            await said(scope, receive, answer)
        if self.log is not None:
            path = ascii(scope["path"])[1:-1][:80]  # escaped: a terminal must not obey a stranger's path
            self.log(f"{scope['method']} {path} {status} {(time.perf_counter() - started) * 1e3:.0f} ms")

    async def _admit(self, scope: Scope, receive: Receive, answer: Send) -> None:
        """Have a request answered by the service.

        Raises:
            HTTPException: It is refused.
        """
        headers = Headers(scope=scope)
        self._check_host(headers)
        if scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, answer)
            return
        _check_origin(headers)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.picture_bytes + MULTIPART_OVERHEAD:
            raise self.limits.too_large()
        if self.under_way >= self.limits.requests:
            message = f"{self.under_way} requests are under way, try again in a second"
            raise HTTPException(503, message, {"retry-after": "1"})
        self.under_way += 1
        try:
            await self.app(scope, self._limited(receive), answer)
        finally:
            self.under_way -= 1

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            raise HTTPException(400, f"{len(hosts)} Host headers, expected one")
        if self.hosts is not None and _host_name(hosts[0]) not in self.hosts:
            raise HTTPException(
                400, "this server is not called by that name - use http://127.0.0.1 or http://localhost"
            )

    def _limited(self, receive: Receive) -> Receive:
        """Count the bytes of a body, and its time, as it arrives: a client need not say, or may lie about, its size."""
        limits = self.limits
        deadline = asyncio.get_running_loop().time() + limits.body_s
        received, complete = 0, False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                slow = f"the picture did not arrive within {limits.body_s:g} s"
                raise HTTPException(408, slow, {"connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise HTTPException(499, "the client left")  # nobody hears it; as nginx has it in its log
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limits.picture_bytes + MULTIPART_OVERHEAD:
                raise limits.too_large()
            return message

        return limited


def _check_origin(headers: Headers) -> None:
    """Refuse what a page of someone else sends; clients that are no browsers send neither header."""
    host = headers["host"].lower()
    foreign = any(origin.lower().partition("://")[2] != host for origin in headers.getlist("origin"))
    if foreign or any(site not in ("same-origin", "none") for site in headers.getlist("sec-fetch-site")):
        raise HTTPException(403, "pages of other origins may not use this server")


def _host_name(value: str) -> str | None:
    """Return the name of a Host header without its port, in lower case; ``None`` when it is none."""
    if "@" in value or "/" in value:
        return None
    try:
        return urlsplit(f"//{value}").hostname
    except ValueError:  # brackets that do not match
        return None
