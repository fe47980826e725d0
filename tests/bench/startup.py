"""Start-up: `transferkit --help` over a bare interpreter. Goal: at most 30 times, about 0.3 s."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from harness import compare, print_table, seconds
from PIL import Image


def run(*words: str) -> float:
    """Return the seconds of one process."""
    return seconds(lambda: subprocess.run([sys.executable, *words], check=False, capture_output=True))


def draw(folder: Path) -> Path:
    """Draw a data set of two classes with ten small pictures each."""
    for number in range(20):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (12 * number, 40, 40)).save(folder / "ab"[number % 2] / f"{number}.png")
    return folder


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        measure(str(draw(Path(folder))))


def measure(folder: str) -> None:
    """Measure and print, with the verbs that look at pictures or stored features."""
    sides = {
        "bare interpreter": lambda: run("-c", "pass"),
        "transferkit --help": lambda: run("-m", "transferkit", "--help"),
        "transferkit finetune --help": lambda: run("-m", "transferkit", "finetune", "--help"),
        "transferkit finetune --epochs 0 (refused)": lambda: run("-m", "transferkit", "finetune", "--epochs", "0"),
        "transferkit check, 20 pictures": lambda: run("-m", "transferkit", "check", "--quick", "--data", folder),
        "transferkit store list": lambda: run("-m", "transferkit", "store", "list", "--store", f"{folder}/store"),
    }
    print_table("start-up", compare(sides, rounds=10), base="bare interpreter", unit="s")


if __name__ == "__main__":
    main()
