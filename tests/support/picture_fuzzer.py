"""Mutated picture files through the decoder, in a process of its own: a line for each, so that a crash has a number.

File number N is the same on every machine with these libraries.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from gallery import every_kind

SEED = 12
LIMIT_S = 10
"""CPU seconds that a file may take; the system ends a process that needs more."""
MAX_PIXELS = 4_000_000
SPACE = 640 << 20
"""Bytes that the process may grow by: a picture at the limit, several times over, and some of a larger JPEG's."""
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@cache
def seeds() -> list[tuple[str, bytes]]:
    return [(name, data) for name, data in every_kind().items() if len(data) < 40_000]


def mutated(number: int) -> tuple[str, bytes]:
    """Return the name of the picture that was mutated, and what became of it."""
    rng = np.random.default_rng([SEED, number])
    name, data = seeds()[int(rng.integers(len(seeds())))]
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        ways = (flipped, overwritten, edited, truncated, doubled, spliced, shuffled, shuffled, edited)
        data = ways[int(rng.integers(len(ways)))](data, rng)
    return name, checked(data) if rng.integers(3) else data


# ---- ways -----------------------------------------------------------------------------------------------------------


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for at in rng.integers(0, len(data), int(rng.integers(1, 20))) if data else ():
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def overwritten(data: bytes, rng: np.random.Generator) -> bytes:
    at, size = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 64))
    return data[:at] + rng.bytes(size) + data[at + size :]


def edited(data: bytes, rng: np.random.Generator) -> bytes:
    """Put an awkward number into the header, where sizes, counts and offsets stand."""
    size = int(rng.choice([1, 2, 4]))
    at = int(rng.integers(0, min(len(data), 200) + 1))
    value = int(rng.choice(EDGES)) & ((1 << 8 * size) - 1)
    return data[:at] + value.to_bytes(size, str(rng.choice(["big", "little"]))) + data[at + size :]


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data) + 1))]


def doubled(data: bytes, rng: np.random.Generator) -> bytes:
    first, last = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    return data[:last] + data[first:last] + data[last:]


def spliced(data: bytes, rng: np.random.Generator) -> bytes:
    """Go on with another file, mostly of another format."""
    _, other = seeds()[int(rng.integers(len(seeds())))]
    return data[: int(rng.integers(0, len(data) + 1))] + other[int(rng.integers(0, len(other))) :]


def shuffled(data: bytes, rng: np.random.Generator) -> bytes:
    """Swap, drop, repeat or damage one part of the format's own structure."""
    head, parts, tail = parts_of(data)
    if len(parts) < 2:
        return flipped(data, rng)
    one, other = rng.integers(0, len(parts), 2).tolist()
    way = int(rng.integers(4))
    if way == 0:
        parts[one], parts[other] = parts[other], parts[one]
    elif way == 1:
        del parts[one]
    elif way == 2:
        parts.insert(other, parts[one])
    else:
        body = bytearray(parts[one])
        for at in rng.integers(min(8, len(body) - 1), len(body), 4) if len(body) > 1 else ():
            body[at] = int(rng.integers(256))
        parts[one] = bytes(body)
    return checked(head + b"".join(parts) + tail)


def checked(data: bytes) -> bytes:
    """Return a PNG whose checksums fit again, so that more than they are looked at; others as they are."""
    if not data.startswith(b"\x89PNG"):
        return data
    head, parts, tail = parts_of(data)
    return head + b"".join(part[:-4] + struct.pack(">I", zlib.crc32(part[4:-4])) for part in parts) + tail


