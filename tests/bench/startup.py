"""Start-up: `transferkit --help` over a bare interpreter. Goal: at most 30 times, about 0.3 s."""

from __future__ import annotations

import subprocess
import sys

from harness import compare, print_table, seconds


def run(*words: str) -> float:
    """Return the seconds of one process."""
    return seconds(lambda: subprocess.run([sys.executable, *words], check=False, capture_output=True))


def main() -> None:
    """Measure and print."""
    sides = {
        "bare interpreter": lambda: run("-c", "pass"),
        "transferkit --help": lambda: run("-m", "transferkit", "--help"),
        "transferkit finetune --help": lambda: run("-m", "transferkit", "finetune", "--help"),
        "transferkit finetune --epochs 0 (refused)": lambda: run("-m", "transferkit", "finetune", "--epochs", "0"),
    }
    print_table("start-up", compare(sides, rounds=10), base="bare interpreter", unit="s")


if __name__ == "__main__":
    main()
