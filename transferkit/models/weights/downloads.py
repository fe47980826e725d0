"""Downloads from plain addresses into torch.hub's cache, verified before use; and what all fetching has in common."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.progress import Progress

from transferkit.core.errors import BackboneError, StorageError
from transferkit.core.files import sha256_of_file, storage_errors, write_atomically
from transferkit.core.locks import nearest_existing
from transferkit.core.text import first_line

__all__ = [
    "OFFLINE_SWITCHES",
    "WAY_OUT",
    "WeightsFile",
    "check_room",
    "fetch_url",
    "offline",
    "public_address",
    "without_token",
]

OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFERKIT_OFFLINE")
WAY_OUT = "connect and run again, or pass --weights FILE"
_TIMEOUT_S = 10.0  # to connect, and without a byte afterwards
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WeightsFile:
    """A file in a local cache.

    Attributes:
        path: Where it lies. Read it, never write to it: caches are shared.
        source: Where it came from: ``hf-hub:REPO@COMMIT/FILE``, or an address without credentials and query.
        sha256: Hex digest of the content, computed now.
    """

    path: Path
    source: str
    sha256: str


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` or ``TRANSFERKIT_OFFLINE`` is on now; huggingface_hub looks at import only."""
    return any(os.environ.get(name, "").strip().upper() in {"1", "ON", "TRUE", "YES"} for name in OFFLINE_SWITCHES)


def fetch_url(url: str) -> WeightsFile:
    """Return the file at a plain address, from torch.hub's cache folder or downloaded into it.

    The file appears in ``$TORCH_HOME/hub/checkpoints`` only when it is complete (as long as the server announced)
    and has the hash in its name, by torch.hub's convention (``resnet18-f37072fd.pth``), which timm and torchvision
    follow. A cached file of that name is used without asking the server, after its hash was checked.

    Args:
        url: ``http`` or ``https``.

    Raises:
        BackboneError: The address is not usable or cannot be reached, the download broke off, or the content does
            not have the hash.
        StorageError: The cache cannot be written or has no room.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        usable = usable and parts.port != 0  # reading the port checks it
    except ValueError:
        usable = False
    if not usable:  # not quoted: it may hold a password
        raise BackboneError(
            "cannot fetch weights: their address is not usable - expected http://... or https://... without user name"
        )
    name = PurePosixPath(unquote(parts.path)).name
    if Path(name).name != name or name in ("", ".."):
        raise BackboneError(f"cannot store weights as {name!r} - expected a file name without folders")
    source, named = public_address(url), re.search(r"-([0-9a-f]{8,64})\.[^./]*$", parts.path)
    prefix = named[1] if named else ""
    target = _torch_cache() / name
    with storage_errors("read", target):
        digest = sha256_of_file(target) if target.is_file() else None
    if digest is not None:
        _check_prefix(digest, prefix, source, f"delete {str(target)!r} and run again")
        return WeightsFile(target, source, digest)
    if offline():
        raise BackboneError(
            f"{name!r} is not in the cache {str(target.parent)!r}, and offline mode is on "
            f"({' or '.join(OFFLINE_SWITCHES)}) - {WAY_OUT}"
        )
    with storage_errors("create", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    hasher = hashlib.sha256()

    def download(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            for chunk in _body(url, target.parent, name):
                hasher.update(chunk)
                stream.write(chunk)
        _check_prefix(hasher.hexdigest(), prefix, source, "the download was removed; run again")

    write_atomically(target, download)
    return WeightsFile(target, source, hasher.hexdigest())


def _body(url: str, folder: Path, name: str) -> Iterator[bytes]:
    """Yield the content at `url` in pieces, with a progress bar on a terminal."""
    source = public_address(url)
    request = urllib.request.Request(url, headers={"User-Agent": "transferkit", "Accept-Encoding": "identity"})
    received = 0
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            announced = response.headers.get("Content-Length")
            size = int(announced) if announced and announced.isdigit() else None
            check_room(folder, size)
            with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
                task = progress.add_task(name, total=size)
                while chunk := response.read(_CHUNK):
                    received += len(chunk)
                    progress.advance(task, len(chunk))
                    yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        raise BackboneError(f"cannot fetch {source}: the server says {error.code} - {WAY_OUT}") from error
    except (OSError, http.client.HTTPException) as error:
        what = f"the download of {source} broke off after {received} bytes" if received else f"cannot reach {source}"
        raise BackboneError(f"{what} ({without_token(error)}) - {WAY_OUT}") from error
    if size is not None and received != size:
        raise BackboneError(f"the download of {source} broke off: {received} of {size} bytes came - run again")


def _check_prefix(digest: str, prefix: str, source: str, way_out: str) -> None:
    if not digest.startswith(prefix):
        raise BackboneError(
            f"weights from {source} are damaged: their sha256 is {digest[: max(len(prefix), 8)]}..., expected "
            f"{prefix}... - {way_out}"
        )


def _torch_cache() -> Path:
    """Return the folder torch.hub downloads to, as the environment says now."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def check_room(folder: Path, size: int | None) -> None:
    """Raise `StorageError` when `folder`, or the nearest parent that exists, has less than `size` bytes free."""
    if size is None:
        return
    with storage_errors("read", folder):
        free = shutil.disk_usage(nearest_existing(folder)).free
    if free < size:
        raise StorageError(
            f"the download needs {size} bytes and the cache {str(folder)!r} has {free} free - free space, or set "
            "HF_HOME (TORCH_HOME for plain addresses) to a folder on another disk"
        )


def public_address(url: str) -> str:
    """Return an address without user name, password, query and fragment: these may hold secrets."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def without_token(error: BaseException) -> str:
    """Return the kind and the first line of an error, without the access token that it may hold."""
    return re.sub(r"Bearer .*", "Bearer ***", first_line(error))
