"""Weights files: read a state dict without running code, and check it against its recorded hash."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from transferkit.core.documents import parse_json
from transferkit.core.errors import BackboneError
from transferkit.core.files import sha256_of_file, storage_errors
from transferkit.core.text import first_line

__all__ = ["HEAD_NAMES", "read_state_dict", "unwrapped_names"]

# Where trainers put the state dict inside a checkpoint, in the order tried. Averaged weights come last: they are
# used when they are all there is.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
# Names put in front by DataParallel, torch.compile and Lightning modules.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
# First name parts under which models keep what is not the backbone.
HEAD_NAMES = frozenset({"aux_classifier", "classifier", "criterion", "fc", "head", "head_dist", "heads", "loss"})
_REFETCH = "delete it and fetch it again"
# Globals of ordinary tensors, left out when a refusal lists what a pickle imports.
_PLAIN_GLOBAL = re.compile(r"collections\.OrderedDict|torch\.\w+Storage|torch\._utils\._rebuild_(tensor_v2|parameter)")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors or PyTorch file and return its state dict, on the CPU, in the stored dtypes.

    The format follows from the content, never from the name. PyTorch files are read with ``weights_only=True``;
    a pickle that asks for anything else is refused and nothing in it is run. The checksums in such a file are
    verified. When ``FILE.sha256`` (the format of ``sha256sum``), or for ``NAME.safetensors`` a ``NAME.json`` with a key
    ``sha256``, lies beside the file, its content must have that hash: safetensors itself has no checksum.

    The usual checkpoint containers are opened, and the names that DataParallel, torch.compile and Lightning put in
    front (``module.``, ``_orig_mod.``, ``model.``, ``backbone.``) are taken off when every tensor outside a head
    carries them. Values that are not tensors are left out.

    Args:
        path: The file.

    Raises:
        BackboneError: The file is missing, empty, damaged, not a weights file, does not have the recorded hash,
            holds code, or holds no tensors.
        StorageError: The file cannot be read.
    """
    file = Path(path)
    with storage_errors("read weights file", file):
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise BackboneError(f"weights file {str(file)!r} {what} - expected a file; check the path")
        _verify_recorded_hash(file)
        content = _load(file)
    state = {name: value.detach() for name, value in _state_in(content, file).items() if isinstance(value, Tensor)}
    if not state:
        raise BackboneError(f"weights file {str(file)!r} holds no tensors - expected a state dict; pass another file")
    short = unwrapped_names(state)
    # Tensors that lost a wrapper win over a head that already has the name.
    return {short[name]: state[name] for name in sorted(state, key=lambda name: short[name] != name)}


