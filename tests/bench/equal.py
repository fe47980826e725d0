"""Compare what two releases wrote: `python tests/bench/equal.py BEFORE AFTER` prints a table, and ends with 1 or 0.

BEFORE and AFTER are run directories or folders of them, made by the same commands with the same threads on one machine.
Weights, features and the outputs of exported graphs are compared bit for bit; tables and JSON value by value, except
for what a clock or a release says. Of numbers that differ the largest difference is shown.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

VOLATILE = {"time_s", "images_per_s", "environment", "versions"}
"""Keys whose values a clock or a release gives."""


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and lists with their place, volatile keys left out."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in VOLATILE:
                yield from flat(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from flat(part, f"{key}[{number}]")
    else:
        yield key, value


def text(path: Path, root: Path) -> dict[str, Any]:
    """Read JSON, JSON lines, YAML or CSV as leaves by place; paths below `root` become relative."""
    content = path.read_text(encoding="utf-8").replace(f"{root.resolve()}/", "")
    if path.suffix == ".jsonl":
        return dict(flat([json.loads(line) for line in content.splitlines()]))
    if path.suffix == ".csv":
        return dict(flat(list(csv.DictReader(content.splitlines()))))
    if path.suffix == ".yaml":
        return dict(flat(yaml.safe_load(content)))
    return dict(flat(json.loads(content)))


def arrays(path: Path, root: Path) -> dict[str, np.ndarray]:
    """Read safetensors or npz; paths below `root` become relative."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with np.load(path, allow_pickle=False) as file:
        loaded = {name: file[name] for name in file.files}
    inside = f"{root.resolve()}/"
    return {name: np.array([text.replace(inside, "") for text in array.ravel().tolist()]) if array.dtype.kind == "U"
            else array for name, array in loaded.items()}  # fmt: skip


def outputs(path: Path, root: Path) -> dict[str, np.ndarray]:
    """Run an exported graph on seeded noise; its outputs by name."""
    size = (5, 3, 96, 96)
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        shape = session.get_inputs()[0].shape
        size = (5, *(side if isinstance(side, int) else 96 for side in shape[1:]))
        noise = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, {session.get_inputs()[0].name: noise}), strict=True))
    import torch

    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(size, dtype=np.float32))
    with torch.inference_mode():
        results = torch.export.load(path).module()(noise)
    return {str(number): result.numpy() for number, result in enumerate(results)}


def number(value: Any) -> float | None:
    """Return a number, also one that a CSV spells; ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def compare_values(old: dict[str, Any], new: dict[str, Any]) -> tuple[int, list[str]]:
    """Return how many values were compared, and what differs."""
    problems = [f"only before: {key}" for key in old if key not in new]
    problems += [f"only after: {key}" for key in new if key not in old]
    largest: tuple[float, str] = (0.0, "")
    for key in old.keys() & new.keys():
        if old[key] == new[key]:
            continue
        a, b = number(old[key]), number(new[key])
        if a is None or b is None:
            problems.append(f"{key}: {old[key]!r} -> {new[key]!r}")
        elif not (math.isnan(a) and math.isnan(b)):
            largest = max(largest, (abs(a - b), f"{key}: {old[key]} -> {new[key]}"))
    if largest[1]:
        problems.append(f"largest difference {largest[0]:.1e} at {largest[1]}")
    return len(old), problems


def compare_bits(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> tuple[int, list[str]]:
    """Return how many numbers were compared, and what differs in its bits."""
    problems = [f"only before: {name}" for name in old if name not in new]
    problems += [f"only after: {name}" for name in new if name not in old]
    for name in sorted(old.keys() & new.keys()):
        a, b = old[name], new[name]
        if a.dtype != b.dtype or a.shape != b.shape:
            problems.append(f"{name}: {a.dtype} {a.shape} -> {b.dtype} {b.shape}")
        elif a.tobytes() != b.tobytes():
            floats = a.dtype.kind == "f"
            by = f"largest difference {np.abs(a.astype(float) - b).max():.1e}" if floats else "other values"
            problems.append(f"{name}: {by}")
    return sum(array.size for array in old.values()), problems


KINDS: dict[str, tuple[Callable[[Path, Path], Any], Callable[[Any, Any], tuple[int, list[str]]]]] = {
    **dict.fromkeys((".json", ".jsonl", ".csv", ".yaml"), (text, compare_values)),
    **dict.fromkeys((".safetensors", ".npz"), (arrays, compare_bits)),
    **dict.fromkeys((".onnx", ".pt2"), (outputs, compare_bits)),
}
"""By suffix: how a file is read, and how its content is compared."""

SKIPPED = {"cache", "store", "checkpoints", "pictures"}


def files(root: Path) -> dict[str, Path]:
    """Return the files below `root` that can be compared, by their place."""
    return {str(path.relative_to(root)): path for path in root.rglob("*")
            if path.suffix in KINDS and not SKIPPED & set(path.relative_to(root).parts)}  # fmt: skip


def compare(before: Path, after: Path) -> list[tuple[str, int, list[str]]]:
    """Return a row per file: its place, how many values were compared, what differs."""
    old, new = files(before), files(after)
    rows = [(name, 0, ["only before"]) for name in old if name not in new]
    rows += [(name, 0, ["only after"]) for name in new if name not in old]
    for name in old.keys() & new.keys():
        read, differences = KINDS[old[name].suffix]
        rows.append((name, *differences(read(old[name], before), read(new[name], after))))
    return sorted(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    rows = compare(arguments.before, arguments.after)
    print(f"| {'file':36} | {'values':>9} | result |\n|---|---|---|")
    for name, count, problems in rows:
        print(f"| {name:36} | {count:9,} | {'equal' if not problems else '; '.join(problems[:6])} |")
        if len(problems) > 6:
            print(f"| | | and {len(problems) - 6} more |")
    return 0 if rows and not any(problems for _, _, problems in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