def parts_of(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Return the head, the chunks, segments, boxes or directory entries of a file, and the rest."""
    parts = []
    if data.startswith(b"\x89PNG"):
        start = at = 8
        while at + 12 <= len(data) and at + 12 + (size := int.from_bytes(data[at : at + 4], "big")) <= len(data):
            parts.append(data[at : at + 12 + size])
            at += 12 + size
    elif data[4:8] == b"ftyp" or data[:4] == b"RIFF":
        start = at = 0 if data[4:8] == b"ftyp" else 12
        order, before = ("big", 0) if start == 0 else ("little", 8)
        where = slice(0, 4) if start == 0 else slice(4, 8)
        while at + 8 <= len(data) and (size := int.from_bytes(data[at:][where], order)) and at + size <= len(data):
            parts.append(data[at : at + before + size + (before and size % 2)])
            at += len(parts[-1])
    elif data.startswith(b"\xff\xd8"):
        start = at = 2
        while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda" and at + 4 < len(data):
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            parts.append(data[at : at + 2 + size])
            at += 2 + size
    elif data[:4] in (b"II\x2a\0", b"MM\0\x2a"):
        order = "little" if data[:2] == b"II" else "big"
        start = at = min(int.from_bytes(data[4:8], order) + 2, len(data))
        count = int.from_bytes(data[at - 2 : at], order)
        parts = [data[at + 12 * entry : at + 12 * entry + 12] for entry in range(min(count, (len(data) - at) // 12))]
        at += 12 * len(parts)
    else:
        return data, [], b""
    return data[:start], parts, data[at:]


# ---- the process, and who watches it --------------------------------------------------------------------------------


def worker(first: int, stop: int) -> None:
    """Decode files in this process, and write a line for each: its name and what came of it."""
    from transferkit.core.records import Decoding
    from transferkit.data.images.decode import UnreadableImage, decode_image

    decoding = Decoding(max_pixels=MAX_PIXELS)
    for _, data in seeds():  # every library is there, and has what it needs
        decode_image(data, decoding=decoding)
    before = peak()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # libtiff writes there
    for number in range(first, stop):
        name, data = mutated(number)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        try:
            pixels = decode_image(data, min_side=(None, 64)[number % 2], decoding=decoding, name=name)
            height, width, depth = pixels.shape
            fine = depth == 3 and pixels.dtype == np.uint8 and 0 < height * width <= MAX_PIXELS
            said = "read" if fine else f"BUG a picture {pixels.shape} {pixels.dtype}"
        except UnreadableImage as error:
            said = f"refused\t{error.reason}" if error.reason.count(" ") else f"BUG refused for {error.reason!r}"
        except BaseException as error:
            said = f"BUG {type(error).__name__}: {' '.join(str(error).split())}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        grown = peak() - before
        if grown > SPACE:
            said, before = f"BUG {grown >> 20} MiB more memory", before + grown
        print(name, said, sep="\t", flush=True)


def peak() -> int:
    """Return the most memory that the process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux' getrusage tells that of the parent, too
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


@dataclass
class Outcome:
    """What came of files.

    Attributes:
        read: How many were pictures.
        refused: Reasons of the others, with numbers in them left out, and how many had each.
        by_format: Files by the ending of what was mutated and ``"read"``, ``"refused"`` or ``"fault"``.
        faults: A sentence for each crash, hang, excess of memory or foreign exception, with the number of the file.
    """

    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    by_format: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def fuzz(first: int, stop: int, *, prelude: str = "") -> Outcome:
    """Decode the files of these numbers; a process that dies is begun again after the file that killed it.

    Args:
        first: Number of the first file.
        stop: Of the one after the last.
        prelude: Python that is run before, in a process that has imported this module.
    """
    outcome = Outcome()
    while first < stop:
        begin = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import picture_fuzzer"
        command = [sys.executable, "-c", f"{begin}\n{prelude}\npicture_fuzzer.worker({first}, {stop})"]
        done = subprocess.run(command, capture_output=True, check=False)
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        for line in lines:
            name, said, *reason = line.split("\t")
            suffix = name.rpartition(".")[2]
            if said == "read":
                outcome.read += 1
            elif said == "refused":
                outcome.refused["".join(char for char in " ".join(reason)[:60] if not char.isdigit())] += 1
            else:
                outcome.faults.append(f"file {first} ({name}): {said}")
            outcome.by_format[suffix, said if said in ("read", "refused") else "fault"] += 1
            first += 1
        if done.returncode:
            if not lines and done.returncode > 0:
                raise RuntimeError(done.stderr.decode("utf-8", "replace"))
            how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
            outcome.faults.append(f"file {first} ({mutated(first)[0]}): the process ended by {how}")
            first += 1
    return outcome
