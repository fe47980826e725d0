"""Peak memory of an extraction with ten times the pictures: it must stay flat.

    python tests/bench/extraction_memory.py --data clothing/train [--backbone mobilenetv3_small_100] [--images 3000]

Pictures are copies of the given ones with a number behind their end, which decoders ignore: other contents, same cost.
Each size runs in a process of its own, whose resident memory is sampled twenty times a second. The features themselves
are part of it: 30,000 rows of 1,024 numbers are 123 MB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from harness import machine

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * PAGE


def worker(options: argparse.Namespace) -> None:
    """Extract, and print peak memory, rows, their bytes and seconds."""
    from transferkit.features.extract.extract import extract_features

    peak, done = resident(), threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, resident())

    thread = threading.Thread(target=sample)
    thread.start()
    started = time.perf_counter()
    table = extract_features(
        options.data, backbone=options.backbone, weights="random", image_size=options.image_size, store=options.store,
        val_split=0.0, test_split=0.0, allow_leaks=True, compile="off",
    )  # fmt: skip
    done.set()
    thread.join()
    print(peak, len(table), table.X.nbytes, time.perf_counter() - started)


def multiply(source: Path, target: Path, count: int) -> None:
    """Make `count` different pictures of those below `source`."""
    paths = sorted(source.rglob("*.jpg"))
    for number in range(count):
        path = paths[number % len(paths)]
        place = target / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06d}.jpg").write_bytes(path.read_bytes() + number.to_bytes(8, "big"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="class folders")
    parser.add_argument("--backbone", default="mobilenetv3_small_100")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=3000, help="of the smaller run")
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.store:
        worker(options)
        return
    print(f"peak memory of extraction, {options.backbone} at {options.image_size} px ({machine()})")
    peaks = []
    for count in (options.images, 10 * options.images):
        with tempfile.TemporaryDirectory() as temporary:
            multiply(options.data, Path(temporary) / "pictures", count)
            words = [sys.executable, __file__, "--data", f"{temporary}/pictures", "--store", f"{temporary}/store",
                     "--backbone", options.backbone, "--image-size", str(options.image_size)]  # fmt: skip
            result = subprocess.run(words, check=True, capture_output=True, encoding="utf-8")
        peak, rows, features, seconds = map(float, result.stdout.split())
        peaks.append(peak)
        print(f"  {rows:>7,.0f} pictures: {peak / 1e6:,.0f} MB, of which {features / 1e6:,.0f} MB features; "
              f"{rows / seconds:.0f} images/s")  # fmt: skip
    print(f"  ratio {peaks[1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
