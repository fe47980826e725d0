"""Weights and configurations from a model hub, by huggingface_hub and its cache, verified before use."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

# huggingface_hub reads this at import; without it, every process that fetches asks one address more.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.file_download import HfFileMetadata

from transferkit.core.documents import parse_json
from transferkit.core.errors import BackboneError, StorageError, TransferkitWarning
from transferkit.core.files import sha256_of_file, storage_errors
from transferkit.core.logs import quiet_loggers
from transferkit.models.weights.downloads import (
    OFFLINE_SWITCHES,
    WAY_OUT,
    WeightsFile,
    check_room,
    offline,
    public_address,
    without_token,
)

__all__ = ["fetch_from_hub", "hub_config"]

_DEFAULT_ENDPOINT = "https://huggingface.co"
_CONTACT_TIMEOUT_S = 5.0  # to reach the hub; the error must come within seconds
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    filenames: Sequence[str] = ("model.safetensors", "pytorch_model.bin"),
) -> WeightsFile:
    """Return the first of `filenames` that a hub repository has, from huggingface_hub's cache or downloaded into it.

    The hub is asked which version is current; the file is downloaded only when that version is not in the cache.
    When the hub cannot be asked, a cached version is used and a `TransferkitWarning` says so. Offline, or for a cached
    full commit, nothing is asked. Large files are named by their sha256 in the cache and must have that hash, fresh or
    cached.

    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_TOKEN`` and the offline switches count as they are when this
    is called.

    Args:
        repo_id: ``"owner/name"``.
        revision: Branch, tag or commit; ``None`` is the main branch.
        filenames: Names to look for, the preferred first.

    Raises:
        BackboneError: The repository or file does not exist or may not be read, the hub cannot be reached and
            nothing is cached, the download broke off, or the content does not have its hash.
        StorageError: The cache cannot be written or has no room.
    """
    what = f"{' or '.join(map(repr, filenames))} of {repo_id!r}"
    cached = _first_cached(repo_id, filenames, revision)
    if cached is not None and (offline() or _COMMIT.fullmatch(revision or "")):
        return _verified(repo_id, *cached)
    if offline():
        raise BackboneError(
            f"{what} is not in the cache {str(_hub_cache())!r}, and offline mode is on "
            f"({' or '.join(OFFLINE_SWITCHES)}) - {WAY_OUT}"
        )
    try:
        for filename in filenames:
            metadata = _ask_hub(repo_id, filename, revision)
            if metadata is not None:
                return _current(repo_id, filename, revision, metadata)
    except _HubRefusal as refusal:
        if cached is None:
            raise BackboneError(f"cannot fetch {what}: {refusal}") from refusal
        warnings.warn(TransferkitWarning(f"using the cached {cached[0]!r} of {repo_id!r}: {refusal}"), stacklevel=2)
        return _verified(repo_id, *cached)
    raise BackboneError(
        f"there is no {what} at revision {revision or 'main'!r} on {public_address(_endpoint())} - check the id, or "
        "pass --weights FILE"
    )


def hub_config(repo_id: str) -> dict[str, object]:
    """Return ``config.json`` of a hub repository; timm's holds ``architecture``, ``num_classes``, ``pretrained_cfg``.

    Fetched, cached and refused like weights: see `fetch_from_hub`.

    Raises:
        BackboneError: As for weights, or the file is not a JSON object.
        StorageError: The cache cannot be written or read.
    """
    file = fetch_from_hub(repo_id, filenames=("config.json",))
    with storage_errors("read", file.path):
        text = file.path.read_bytes()
    try:
        config = parse_json(text)
    except ValueError:  # ValueError: also wrong UTF-8
        config = None
    if not isinstance(config, dict):
        raise BackboneError(
            f"config.json of {repo_id!r} is not a JSON object - delete {str(file.path.resolve())!r} and run again"
        )
    return config


class _HubRefusal(Exception):
    """The hub could not be asked, or said no. The message is the second half of an error."""


def _ask_hub(repo_id: str, filename: str, revision: str | None) -> HfFileMetadata | None:
    """Ask once for a file's commit, hash and size; ``None`` when the repository has no such file.

    `hf_hub_download` asks too, but when nothing is cached it tries for minutes before it gives up.
    """
    try:
        with _quiet():
            url = hf_hub_url(repo_id, filename, revision=revision, endpoint=_endpoint())
            metadata = get_hf_file_metadata(url, timeout=_CONTACT_TIMEOUT_S)
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise BackboneError(f"{repo_id!r} is not a hub id: {without_token(error)} - expected 'owner/name'") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 404 and error.response.headers.get("X-Error-Code") is None:  # a plain mirror
            return None
        raise _HubRefusal(_meaning(status, revision)) from error
    except Exception as error:  # requests' or httpx's own, by huggingface_hub's version
        raise _HubRefusal(f"cannot reach {public_address(_endpoint())} ({without_token(error)}) - {WAY_OUT}") from error
    if metadata.commit_hash is None or metadata.etag is None:
        raise _HubRefusal(
            f"{public_address(_endpoint())} does not answer like a model hub - check HF_ENDPOINT and the proxy"
        )
    return metadata


def _current(repo_id: str, filename: str, revision: str | None, metadata: HfFileMetadata) -> WeightsFile:
    """Return the version the hub named, downloading it when it is not in the cache."""
    cache = _hub_cache()
    present = _cached(repo_id, filename, metadata.commit_hash)
    if present is not None and present == _cached(repo_id, filename, revision):
        return _verified(repo_id, filename, present)
    if present is None:
        check_room(cache, metadata.size)
    what = f"{filename!r} of {repo_id!r}"
    try:
        with _quiet():
            path = hf_hub_download(
                repo_id,
                filename,
                revision=revision,
                cache_dir=cache,
                endpoint=_endpoint(),
                etag_timeout=_CONTACT_TIMEOUT_S,
            )
    except HfHubHTTPError as error:
        raise BackboneError(f"cannot fetch {what}: {_meaning(error.response.status_code, revision)}") from error
    except Exception as error:  # requests', httpx's or hf_xet's own
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            raise StorageError(
                f"cannot write {what} to the cache {str(cache)!r}: {error.strerror} - make it writable, free "
                f"{metadata.size or 'enough'} bytes, or set HF_HOME to another folder"
            ) from error
        raise BackboneError(f"the download of {what} broke off ({without_token(error)}) - run again") from error
    return _verified(repo_id, filename, Path(path), fresh=present is None, etag=metadata.etag)


def _verified(repo_id: str, filename: str, path: Path, *, fresh: bool = False, etag: str | None = None) -> WeightsFile:
    """Hash a cached file and compare with the hash that names it. A fresh file that differs is removed."""
    with storage_errors("read", path):
        digest = sha256_of_file(path)
        if path.is_symlink():
            # snapshots/COMMIT/FILE -> blobs/ETAG. One step only: the blob may itself link to a store shared between
            # repositories, where names are another hash.
            etag = path.readlink().name
        if etag is not None and _SHA256.fullmatch(etag) and etag != digest:
            if fresh:
                blob = path.resolve()
                path.unlink(missing_ok=True)
                blob.unlink(missing_ok=True)
                way_out = "the download was removed; run again"
            else:
                way_out = f"delete {str(path.resolve())!r} and run again"
            raise BackboneError(
                f"{filename!r} of {repo_id!r} is damaged: its sha256 is {digest[:16]}..., expected {etag[:16]}... - "
                f"{way_out}"
            )
    commit = path.parents[len(PurePosixPath(filename).parts) - 1].name
    return WeightsFile(path, f"hf-hub:{repo_id}@{commit}/{filename}", digest)


def _first_cached(repo_id: str, filenames: Sequence[str], revision: str | None) -> tuple[str, Path] | None:
    for filename in filenames:
        path = _cached(repo_id, filename, revision)
        if path is not None:
            return filename, path
    return None


def _cached(repo_id: str, filename: str, revision: str | None) -> Path | None:
    """Look into the cache only; never uses the network."""
    try:
        with storage_errors("read", _hub_cache()):
            path = try_to_load_from_cache(repo_id, filename, cache_dir=_hub_cache(), revision=revision)
    except HFValidationError as error:
        raise BackboneError(f"{repo_id!r} is not a hub id: {without_token(error)} - expected 'owner/name'") from error
    return Path(path) if isinstance(path, str) else None


def _hub_cache() -> Path:
    """Return huggingface_hub's cache folder as the environment says now; the library looks only at import."""
    environ = os.environ
    user = Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(environ.get("HF_HOME") or user) / "hub"
    chosen = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or hub
    return Path(os.path.expandvars(chosen)).expanduser()


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub's log lines off stderr: what went wrong is in the one line of our error."""
    with quiet_loggers(logging.CRITICAL, "huggingface_hub"):
        yield


def _meaning(status: int, revision: str | None) -> str:
    """Return what an HTTP status of the hub means to the user, and what to do."""
    if status in (401, 403):
        return (
            f"the hub says {status}: no such repository, or a private or gated one - check the id; for a gated one "
            "accept its terms and set HF_TOKEN"
        )
    if status == 404:
        return f"the hub says 404: no such repository or revision ({revision or 'main'!r}) - check the id"
    return f"the hub says {status} - try again later, or pass --weights FILE"
