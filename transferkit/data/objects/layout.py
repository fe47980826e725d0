"""Which layout of objects a data set has, and its pictures with their objects as labels."""

from __future__ import annotations

from pathlib import Path

from transferkit.core.errors import DataError
from transferkit.core.records import Finding
from transferkit.core.text import listing
from transferkit.data.objects.coco import coco_files, is_coco, read_coco
from transferkit.data.objects.labels import objects_of
from transferkit.data.objects.numbered import read_numbered
from transferkit.data.objects.settle import settled
from transferkit.data.objects.stated import StatedSet
from transferkit.data.objects.voc import is_voc, read_voc
from transferkit.data.objects.yolo import is_yolo, read_yolo
from transferkit.data.scan.class_names import class_name_problems, order_classes
from transferkit.data.scan.formats import unread_text
from transferkit.data.scan.records import Kind, Scan

__all__ = ["COCO_ENDING", "objects_reason", "scan_objects"]

COCO_ENDING = ".json"

_REASONS = {
    "COCO": "a COCO file lies there",
    "Pascal VOC": "JPEGImages/ and Annotations/*.xml lie side by side",
    "YOLO": "images/ and labels/*.txt of the same stems lie side by side",
}


def objects_reason(data: str) -> str | None:
    """Return why a data set is one of objects, in words; ``None`` where it is not."""
    path = Path(data)
    if path.is_file():
        is_json = path.suffix.lower() == COCO_ENDING and is_coco(path)
        return "the file is one of COCO" if is_json else None
    try:
        kinds = _kinds(path)
    except OSError:
        return None
    return " and ".join(_REASONS[kind] for kind in kinds) or None


def scan_objects(data: str, *, lenient: bool = False, numbered: bool = False) -> Scan:
    """List the pictures of a set of objects, whose labels say them; see `transferkit.data.objects.labels`.

    Args:
        data: A COCO file, or a folder of COCO, Pascal VOC or YOLO.
        lenient: Leave out what cannot be used instead of refusing it, and say how much.
        numbered: Whether a folder of none of these holds pictures and numbered masks.

    Raises:
        DataError: It is none of them, or two, or cannot be read. What is wrong inside goes to `Scan.problems`.
    """
    stated = _stated(Path(data), lenient=lenient, numbered=numbered)
    report = stated.report
    if report.unreadable:
        raise DataError(f"{listing(report.unreadable, quote=False)} - check the path and its permissions")
    files = settled(stated, lenient=lenient)
    explicit = any(file.split for file in files)
    trained = {item.name for file in files if not explicit or file.split == "train"
               for item in objects_of(file.label).items}  # fmt: skip
    every = {item.name for file in files for item in objects_of(file.label).items}
    report.problems += class_name_problems({*every, *stated.names})
    if report.extensions:
        report.notes.append(Finding(Kind.NOTE, unread_text(report.extensions), tuple(sorted(report.extensions))))
    outlined = [item.outline is not None for file in files for item in objects_of(file.label).items if not item.crowd]
    line = f"{stated.kind}: {stated.line}{_outline_text(outlined)}"
    return Scan(
        order_classes({*trained, *stated.names}),
        tuple(files),
        tuple(sorted(report.skipped, key=lambda file: file.path)),
        (Finding(Kind.NOTE, line), *report.notes),
        tuple(report.problems),
    )


def _outline_text(outlined: list[bool]) -> str:
    if not any(outlined):
        return ""
    if all(outlined):
        return "; all objects have outlines"
    return f"; {sum(outlined)} of {len(outlined)} objects have outlines, so that boxes alone are used"


def _kinds(root: Path) -> list[str]:
    kinds = []
    if any(is_coco(path) for path in coco_files(root)):
        kinds.append("COCO")
    if is_voc(root):
        kinds.append("Pascal VOC")
    if is_yolo(root):
        kinds.append("YOLO")
    return kinds


def _stated(path: Path, *, lenient: bool, numbered: bool) -> StatedSet:
    if path.is_file():
        if path.suffix.lower() != COCO_ENDING:
            raise DataError(f"{str(path)!r} is no COCO file (.json) - pass that, or a folder of COCO, VOC or YOLO")
        return read_coco(path.parent, [path], lenient=lenient)
    kinds = _kinds(path)
    if len(kinds) > 1:
        raise DataError(
            f"{str(path)!r} holds annotations of {listing(kinds, quote=False)} - move one of them elsewhere, or pass "
            "the COCO file by --data"
        )
    if not kinds and numbered:
        return read_numbered(path, lenient=lenient)
    if not kinds:
        raise DataError(
            f"no objects in {str(path)!r}, expected a COCO file (annotations/*.json, train.json), Pascal VOC "
            "(JPEGImages/, Annotations/*.xml) or YOLO (images/, labels/*.txt) - check the path; where masks/ beside "
            "images/ number objects, pass --mask-values instances to finetune or check: a model remembers it"
        )
    if kinds == ["COCO"]:
        return read_coco(path, [one for one in coco_files(path) if is_coco(one)], lenient=lenient)
    return (read_voc if kinds == ["Pascal VOC"] else read_yolo)(path, lenient=lenient)
