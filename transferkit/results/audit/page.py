"""`check.html`: the page of an audit, one file with the first cases of each kind as small pictures."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.core.files import atomic_write
from transferkit.core.records import USUAL, Decoding
from transferkit.core.text import listing
from transferkit.data.images.channels import as_rgb
from transferkit.data.images.decode import decode_image
from transferkit.data.objects.labels import objects_of
from transferkit.machine.cores import available_cores
from transferkit.results.audit.record import OBJECTS, Audit, Issue, Row
from transferkit.results.report.counts import confusion_table, count_table
from transferkit.results.report.page import data_uri, render

__all__ = ["write_page"]

SHOWN = 12
"""Cases of each kind that are shown as pictures."""

ALIKE = 4
"""Copies of one picture that are shown beside each other."""

LISTED = 200
"""Cases of each kind, and other files, that are named."""

SIDE = 192
"""Longer side of a small picture, in pixels."""


def write_page(audit: Audit, path: Path, decoding: Decoding = USUAL) -> None:
    """Write the page, its pictures decoded as they were looked at. Raises `StorageError`."""
    needed = dict.fromkeys(
        picture for issue in audit.issues for row in issue.rows[:SHOWN] for picture in row.pictures[:ALIKE]
    )
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="page") as pool:
        images = dict(zip(needed, pool.map(lambda picture: _thumbnail(picture, decoding), needed), strict=True))
    atomic_write(path, render("check.html.j2", _values(audit, images)))


def _thumbnail(path: str, decoding: Decoding) -> str | None:
    """Return a picture, made small, as a ``data:`` address; ``None`` where it cannot be read."""
    try:
        image = Image.fromarray(as_rgb(decode_image(path, min_side=SIDE, decoding=decoding)))
    except DataError:
        return None
    image.thumbnail((SIDE, SIDE))
    return data_uri(np.asarray(image))


def _values(audit: Audit, images: dict[str, str | None]) -> dict[str, Any]:
    names = list(next(iter(audit.counts.values()), {}))
    classes = f" of {len(audit.classes):,} classes" if set(audit.classes) <= set(names) else ""
    splits = ", ".join(f"{audit.sizes[split]:,} {split}" for split in audit.counts)
    refused = sum(issue.refused for issue in audit.issues)
    sized = f" at {' x '.join(map(str, audit.features['image_size']))} pixels" if audit.features else ""
    used: Counter[str] = Counter()
    issues = []
    for issue in audit.issues:
        used[issue.kind] += 1
        number = f"-{used[issue.kind]}" if used[issue.kind] > 1 else ""
        issues.append(_issue(audit, issue, f"{issue.kind}{number}", images))
    probe = audit.probe
    return {
        "data": audit.data,
        "name": Path(audit.data).name or audit.data,
        "facts": f"{sum(audit.sizes.values()):,} pictures{classes}: {splits}" if names else "",
        "verdict": (
            "finetune would refuse this folder" if refused
            else "finetune would take it; this is worth a look" if issues else "Nothing to complain of"
        ),
        "issues": issues,
        "left_out": audit.left_out,
        "counts": count_table(audit.counts, names, unit=audit.unit, sizes=audit.sizes) if names else None,
        "confusion": confusion_table(names, probe["confusion"]) if probe and names else None,
        "acc": probe["acc"] if probe else None,
        "features": f"{audit.features['backbone']}{sized}" if audit.features else "",
        "skipped": audit.skipped[:LISTED],
        "skipped_count": len(audit.skipped),
    }  # fmt: skip


def _issue(audit: Audit, issue: Issue, key: str, images: dict[str, str | None]) -> dict[str, Any]:
    shown = [row for row in issue.rows[:SHOWN] if any(images.get(path) for path in row.pictures)]
    return {
        "key": key,
        "title": issue.heading,
        "message": issue.message,
        "refused": issue.refused,
        "count": len(issue.rows),
        "cases": [_case(audit, row, images) for row in shown],
        "listed": [_listed(row) for row in issue.rows[:LISTED]] if len(issue.rows) > len(shown) else [],
    }


def _case(audit: Audit, row: Row, images: dict[str, str | None]) -> dict[str, Any]:
    lines = []
    for path in row.pictures[:ALIKE]:
        file = audit.files.get(path)
        label = file and _answer(audit, file.label)
        lines.append({"path": _inside(audit, path), "label": label, "split": file and file.split})
    if len(row.pictures) > ALIKE:
        lines.append({"path": f"and {len(row.pictures) - ALIKE} more", "label": "", "split": ""})
    uris = ((path, images.get(path)) for path in row.pictures[:ALIKE])
    return {
        "text": row.text,
        "lines": lines,
        "images": [{"uri": uri, "alt": _inside(audit, path)} for path, uri in uris if uri is not None],
    }


def _answer(audit: Audit, label: str) -> str:
    """Return a label in words: objects by class, a mask by its path in the data set."""
    if audit.unit != OBJECTS:
        return _inside(audit, label)
    try:
        counts = Counter(item.name for item in objects_of(label).items)
    except DataError:  # a picture that the layout has not settled
        return label
    return listing([f"{count} {name}" for name, count in counts.most_common()], quote=False) or "no object"


def _listed(row: Row) -> dict[str, str]:
    return {"path": " = ".join(row.pictures), "text": row.text}


def _inside(audit: Audit, path: str) -> str:
    """Return a path as it is inside the data set."""
    here = Path(path)
    return str(here.relative_to(audit.data)) if here.is_relative_to(audit.data) else path
