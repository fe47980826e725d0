"""The pictures that a command line means: files, folders, globs and a list on standard input, as they are needed."""

from __future__ import annotations

import fnmatch
import glob
import io
import os
import stat
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from transferkit.core.errors import DataError, TransferkitWarning
from transferkit.core.text import listing, name_text
from transferkit.data.scan.formats import TEXTS, read_extensions, unread_text
from transferkit.data.scan.records import split_named
from transferkit.data.scan.walking import SYSTEM_NAMES

__all__ = [
    "STDIN",
    "class_folders",
    "count_pictures",
    "find_named_pictures",
    "find_pictures",
    "warn_of_unread",
]

STDIN: Final = "-"

ANY_DEPTH: Final = "**"


class _Entry(NamedTuple):
    name: str
    is_folder: bool


@dataclass(frozen=True, slots=True)
class _Walk:
    """A walk through folders.

    Attributes:
        entered: Device and inode of every folder that it has been in.
        unread: Endings of the files that it passed by, with their numbers.
    """

    entered: set[tuple[int, int]] = field(default_factory=set)
    unread: Counter[str] = field(default_factory=Counter)


def find_pictures(
    paths: Iterable[str], stdin: TextIO | None = None, unread: Counter[str] | None = None
) -> Iterator[str]:
    """Yield the files that `paths` stand for, in the order of `paths`.

    - A file is taken whatever its name.
    - A folder stands for the files in it and below whose names end like those of pictures, depth first, each folder in
      the order of names. Hidden and system files are left out. Links are followed, and no folder is entered twice. A
      folder that cannot be listed is yielded itself, so that it is reported and not passed over.
    - A glob (``*``, ``?``, ``[...]``, ``**`` for any number of folders), where there is no file of that name, stands
      for the picture files it matches and, without ``**``, for the folders it matches. Hidden files are left out here
      too.
    - ``-`` stands for the lines of `stdin`, a file each.

    Args:
        paths: What the user wrote. All are looked at before the first file is yielded.
        stdin: Where ``-`` reads; decoded as file names are, where it is a stream of bytes underneath.
        unread: Gets the endings of the files in folders that are not taken for pictures, with their numbers.

    Raises:
        DataError: A path does not exist, or a glob matches nothing: at once, and all of them in one message. There is
            no picture at all: when the first is asked for.
    """
    return (path for path, _ in find_named_pictures(paths, stdin, unread))


