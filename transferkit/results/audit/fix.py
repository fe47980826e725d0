"""The cleaned manifest: the pictures worth training on, as a CSV file that `finetune` takes. No picture is touched."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.files import atomic_write
from transferkit.core.records import ImageRecord
from transferkit.data.images.sketchbook import Sketchbook
from transferkit.data.index.copies import find_copies
from transferkit.data.index.index import build_index
from transferkit.data.index.targets import TargetReader
from transferkit.data.scan.manifest import read_table
from transferkit.data.scan.records import Kind, ScannedFile
from transferkit.data.scan.scan import scan_data
from transferkit.machine.cores import available_cores
from transferkit.options.features import CheckConfig
from transferkit.options.fields import default_of, flag
from transferkit.results.audit.copies import Families
from transferkit.results.audit.record import Audit, Pictures

__all__ = ["Cleaned", "check_target", "cleaned", "write_manifest"]

FORMULA: Final = "=+-@"
"""What a spreadsheet takes for the beginning of a formula; of a path something else comes before it."""

RANK: Final = {"train": 0, "val": 1, "test": 2}
"""Of copies in several splits those of the highest stay: what a model is measured on is worth more."""


@dataclass
class Cleaned:
    """The pictures of a cleaned manifest.

    Attributes:
        files: Path, label, split (as the data set itself names it) and group of each.
        dropped: Why each of the others is left out, by path.
        relabelled: The label that a picture had, by path.
    """

    files: list[ScannedFile] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    relabelled: dict[str, str] = field(default_factory=dict)


def check_target(config: CheckConfig) -> None:
    """Refuse a manifest that could not be written, before any work is done.

    Raises:
        ConfigError: It is there already, has no folder, or is the data set itself.
    """
    target = Path(str(config.fix))
    if target.is_dir():
        raise ConfigError(f"--fix {target}: is a folder, expected a .csv file to write - name one in it")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"--fix {target}: the folder {target.parent} does not exist - make it, or name another")
    if target.exists() and Path(config.data).exists() and target.samefile(config.data):
        raise ConfigError(f"--fix {target}: is the data set itself, which is not changed - name another file")
    if target.exists() and not config.overwrite:
        raise ConfigError(f"--fix {target}: is there already - pass --overwrite, or name another")


def cleaned(audit: Audit, pictures: Pictures, families: tuple[Families, Families], labels: str) -> Cleaned:
    """Return the pictures that are worth training on.

    Left out are pictures that cannot be read or are of one colour; of equal pictures all but one, and all of them where
    their labels differ; of near copies in several splits those that are trained on. Near copies that stay are a group.

    Args:
        audit: What was found.
        pictures: What was read.
        families: Equal pictures and near copies.
        labels: What is done with training pictures whose labels are likely wrong: ``"keep"``, ``"drop"`` or
            ``"relabel"``.
    """
    named = {file.path: file for file in pictures.scan.files}
    digests = {read.path: str(read.sha256) for read in pictures.reads}
    records = {record.path: record for record in pictures.index.records} if pictures.index is not None else {}
    result = Cleaned(dropped={read.path: "unreadable" for read in pictures.reads if read.error is not None})
    for issue in audit.issues:
        if issue.kind == Kind.ONE_COLOUR:
            result.dropped |= {path: "of one colour" for row in issue.rows for path in row.pictures}

    def place(path: str) -> tuple[int, str]:
        return -RANK.get(named[path].split or "train", 0), path

    for family in families[0]:
        stay = [path for path in family if path not in result.dropped]
        if len({named[path].label for path in stay}) > 1:
            result.dropped |= dict.fromkeys(stay, "equal pictures with different labels")
        else:
            result.dropped |= dict.fromkeys(sorted(stay, key=place)[1:], "copies")
    groups = {path: record.group for path, record in records.items() if record.group is not None}
    for family in families[1]:
        stay = [path for path in family if path not in result.dropped]
        best = min((place(path)[0] for path in stay), default=0)
        result.dropped |= {path: "near copies of pictures in other splits" for path in stay if place(path)[0] > best}
        _join(groups, [path for path in stay if path not in result.dropped], digests)
    suggested = _suggestions(audit, records) if labels != "keep" else {}
    if labels == "drop":
        result.dropped |= {path: "likely wrong labels" for path in suggested if path not in result.dropped}
    for path, file in named.items():
        if path not in result.dropped:
            label = suggested.get(path, file.label)
            if label != file.label:
                result.relabelled[path] = file.label
            result.files.append(ScannedFile(path, label, file.split, groups.get(path)))
    return result


def _join(groups: dict[str, str], family: Sequence[str], digests: dict[str, str]) -> None:
    """Give pictures one group; groups that some of them have already become one."""
    if len(family) < 2:
        return
    old = sorted({groups[path] for path in family if path in groups})
    name = old[0] if old else f"near-{min(digests[path] for path in family)[:12]}"
    groups |= {path: name for path, group in groups.items() if group in old}
    groups |= dict.fromkeys(family, name)


def _suggestions(audit: Audit, records: dict[str, ImageRecord]) -> dict[str, str]:
    """Return the label that a training picture seems to have where that is not its own; figures stay honest so."""
    return {
        row.pictures[0]: str(row.facts["suggested"])
        for issue in audit.issues
        if issue.kind == Kind.WRONG_LABEL
        for row in issue.rows
        if records[row.pictures[0]].split == "train"
    }


def write_manifest(
    config: CheckConfig, audit: Audit, pictures: Pictures, families: tuple[Families, Families], reader: TargetReader
) -> list[tuple[str, str]]:
    """Write the cleaned manifest, and look at it as `finetune` will; return lines that say what it holds.

    Raises:
        DataError: `finetune` would refuse what is left.
        StorageError: It cannot be written.
    """
    target = Path(str(config.fix))
    clean = cleaned(audit, pictures, families, config.fix_labels)
    root = _root(config, target, clean.files)
    answers, cells = _answers(config, pictures, reader)
    columns = [config.path_column, *answers]
    extra = [name for name in ("split", "group") if any(getattr(file, name) for file in clean.files)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*columns, *extra])
    for file in clean.files:
        path = os.path.relpath(file.path, root or target.parent)
        own = [file.label] if file.path in clean.relabelled else cells.get(file.path, [file.label])
        further = {"split": file.split, "group": file.group}
        table.writerow([f"./{path}" if path[0] in FORMULA else path, *own, *(further[name] for name in extra)])
    # Bytes of a name that are no UTF-8 stay as they are, and are read so.
    atomic_write(target, text.getvalue().encode("utf-8", "surrogateescape"))
    lines = [("fix", f"{target}: {len(clean.files):,} of {len(pictures.scan.files):,} pictures")]
    lines += [("left out", f"{count:,} {reason}") for reason, count in Counter(clean.dropped.values()).most_common()]
    if clean.relabelled:
        lines.append(("labels", f"{len(clean.relabelled):,} exchanged for what the probe sees"))
    options = dataclasses.replace(config, data=str(target), group_by=None, root=root)
    scan = scan_data(str(target), reader.columns_of(options))
    reads = {_place(read.path): read for read in pictures.reads}
    try:
        rest = [reads[_place(file.path)] for file in scan.files]
        copies = find_copies(rest, Sketchbook(config.decoding()), near=config.group_near, workers=available_cores())
        build_index(options, scan, rest, copies, reader=reader, decoding=config.decoding())
    except DataError as error:
        raise DataError(f"{target}: finetune would still refuse what is left: {error}", error.findings) from error
    return [*lines, ("next", shlex.join(["transferkit", "finetune", *_flags(options)]))]


def _place(path: str) -> str:
    return os.path.normpath(Path(path).absolute())


def _root(config: CheckConfig, target: Path, files: Sequence[ScannedFile]) -> str | None:
    """Return the folder that the paths are relative to; ``None`` for that of the manifest, where all lie below it."""
    if not any(os.path.relpath(file.path, target.parent).startswith("..") for file in files):
        return None
    data = Path(config.data)
    usual = data if data.is_dir() else data.parent
    return config.root or (str(usual) if data.exists() else os.path.commonpath([_place(file.path) for file in files]))


def _answers(
    config: CheckConfig, pictures: Pictures, reader: TargetReader
) -> tuple[Sequence[str], dict[str, list[str]]]:
    """Return the columns of the answers, and their cells by path as the manifest has them; none of a folder."""
    answers = pictures.scan.answers
    if not answers:
        return ("label",), {}
    columns = reader.columns_of(config)
    folder = Path(config.data).parent if columns.root is None else Path(columns.root)
    _, rows = read_table(config.data, {columns.path, *answers})
    return answers, {str(folder / row.cells[columns.path]): [row.cells[name] for name in answers] for row in rows}


def _flags(options: CheckConfig) -> list[str]:
    """Return the words of a command line that say where the data set is, and how it is to be read."""
    words = ["--data", options.data]
    for name in ("root", "task", "targets", "path_column", "label_column", "label_separator", "mask_values", "palette"):
        value = getattr(options, name)
        item = next(item for item in dataclasses.fields(options) if item.name == name)
        if value != default_of(item):
            words += [flag(name), value if isinstance(value, str) else ",".join(value)]
    return words