def unwrapped_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to names without the wrappers that all tensors outside a head carry."""
    short = {name: name for name in names}
    while True:
        body = [name for name in short.values() if name.partition(".")[0] not in HEAD_NAMES]
        wrapper = next((w for w in _WRAPPERS if body and all(name.startswith(w) for name in body)), None)
        if wrapper is None:
            return short
        short = {name: value.removeprefix(wrapper) for name, value in short.items()}


def _verify_recorded_hash(file: Path) -> None:
    """Compare the file with the sha256 recorded beside it, where there is one."""
    sidecar, manifest = file.with_name(f"{file.name}.sha256"), file.with_suffix(".json")
    recorded: list[tuple[Path, str]] = []
    if sidecar.is_file():
        lines = [line.split(maxsplit=1) for line in sidecar.read_text("utf-8", "replace").splitlines() if line.strip()]
        named = [line[0] for line in lines if len(line) == 1 or Path(line[1].strip().lstrip("*")).name == file.name]
        recorded.append((sidecar, named[0] if named else ""))
    if file.suffix == ".safetensors" and manifest.is_file():
        try:
            values = parse_json(manifest.read_text("utf-8"))
        except ValueError:
            raise BackboneError(
                f"{str(manifest)!r} beside the weights is not JSON, so they cannot be verified - {_REFETCH}"
            ) from None
        if isinstance(values, dict) and "sha256" in values:
            recorded.append((manifest, str(values["sha256"])))
    if not recorded:
        return
    actual = sha256_of_file(file)
    for record, expected in recorded:
        if expected.lower() != actual:
            raise BackboneError(
                f"weights file {str(file)!r} has sha256 {actual[:16]}..., but {record.name!r} records "
                f"{expected[:16] + '...' if expected else 'none for it'} - the file was damaged or changed; {_REFETCH}"
            )


def _load(file: Path) -> object:
    """Read the file with the reader that its first bytes call for."""
    with file.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise BackboneError(f"weights file {str(file)!r} is empty - {_REFETCH}")
    if head[8:9] == b"{":  # first: the length before it can begin with any byte, a pickle's too
        try:
            return load_file(file)
        except SafetensorError as error:
            raise BackboneError(f"weights file {str(file)!r} is damaged or cut short ({error}) - {_REFETCH}") from error
    if head.startswith((b"PK\x03\x04", b"\x80")):  # torch's zip format; a bare pickle, as from torch before 1.6
        return _load_torch(file, zipped=head.startswith(b"PK"))
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, not the weights themselves - run `git lfs pull`"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = f"a web page, not weights - {_REFETCH}"
    else:
        what = f"neither safetensors nor a PyTorch file, or damaged - {_REFETCH}"
    raise BackboneError(f"weights file {str(file)!r} is {what}")


def _load_torch(file: Path, *, zipped: bool) -> object:
    """Read a PyTorch file without running anything in it."""
    try:
        if zipped:
            _verify_checksums(file)
        # Not by path: torch.load would go by a name that ends in .safetensors.
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, to torch's developers
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything: KeyError, struct.error, EOFError, ...
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a damaged zip's offsets
            raise
        foreign = _foreign_globals(file, zipped=zipped)
        if foreign and not isinstance(error, zipfile.BadZipFile):
            names = ", ".join(map(repr, foreign[:5])) + (", ..." if len(foreign) > 5 else "")
            raise BackboneError(
                f"weights file {str(file)!r} is a pickle that asks for more than tensors: {names} - it was refused and "
                "nothing in it was run; save the state dict alone, best as safetensors"
            ) from error
        raise BackboneError(
            f"weights file {str(file)!r} is damaged, cut short or not a checkpoint ({first_line(error)}) - {_REFETCH}"
        ) from error


def _verify_checksums(file: Path) -> None:
    """Compare the parts of a zip with their CRC-32, which torch writes and does not read. Raises `BadZipFile`."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.CRC:  # 0 in all parts: written after `torch.serialization.set_crc32_options(False)`
                with archive.open(entry) as part:
                    while part.read(1 << 20):
                        pass


def _foreign_globals(file: Path, *, zipped: bool) -> list[str]:
    """List what a PyTorch file's pickle would import beyond tensors, without running it.

    torch's own ``get_unsafe_globals_in_checkpoint`` reads neither bare pickles nor protocol 4.
    """
    names: list[str] = []
    with contextlib.suppress(Exception):  # a damaged file raises nearly anything; what was read until then stands
        with contextlib.ExitStack() as stack:
            if zipped:
                archive = stack.enter_context(zipfile.ZipFile(file))
                entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                raw = stack.enter_context(archive.open(entry))
            else:
                raw = stack.enter_context(file.open("rb"))
            stream = io.BytesIO(raw.read(1 << 26))
        for _ in range(1 if zipped else 5):  # a file of old torch is five pickles and then the numbers
            names += _globals_in(stream)
    return [name for name in dict.fromkeys(names) if not _PLAIN_GLOBAL.fullmatch(name)]


def _globals_in(stream: IO[bytes]) -> Iterator[str]:
    """Yield the ``module.name`` of every global one pickle asks for, as far as it can be read."""
    strings: list[str] = []  # strings pushed so far; STACK_GLOBAL takes the last two
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else ""
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            strings.append(memo.get(int(str(argument)), ""))
        elif isinstance(argument, str):
            strings.append(argument)


def _state_in(content: object, file: Path) -> Mapping[str, object]:
    """Open the usual checkpoint containers around a state dict."""
    for _ in range(3):  # as deep as containers are nested; a crafted file may even contain itself
        if isinstance(content, Mapping):
            current = content
            content = next((current[key] for key in _CONTAINERS if isinstance(current.get(key), Mapping)), current)
    if isinstance(content, Mapping) and all(isinstance(key, str) for key in content):
        if any(isinstance(value, Tensor) for value in content.values()):
            return content
        networks = {
            f"{key}.{name}": value
            for key, network in content.items() if isinstance(network, Mapping)
            for name, value in network.items() if isinstance(value, Tensor)
        }  # fmt: skip
        if networks:  # several, such as student and teacher: which one fits is seen when they are loaded
            return networks
        what = "a mapping without tensors" + (f" (keys: {', '.join(map(repr, list(content)[:5]))})" if content else "")
    else:
        what = f"a {type(content).__name__}"
    raise BackboneError(
        f"weights file {str(file)!r} holds {what} - expected a state dict, alone or under one of "
        f"{', '.join(map(repr, _CONTAINERS))}"
    )