def find_named_pictures(
    paths: Iterable[str], stdin: TextIO | None = None, unread: Counter[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield what `find_pictures` yields, each file with its path below the folder that named it.

    A file that was named itself, or by a line of `stdin`, has its own name; what a glob names is below the last folder
    before its first wildcard. Raises likewise.
    """
    listed = list(paths)
    missing = [path for path in listed if path != STDIN and not _exists(path)]
    if missing:
        globs = any(glob.has_magic(path) for path in missing)
        raise DataError(
            f"no such file or folder{', and no picture that matches' if globs else ''}: "
            f"{listing(missing, limit=len(missing))} - check the paths"
        )
    return _all_of(listed, stdin, Counter() if unread is None else unread)


def warn_of_unread(unread: Counter[str]) -> None:
    """Warn of files that were passed by for their endings, where there are any but lists and notes."""
    odd = {ending: count for ending, count in unread.items() if ending not in TEXTS}
    if odd:
        warnings.warn(unread_text(odd), TransferkitWarning, stacklevel=3)


def count_pictures(paths: Iterable[str], *, seconds: float = 1.0) -> int | None:
    """Return how many files `find_pictures` will yield, or ``None`` where it is not known or takes longer to find out.

    Args:
        paths: Each exists.
        seconds: The most to spend.
    """
    until = time.monotonic() + seconds
    count = 0
    for path in paths:
        if path == STDIN:
            return None
        for _ in _files_of(path, Counter()):
            count += 1
            if not count % 64 and time.monotonic() > until:
                return None
    return count


def class_folders(folder: str, class_names: Sequence[str]) -> frozenset[str]:
    """Return the names (NFC) of the class folders of a data set that hold pictures: directly inside, or in its splits.

    Args:
        folder: The data set.
        class_names: Of a model. Folders of exactly these names are classes, even where they are named like splits.
    """
    top = _holding_pictures(folder)
    splits = [name for name in top if split_named(name)]
    if splits and _nfc(top) != _nfc(class_names):
        train = next((name for name in splits if split_named(name) == "train"), None)
        below = [] if train is None else _entries(_join(folder, train)) or []
        nested = any(entry.is_folder for entry in below) and not any(map(_is_picture, below))
        if nested or len(splits) == len(top):
            return _nfc(name for split in splits for name in _holding_pictures(_join(folder, split)))
    return _nfc(top)


# ---- what a path stands for -------------------------------------------------------------------------------------


def _all_of(paths: Sequence[str], stdin: TextIO | None, unread: Counter[str]) -> Iterator[tuple[str, str]]:
    empty = True
    for path in paths:
        base = None if path == STDIN else _base_of(path)
        for file in _lines_of(stdin) if path == STDIN else _files_of(path, unread):
            empty = False
            yield file, Path(file).name if base is None else file[len(base) :].lstrip(os.sep)
    if empty:
        raise DataError(
            f"no pictures in {listing(paths, limit=len(paths))}{f' ({unread_text(unread)})' if unread else ''} - "
            f"expected files ending in {', '.join(read_extensions())}"
        )


def _exists(path: str) -> bool:
    return _kind(path) is not None or (glob.has_magic(path) and next(_matches(path, Counter()), None) is not None)


def _files_of(path: str, unread: Counter[str]) -> Iterator[str]:
    kind = _kind(path)
    if kind is None and glob.has_magic(path):
        return _matches(path, unread)
    return _below(path, _Walk(unread=unread)) if kind is not None and stat.S_ISDIR(kind) else iter((path,))


def _base_of(path: str) -> str | None:
    """Return how the files begin that a folder or a glob stands for; ``None`` of a file."""
    kind = _kind(path)
    if kind is None:
        return _parted(path)[0] if glob.has_magic(path) else None
    return path if stat.S_ISDIR(kind) else None


def _lines_of(stdin: TextIO | None) -> Iterator[str]:
    if stdin is None:
        return
    # File names are bytes, not text in the language of the terminal.
    lines: Iterable[str] = map(os.fsdecode, stdin.buffer) if isinstance(stdin, io.TextIOWrapper) else stdin
    for line in lines:
        path = line.rstrip("\n").removesuffix("\r")
        if path:
            yield path


def _below(folder: str, walk: _Walk) -> Iterator[str]:
    """Yield the pictures in a folder and below."""
    if not _enter(folder, walk):
        return
    entries = _entries(folder)
    if entries is None:
        yield folder
        return
    for entry in entries:
        if entry.is_folder:
            yield from _below(_join(folder, entry.name), walk)
        elif _is_picture(entry):
            yield _join(folder, entry.name)
        else:
            walk.unread[_ending(entry)] += 1


def _matches(pattern: str, unread: Counter[str]) -> Iterator[str]:
    """Yield what a glob stands for; every file once, however many ways there are to match it."""
    base, parts = _parted(pattern)
    kind = _kind(base or os.curdir)
    if kind is None or not stat.S_ISDIR(kind):
        return iter(())
    return _matching(base, parts, frozenset({0}), _Walk(unread=unread))


def _parted(pattern: str) -> tuple[str, tuple[str, ...]]:
    """Return the folder that a glob begins with, or nothing, and the parts from its first wildcard on."""
    parts = Path(pattern).parts
    plain = next(at for at, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[:plain])) if plain else "", parts[plain:]


def _matching(folder: str, parts: Sequence[str], states: frozenset[int], walk: _Walk) -> Iterator[str]:
    """Yield the matches below a folder. A state is how many parts of the pattern are used up on the way to it."""
    if not _enter(folder or os.curdir, walk):
        return
    entries = _entries(folder)
    if entries is None:
        yield folder
        return
    for entry in entries:
        path, after = _join(folder, entry.name), _after(entry, parts, states)
        if not entry.is_folder:
            if len(parts) in after and _is_picture(entry):
                yield path
            elif len(parts) in after:
                walk.unread[_ending(entry)] += 1
        elif len(parts) in after and ANY_DEPTH not in parts:
            yield from _below(path, walk)
        elif after:
            yield from _matching(path, parts, after, walk)


def _after(entry: _Entry, parts: Sequence[str], states: frozenset[int]) -> frozenset[int]:
    """Return the states that the name of an entry leads to."""
    here = set(states)
    for state, part in enumerate(parts):
        if part == ANY_DEPTH and state in here:
            here.add(state + 1)  # it also stands for no folder
    after = set()
    for state in here - {len(parts)}:
        if parts[state] == ANY_DEPTH:
            if entry.is_folder or state == len(parts) - 1:
                after.add(state if entry.is_folder else state + 1)
        elif fnmatch.fnmatch(entry.name, parts[state]):
            after.add(state + 1)
    return frozenset(after)


# ---- folders ----------------------------------------------------------------------------------------------------


def _entries(folder: str) -> list[_Entry] | None:
    """Return what a folder holds, by name, without what is hidden; ``None`` where it cannot be listed."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            return sorted(_Entry(entry.name, _is_folder(entry)) for entry in entries if not _is_hidden(entry.name))
    except OSError:
        return None


def _join(folder: str, name: str) -> str:
    return os.path.join(folder, name)  # noqa: PTH118  a Path each would double the time of a scan


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _is_picture(entry: _Entry) -> bool:
    return not entry.is_folder and _ending(entry) in read_extensions()


def _ending(entry: _Entry) -> str:
    return os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  likewise


def _holding_pictures(folder: str) -> list[str]:
    """Return the names of the folders in a folder that have a picture in them or below."""
    return [
        entry.name
        for entry in _entries(folder) or ()
        if entry.is_folder and next(_below(_join(folder, entry.name), _Walk()), None) is not None
    ]


def _enter(folder: str, walk: _Walk) -> bool:
    """Whether a folder has not been entered before, by whatever path."""
    try:
        facts = Path(folder).stat()
    except OSError:
        return True  # listing it will say so
    key = (facts.st_dev, facts.st_ino)
    if key in walk.entered:
        return False
    walk.entered.add(key)
    return True


def _kind(path: str) -> int | None:
    """Return the mode of what is at a path, ``None`` where there is nothing."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):  # ValueError: a null byte
        return None


def _nfc(names: Iterable[str]) -> frozenset[str]:
    return frozenset(unicodedata.normalize("NFC", name_text(name)) for name in names)
