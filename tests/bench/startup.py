"""Start-up: light commands over a bare interpreter, the others over the bare import of torch and timm.

    python tests/bench/startup.py [--rounds 10]

Goals: `--help` at most 30 times a bare interpreter, about 0.3 s; the first step of `finetune --phases finetune` at most
1.3 times `import torch, timm`. That import has W&B in it where it is installed, which transferkit leaves out; a line
tells it without. Seconds are of the processors where the others are much longer than they, by the clock besides.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import compare, print_table, seconds
from PIL import Image

NETWORK = ("--backbone", "transferkit/mini", "--weights", "bundled", "--image-size", "32", "--precision", "32")

FIRST_STEP = """
import os, sys
from transferkit.models.module import TransferModule
TransferModule.training_step = lambda *_: os._exit(0)
from transferkit.cli.main import main
sys.exit(main(sys.argv[1:]) or 1)
"""

WITHOUT_WANDB = "import sys; sys.modules['wandb'] = None; import torch, timm"


def run(*words: str, first_line: bool = False) -> float:
    """Return the seconds of one process: by the clock until it ends, or until its first line."""
    if not first_line:
        return seconds(lambda: subprocess.run([sys.executable, *words], check=False, capture_output=True))

    def until_it_says_something() -> None:
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.communicate()

    return seconds(until_it_says_something)


def worked(*words: str) -> float:
    """Return the seconds that the processors worked on one process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def draw(folder: Path) -> Path:
    """Draw a data set of two classes with ten small pictures each."""
    for number in range(20):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (12 * number, 40, 40)).save(folder / "ab"[number % 2] / f"{number}.png")
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as work:
        measure(str(draw(Path(folder))), work, options.rounds)


def measure(folder: str, work: str, rounds: int) -> None:
    """Measure and print."""
    kit = ("-m", "transferkit")
    store = ("--store", f"{work}/store")
    sides = {
        "bare interpreter": lambda: run("-c", "pass"),
        "transferkit --help": lambda: run(*kit, "--help"),
        "transferkit finetune --help": lambda: run(*kit, "finetune", "--help"),
        "transferkit finetune --epochs 0 (refused)": lambda: run(*kit, "finetune", "--epochs", "0"),
        "check --quick, 20 pictures": lambda: run(*kit, "check", "--quick", "--data", folder, "--out", f"{work}/check",
                                                  "--overwrite"),
        "store list": lambda: run(*kit, "store", "list", *store),
    }  # fmt: skip
    print_table("light commands, by the clock", compare(sides, rounds=rounds), base="bare interpreter", unit="s")
    again = ("--overwrite", "--quiet", "--report", "off")
    data = ("--data", folder, *NETWORK)
    train = ("finetune", *data, "--epochs", "1", *again)
    worked(*kit, *train, "--out", f"{work}/run")
    train = (*train, "--out", f"{work}/step")  # it never ends, and would take the finished run's place
    words = {
        "import torch, timm": ("-c", "import torch, timm"),
        "import torch, timm without W&B": ("-c", WITHOUT_WANDB),
        "import torch, timm, lightning": ("-c", "import torch, timm, lightning"),
        "finetune --phases finetune, to the first step": ("-c", FIRST_STEP, *train, "--phases", "finetune"),
        "finetune, to the first step, with the probe": ("-c", FIRST_STEP, *train, "--phases", "probe-finetune"),
        "features, all known": (*kit, "features", *data, *store, "--quiet"),
        "probe, all known": (*kit, "probe", *data, *store, "--out", f"{work}/probe", *again),
        "predict, 20 pictures": (*kit, "predict", f"{work}/run", folder, "--out", f"{work}/p.csv", "--overwrite"),
    }
    figures = compare({name: lambda own=own: worked(*own) for name, own in words.items()}, rounds=rounds)
    print_table("verbs with a network, seconds of the processors", figures, base="import torch, timm", unit="s")
    clock = {name: lambda own=words[name]: run(*own) for name in list(words)[:1]}
    clock["features, to the first line"] = lambda: run(*kit, "features", *data, *store, first_line=True)
    clock["predict, to the first line"] = lambda: run(*kit, "predict", f"{work}/run", folder, first_line=True)
    print_table("to the first line, by the clock", compare(clock, rounds=rounds), base="import torch, timm", unit="s")


if __name__ == "__main__":
    main()
