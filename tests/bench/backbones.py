"""A sweep over every network that timm and torchvision list: whether it keeps the backbone's contract, and its figures.

    python tests/bench/backbones.py                  # goes on where it was stopped; writes recipes/backbones.csv
    python tests/bench/backbones.py --again refused  # once more those that were refused, or that match a pattern
    python tests/bench/backbones.py --families       # the table of families from the file

Networks are built without numbers, on torch's `meta` device, so that the largest take no memory: this proves shapes,
groups, modes and that gradients arrive, but not values. Values (freezing bit for bit, checkpoints, export) are proven
family by family by tests/models/backbones/test_families.py. Names are done in processes of a few at a time; one that
kills its process, or takes too long, is written down as refused for that.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

COLUMNS = (
    *("name", "library", "family", "held", "reason", "parameters", "parameters_with_classifier", "multiply_adds"),
    *("features", "groups", "strides", "widths", "image_size", "license"),
)
FILE = Path(__file__).parents[2] / "recipes" / "backbones.csv"
LEAST_GROUPS = 4
AT_ONCE = 100
SECONDS = 60
"""Of a processor, for one network."""


def problems(backbone: Any) -> list[str]:
    """Return where a blank network breaks the contract, as far as shapes, groups, modes and gradients can say."""
    from transferkit.models.freezing import frozen_modules, keep_frozen_eval, set_trainable

    found = []
    groups = backbone.layer_groups()
    listed = Counter(id(parameter) for group in groups for _, parameter in group.parameters)
    names = [group.name for group in groups]
    if listed != Counter(id(parameter) for parameter in backbone.parameters()):
        found.append("its groups do not hold every parameter exactly once")
    if len(set(names)) < len(names) or "head" in names:
        found.append("its groups share a name")
    if len(groups) < LEAST_GROUPS:
        found.append(f"it has {len(groups)} layer groups")
    with torch.device("meta"):
        model = nn.Sequential(backbone, nn.Linear(backbone.num_features, 5)).train()
        logits = model(torch.zeros(2, 3, *backbone.data_config.image_size))
    if logits.shape != (2, 5):
        found.append(f"it returns {tuple(logits.shape)} for two pictures and five classes")
    reached = learning(logits)
    idle = [key for key, parameter in backbone.named_parameters() if parameter not in reached]
    if idle:
        found.append(f"no gradient reaches {len(idle)} of its parameters, such as {idle[0]}")
    half = groups[: len(groups) // 2]
    set_trainable(model, [p for group in groups[len(half) :] for _, p in group.parameters])
    keep_frozen_eval(model.train())
    if any(part.training for frozen in frozen_modules(model) for part in frozen.modules()):
        found.append("what is frozen does not stay in eval mode")
    return found


def learning(output: torch.Tensor) -> WeakIdKeyDictionary:
    """Return the parameters that an output was computed from: those that its gradient reaches."""
    found, seen = WeakIdKeyDictionary(), set()
    left = [output.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (parameter := getattr(node, "variable", None)) is not None:
            found[parameter] = True
        left += [following for following, _ in node.next_functions]
    return found


def pyramid(backbone: Any) -> tuple[Any, ...]:
    """Return the levels of the pyramid; none where the network has none."""
    from transferkit.core.errors import BackboneError

    try:
        return tuple(backbone.pyramid())
    except BackboneError:
        return ()


def family_of(name: str) -> str:
    """Return the module that a library keeps a network in."""
    from torchvision.models import get_model_builder

    from transferkit.models.backbones.timm_import import timm

    if name.startswith("torchvision/"):
        return str(get_model_builder(name.removeprefix("torchvision/")).__module__.rpartition(".")[2])
    return str(timm.model_entrypoint(name).__module__.rpartition(".")[2])


def row_of(name: str) -> dict[str, Any]:
    """Return the row of one network; whatever it raises is the reason why the contract is not held."""
    from transferkit.core.text import first_line
    from transferkit.models.backbones.registry import blank_backbone, describe, is_backbone

    library = "torchvision" if name.startswith("torchvision/") else "timm"
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"name": name, "library": library, "family": family_of(name)}
    if not is_backbone(name):  # `list_torchvision` says why
        return row | {"held": "no", "reason": "transferkit does not list it"}
    try:
        backbone = blank_backbone(name)
        facts, levels = describe(backbone), pyramid(backbone)
        row |= {
            "parameters": facts["parameters"],
            "parameters_with_classifier": facts["parameters_with_classifier"] or "",
            "multiply_adds": facts["multiply_adds"],
            "features": facts["num_features"],
            "groups": len(facts["layer_groups"]),
            "strides": " ".join(str(level.stride) for level in levels),
            "widths": " ".join(str(level.channels) for level in levels),
            "image_size": "x".join(map(str, facts["image_size"])),
            "license": facts["license"] or "",
        }
        reasons = problems(backbone)
    except Exception as error:  # networks of other people fail in any way: it is what is asked for here
        reasons = [first_line(error) or type(error).__name__]
    return row | {"held": "no" if reasons else "yes", "reason": "; ".join(reasons)}


def names_of_all() -> list[str]:
    """Return all names of both libraries, also those that transferkit does not list."""
    import torchvision

    from transferkit.models.backbones.timm_import import timm

    own = torchvision.models.list_models(module=torchvision.models)
    return [*timm.list_models(), *(f"torchvision/{name}" for name in own)]


def work(names: Iterable[str]) -> None:
    """Print the rows of some networks, one a line, as they are done; a network may take `SECONDS` of a processor."""
    warnings.simplefilter("ignore")
    for name in names:
        limit = int(time.process_time()) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        print(json.dumps(row_of(name)), flush=True)


def rows_in_processes(names: list[str], file: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Add the rows of some networks to `rows`, and write the file as they come."""
    order = {name: place for place, name in enumerate(names_of_all())}
    left = list(names)
    while left:
        batch = left[:AT_ONCE]
        with subprocess.Popen(
            [sys.executable, str(Path(__file__)), "--work", *batch], stdout=subprocess.PIPE, encoding="utf-8"
        ) as process:
            assert process.stdout is not None
            made = 0
            for line in process.stdout:
                row = json.loads(line)
                rows[row["name"]] = row
                made += 1
                if made % 10 == 0:
                    write(file, sorted(rows.values(), key=lambda row: order.get(row["name"], len(order))))
        left = left[made:]
        if made < len(batch):  # the next one ended the process
            name, left = left[0], left[1:]
            library = "torchvision" if name.startswith("torchvision/") else "timm"
            reason = f"its process ended with status {process.returncode}"
            rows[name] = dict.fromkeys(COLUMNS, "") | {"name": name, "library": library, "held": "no", "reason": reason}
        write(file, sorted(rows.values(), key=lambda row: order.get(row["name"], len(order))))
        print(f"{len(rows)} of {len(order)}, {sum(row['held'] == 'no' for row in rows.values())} refused", flush=True)


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of the file by name; none where there is no file."""
    if not file.exists():
        return {}
    with file.open(encoding="utf-8", newline="") as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


def write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as CSV."""
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    part.replace(file)


