"""What stands between a socket and the service: who may ask, how much, how many at once, how long, and what leaks out.

Plain ASGI, so that it also guards what the framework itself answers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

__all__ = ["Guards", "Limits", "allowed_hosts", "is_loopback"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

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

    @property
    def body_bytes(self) -> int:
        """Largest body of a request."""
        return self.picture_bytes + MULTIPART_OVERHEAD


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


class _Refused(Exception):
    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Guards:
    """ASGI middleware around the whole service.

    Refuses names and origins that are not ours, bodies that are too large or too slow, and more requests than it may
    have under way; adds the security headers; and turns an unforeseen exception into an identifier, whose traceback is
    logged here and told to nobody.

    Args:
        app: What is guarded.
        limits: How much is allowed.
        hosts: Names the server may be called by; ``None`` for any.
        told: Called with a line for every request.
    """

    def __init__(
        self, app: App, *, limits: Limits, hosts: frozenset[str] | None, told: Callable[[str], None] | None = None
    ) -> None:
        self.app = app
        self.limits = limits
        self.hosts = hosts
        self.told = told
        self.under_way = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        answer = _Answer(send)
        try:
            async with asyncio.timeout(self.limits.answer_s):
                await self._checked(scope, receive, answer)
        except _Refused as refusal:
            await answer.refuse(refusal.status, str(refusal), refusal.headers)
        except TimeoutError:
            await answer.refuse(504, f"no answer within {self.limits.answer_s:g} s - try again later")
        except Exception:  # a bug of ours: the traceback stays here
            identifier = secrets.token_hex(6)
            logging.getLogger("transferkit.serve").exception("request %s failed", identifier)
            await answer.refuse(500, "internal error; the server's log has it under this id", id=identifier)
        if self.told is not None:
            path = ascii(scope["path"])[1:-1][:80]  # escaped: a terminal must not obey a stranger's path
            self.told(f"{scope['method']} {path} {answer.status} {(time.perf_counter() - started) * 1e3:.0f} ms")

    async def _checked(self, scope: MutableMapping[str, Any], receive: Receive, answer: _Answer) -> None:
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._check_host(_values(headers, b"host"))
        if scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, answer.send)
            return
        _check_origin(headers)
        self._check_length(_values(headers, b"content-length"))
        if self.under_way >= self.limits.requests:
            raise _Refused(503, f"{self.under_way} requests are under way, try again in a second", retry_after="1")
        self.under_way += 1
        try:
            await self.app(scope, self._limited(receive), answer.send)
        finally:
            self.under_way -= 1

    def _check_host(self, hosts: Sequence[str]) -> None:
        if len(hosts) != 1:
            raise _Refused(400, f"{len(hosts)} Host headers, expected one")
        if self.hosts is not None and _host_name(hosts[0]) not in self.hosts:
            raise _Refused(400, "this server is not called by that name - use http://127.0.0.1 or http://localhost")

    def _check_length(self, lengths: Sequence[str]) -> None:
        if lengths and lengths[0].isdecimal() and int(lengths[0]) > self.limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the picture is larger than the limit of {self.limits.picture_bytes / 1e6:g} MB")

    def _limited(self, receive: Receive) -> Receive:
        """Count the bytes of a body, and its time, as it arrives: a client need not say, or may lie about, its size."""
        received = 0
        deadline = asyncio.get_running_loop().time() + self.limits.body_s
        complete = False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise _Refused(
                    408, f"the picture did not arrive within {self.limits.body_s:g} s", connection="close"
                ) from None
            if message["type"] == "http.disconnect":
                raise _Refused(499, "the client left")  # nobody hears it; as nginx has it in its log
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.limits.body_bytes:
                raise self._too_large()
            return message

        return limited


class _Answer:
    """Sends one response, with the headers every response has, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name.lower() for name, _ in message.get("headers", ())}
            added = [(key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in present]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await self._send(message)

    async def refuse(self, status: int, error: str, headers: Mapping[str, str] | None = None, **facts: str) -> None:
        if self.status:  # too late to say anything: cut the connection, so that nobody takes a part for the whole
            raise ConnectionAbortedError("the response had already begun")
        body = json.dumps({"error": error, **facts}).encode()
        every = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        encoded = [(name.encode(), value.encode()) for name, value in every.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})


def _check_origin(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse what a page of someone else sends; clients that are no browsers send neither header."""
    site = _values(headers, b"sec-fetch-site")
    host = _values(headers, b"host")[0].lower()
    foreign = any(origin.lower().partition("://")[2] != host for origin in _values(headers, b"origin"))
    if foreign or any(value not in ("same-origin", "none") for value in site):
        raise _Refused(403, "pages of other origins may not use this server")


def _values(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def _host_name(value: str) -> str | None:
    """Return the name of a Host header without its port, in lower case; ``None`` when it is none."""
    if "@" in value or "/" in value:
        return None
    try:
        return urlsplit(f"//{value}").hostname
    except ValueError:  # brackets that do not match
        return None
