"""A second call on an unchanged folder: with what is known of its files, and reading all of them as `--rescan` does.

    python tests/bench/scan.py [--pictures 50000] [--few 5000] [--rounds 3] [--only VERB ...]
                               [--before CHECKOUT] [--work FOLDER]

Writes small JPEGs, each a file of its own, in ten classes. Parts are measured in this process, verbs as commands, with
what starting and importing take. Every verb is called once before, which fills the caches. Verbs whose own work takes
long run on fewer pictures. The files are in the system's memory: on a disk that has to be read, the more is saved.
`--only` names verbs, by the beginning of their names, and leaves the parts out. `--before` names a checkout from before
files were known, whose commands are measured besides.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from harness import compare, print_table, seconds
from PIL import Image
from startup import FIRST_STEP

from transferkit.data.images.known_files import TICK_NS, hash_files, read_files
from transferkit.data.images.reading import hash_images, read_images
from transferkit.data.index.index import index_images
from transferkit.machine.cores import available_cores
from transferkit.options.data import DataOptions

CLASSES = 10
SIDE = 48
MODEL = ("--backbone", "transferkit/mini", "--weights", "bundled", "--image-size", "32", "--precision", "32")


def write(root: Path, count: int, kilobytes: int = 0) -> Path:
    """Write pictures of blots in the colours of their classes, a kilobyte each; larger by what follows the picture."""
    generator = np.random.default_rng(0)
    for number in range(count):
        label = number % CLASSES
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        coarse = coarse // 2 + np.array([label % 3 * 60, label // 3 % 3 * 60, label // 9 * 120], dtype=np.uint8)
        path = folder / f"{number:06}.jpg"
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(path, quality=80)
        if kilobytes:
            with path.open("ab") as stream:
                stream.write(generator.bytes(1024 * kilobytes))
    return root


def parts(data: Path) -> dict[str, Callable[[], object]]:
    """Return the steps by name, with and without what is known."""
    paths, cores = sorted(map(str, data.rglob("*.jpg"))), available_cores()
    options = DataOptions(data=str(data))
    again = DataOptions(data=str(data), rescan=True)
    return {
        "hash: read all": lambda: hash_images(paths, workers=cores),
        "hash: --rescan": lambda: hash_files(paths, rescan=True, workers=cores),
        "hash: known": lambda: hash_files(paths, workers=cores),
        "decode: read all": lambda: read_images(paths, min_side=64, workers=cores),
        "decode: --rescan": lambda: read_files(paths, min_side=64, rescan=True, workers=cores),
        "decode: known": lambda: read_files(paths, min_side=64, workers=cores),
        "index: --rescan": lambda: index_images(again, min_side=64, workers=cores),
        "index: known": lambda: index_images(options, min_side=64, workers=cores),
    }


def verbs(many: Path, few: Path, work: Path) -> dict[str, Sequence[str]]:
    """Return the commands by name."""
    store = ("--store", str(work / "store"))
    run = str(work / "run")
    overwrite = ("--overwrite", "--quiet")
    return {
        "check --quick": ("check", "--data", str(many), "--quick", "--out", str(work / "check"), *overwrite),
        "features": ("features", "--data", str(many), *MODEL, *store, "--quiet"),
        "probe (few)": ("probe", "--data", str(few), *MODEL, *store, "--report", "off", "--out", run, *overwrite),
        "plan (few)": ("plan", "--data", str(few), *MODEL, *store, "--out", str(work / "plan"), "--quiet"),
        "evaluate (few)": ("evaluate", run, str(few), "--report", "off", "--out", str(work / "eval"), *overwrite),
        "calibrate (few)": ("calibrate", run, str(few), "--quiet"),
        "lr-find": ("lr-find", "--data", str(many), *MODEL, "--out", str(work / "lr"), "--steps", "30", "--quiet"),
        "finetune to the first step": (
            "finetune",
            "--data",
            str(many),
            *MODEL,
            "--phases",
            "finetune",
            "--out",
            str(work / "tuned"),
            *overwrite,
        ),
    }


def command(words: Sequence[str], checkout: str | None = None) -> float:
    """Run a command; return its seconds."""
    place = checkout or str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": place}
    started = time.perf_counter()
    start = ("-c", FIRST_STEP) if words[0] == "finetune" else ("-m", "transferkit")
    done = subprocess.run([sys.executable, *start, *words], env=environment, cwd=place, check=False,
                          capture_output=True, encoding="utf-8")  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr}")
    return time.perf_counter() - started


def measure_parts(many: Path, large: Path, options: argparse.Namespace) -> None:
    """Measure and print the steps of a scan of pictures, and of larger files."""
    figures = compare(
        {name: lambda step=step: seconds(step) for name, step in parts(many).items()}, rounds=options.rounds
    )
    for part in ("hash", "decode", "index"):
        own = {name: values for name, values in figures.items() if name.startswith(part)}
        print_table(f"{part}, {options.pictures:,} pictures", own, base=f"{part}: known", unit="s")
    steps = {name: step for name, step in parts(large).items() if name.startswith("hash")}
    figures = compare({name: lambda step=step: seconds(step) for name, step in steps.items()}, rounds=options.rounds)
    print_table(f"hash, {options.few:,} files of {options.kilobytes} kB", figures, base="hash: known", unit="s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--few", type=int, default=5_000, help="pictures of verbs that take long")
    parser.add_argument("--kilobytes", type=int, default=200, help="of the larger files that are hashed, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="VERB", help="default: the parts, and all verbs")
    parser.add_argument("--before", help="a checkout from before")
    parser.add_argument("--work", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        many, few = write(work / "many", options.pictures), write(work / "few", options.few)
        large = None if options.only else write(work / "large", options.few, options.kilobytes)
        time.sleep(TICK_NS / 1e9)
        if large is not None:
            measure_parts(many, large, options)
            shutil.rmtree(work / "cache")
        for name, words in verbs(many, few, work).items():
            if options.only is not None and not name.startswith(tuple(options.only)):
                continue
            sides = {
                "known": lambda words=words: command(words),
                "--rescan": lambda words=words: command([*words, "--rescan"]),
            }
            if options.before:
                sides["before"] = lambda words=words: command(words, options.before)
            count = options.few if "few" in name else options.pictures
            print_table(f"{name}, {count:,} pictures", compare(sides, rounds=options.rounds), base="known", unit="s")


if __name__ == "__main__":
    main()