def print_counts(rows: Iterable[dict[str, Any]]) -> None:
    """Print how many were held and refused, and why."""
    rows = list(rows)
    held = [row for row in rows if row["held"] == "yes"]
    print(
        f"{len(rows)} networks: {len(held)} held, {sum(not row['strides'] for row in held)} of them without a pyramid;"
    )
    print(f"{len(rows) - len(held)} refused:")
    for row in rows:
        if row["held"] != "yes":
            print(f"  {row['name']}: {row['reason']}")


def print_families(rows: Iterable[dict[str, Any]]) -> None:
    """Print a Markdown table of the families: held, refused, and the range of their figures."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault((row["family"], row["library"]), []).append(row)
    print(
        "| family | library | held | refused | parameters | multiply-adds | features |\n|---|---|---|---|---|---|---|"
    )
    for (family, library), members in sorted(families.items()):
        held = sum(row["held"] == "yes" for row in members)
        figures = [spread(members, "parameters", 1e6, "M"), spread(members, "multiply_adds", 1e9, "G")]
        print(f"| {family} | {library} | {held} | {len(members) - held} | {' | '.join(figures)} | "
              f"{spread(members, 'features', 1, '')} |")  # fmt: skip


def spread(rows: Iterable[dict[str, Any]], column: str, unit: float, letter: str) -> str:
    """Return the least and the largest figure of a column, in words."""
    values = [int(row[column]) / unit for row in rows if row[column]]
    if not values:
        return ""
    low, high = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in (min(values), max(values)))
    return f"{low} {letter}".strip() if low == high else f"{low} to {high} {letter}".strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--again", help="`refused`, or a shell pattern of names")
    parser.add_argument("--families", action="store_true")
    parser.add_argument("--file", type=Path, default=FILE)
    given = parser.parse_args()
    if given.work is not None:
        work(given.work)
        sys.exit()
    table = read(given.file)
    if given.families:
        print_families(table.values())
        sys.exit()
    again = {
        name
        for name, row in table.items()
        if given.again and (fnmatch.fnmatch(name, given.again) or (given.again == "refused" and row["held"] == "no"))
    }
    rows_in_processes([name for name in names_of_all() if name not in table or name in again], given.file, table)
    print_counts(table.values())
