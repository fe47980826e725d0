"""The `serve` verb: loads a run, opens a port, answers until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transferkit.core.errors import ConfigError, TransferkitError, TransferkitWarning
from transferkit.machine.cores import available_cores
from transferkit.options.results import ServeConfig
from transferkit.results.serve.guards import Limits, allowed_hosts, is_loopback
from transferkit.show.progress import counting_bar, output_console, progress_console

if TYPE_CHECKING:
    from uvicorn import Server

    from transferkit.results.explain.neighbours import TrainingNeighbours
    from transferkit.results.predict.predictor import Predictor

__all__ = ["make_server", "open_port", "serve"]

NEEDED: Final = ("fastapi", "uvicorn", "python_multipart")
SILENT_S: Final = 10.0
"""A connection on which no request begins for so long is closed."""
DRAIN_S: Final = 10
"""How long requests under way may take to end once the server is told to stop."""


def serve(config: ServeConfig) -> None:
    """Serve a run over HTTP until SIGINT or SIGTERM; requests under way are answered first.

    Args:
        config: The options.

    Raises:
        ConfigError: The `serve` extra is missing, or the address cannot be had.
        CheckpointError: The run is missing or damaged.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}, not installed - pip install 'transferkit[serve]'")
    from transferkit.results.predict.predictor import load
    from transferkit.results.serve.answering import Answerer
    from transferkit.results.serve.service import build_app

    console = output_console()
    with open_port(config.host, config.port) as listener:  # before the model: a taken port is told at once
        host, port = listener.getsockname()[:2]
        predictor = load(
            config.run, accelerator=config.accelerator, precision=config.precision, max_pixels=config.max_pixels
        )
        if config.top_k is not None and not predictor.module.task.output.names_one:
            raise ConfigError("--top-k is for models of one class per picture, not this one - leave it out")
        neighbours = _neighbours(config, predictor) if config.neighbours else None
        answerer = Answerer(
            predictor,
            name=Path(config.run).resolve().name,
            batch_size=config.batch_size or 32,
            wait_s=config.wait_ms / 1e3,
            threads=config.workers or available_cores(),
            neighbours=neighbours,
            count=config.neighbours,
        )
        app = build_app(
            answerer,
            limits=Limits(picture_bytes=int(config.max_upload_mb * 1e6), requests=config.max_requests),
            hosts=allowed_hosts(host),
            top_k=config.top_k,
            log=None if config.quiet else partial(print, file=sys.stderr, flush=True),
        )
        if not is_loopback(host):
            shown = ", and see training pictures (--neighbours 0 shows none)" if neighbours is not None else ""
            warnings.warn(
                f"--host {host} is open to the network: whoever reaches it can use the model{shown}",
                TransferkitWarning,
                stacklevel=2,
            )
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = make_server(
            app, lambda: console.print(f"serving  {answerer.name} at {url}   (Ctrl-C ends it)", soft_wrap=True)
        )
        server.run(sockets=[listener])
    console.print("stopped")


def open_port(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, not listening yet.

    Args:
        host: Name or address.
        port: 0 for a free one.

    Raises:
        ConfigError: The port is taken or not ours to take, or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host!r} is no address of this machine ({error}) - try 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host} is no address of this machine - try 127.0.0.1") from error
        raise ConfigError(f"--port {port} of {host}: {reason} - choose another, or 0 for a free one") from error
    return listener


def _neighbours(config: ServeConfig, predictor: Predictor) -> TrainingNeighbours | None:
    """Prepare the training pictures; a server is of use without them."""
    from transferkit.results.explain.neighbours import TrainingNeighbours

    try:
        with counting_bar(progress_console(config.quiet), "training pictures") as progress:
            return TrainingNeighbours(
                config.run, predictor, store=config.store, rescan=config.rescan, progress=progress
            )
    except TransferkitError as error:
        warnings.warn(f"no nearest training pictures: {error}", TransferkitWarning, stacklevel=3)
        return None


def make_server(app: Any, started: Any) -> Server:
    """Return uvicorn with other manners: it says when it listens, a signal is a normal end, silence has one."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes connections on which nothing is asked; uvicorn itself would keep them for ever."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._last = self.cycle
            self._watch = self.loop.call_later(SILENT_S, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.cycle is self._last:  # no request began since the last look
                self.transport.close()
                return
            self._last = self.cycle
            self._watch = self.loop.call_later(SILENT_S, self._look)

    class Quiet(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Stop on a signal, and return instead of raising it again."""
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Quiet(
        uvicorn.Config(
            app, http=Protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=DRAIN_S,
        )
    )  # fmt: skip
