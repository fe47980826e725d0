"""Drawn objects and detections, and what faster-coco-eval and torchmetrics say of them."""

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco
from torchmetrics.detection import MeanAveragePrecision

from transferkit.models.figures.boxes import BoxTally

SIDE = 200


def discs(boxes):
    """COCO masks of ellipses in boxes."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    masks = []
    for left, top, right, bottom in boxes:
        across = (columns - (left + right) / 2) / max((right - left) / 2, 1e-6)
        down = (rows - (top + bottom) / 2) / max((bottom - top) / 2, 1e-6)
        masks.append(coco.encode(np.asfortranarray((across**2 + down**2 <= 1).astype(np.uint8))))
    return masks


def drawn(count=12, objects=8, detections=25, classes=3, seed=0, *, crowd=0.15, masks=False, ties=True):
    """Pictures, some of them without objects, some without detections; scores have ties."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        m = 0 if number % 7 == 3 else int(generator.integers(1, objects + 1))
        k = 0 if number % 5 == 4 else detections
        sides = np.exp(generator.uniform(np.log(8), np.log(130), (m, 2)))
        corners = generator.uniform(0, SIDE - 130, (m, 2))
        true_boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        true_classes = generator.integers(0, classes, m)
        if m and k:
            about = generator.integers(0, m, k)
            moved = true_boxes[about] + generator.normal(size=(k, 4)) * 6 * generator.random((k, 1))
            called = np.where(generator.random(k) < 0.8, true_classes[about], generator.integers(0, classes, k))
        else:
            moved = np.tile([5.0, 5.0, 40.0, 40.0], (k, 1)) + generator.uniform(0, 100, (k, 1))
            called = generator.integers(0, classes, k)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        near = np.exp(-np.abs(moved - true_boxes[about]).mean(axis=1) / 8) if m and k else np.full(k, 0.1)
        scores = np.clip(near * generator.uniform(0.5, 1, k), 0.01, 0.99)
        if ties:
            scores = np.round(scores, 1) + 0.01
        order = np.argsort(-scores, kind="stable")
        made.append(
            BoxTally(
                boxes=moved[order].astype(np.float32),
                scores=scores[order].astype(np.float32),
                classes=called[order].astype(np.int64),
                true_boxes=true_boxes,
                true_classes=true_classes.astype(np.int64),
                crowd=generator.random(m) < crowd,
                masks=discs(moved[order]) if masks else None,
                true_masks=discs(true_boxes) if masks else None,
            )
        )
    return made


def by_library(tallies, classes, *, masks=False):
    """What faster-coco-eval says, evaluated and accumulated by itself, of all classes at once."""
    images = [{"id": number, "height": SIDE, "width": SIDE} for number in range(1, len(tallies) + 1)]
    shared = {"images": images, "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)]}
    objects, detections = [], []
    for number, one in enumerate(tallies, 1):
        sides = (
            (objects, one.true_boxes, one.true_classes, one.true_masks, one.crowd, "iscrowd"),
            (detections, one.boxes, one.classes, one.masks, one.scores, "score"),
        )
        for rows, boxes, labels, outlines, more, name in sides:
            for at, (left, top, right, bottom) in enumerate(boxes.astype(np.float64).tolist()):
                row = {"id": len(rows) + 1, "image_id": number, "category_id": int(labels[at]) + 1}
                row["bbox"] = [left, top, right - left, bottom - top]
                row["area"] = (right - left) * (bottom - top)
                row[name] = int(more[at]) if name == "iscrowd" else float(more[at])
                if masks:
                    row |= {"segmentation": outlines[at], "area": float(coco.area(outlines[at]))}
                rows.append(row)
    sets = [COCO({**shared, "annotations": rows}) for rows in (objects, detections)]
    judge = COCOeval_faster(*sets, "segm" if masks else "bbox", print_function=lambda *_: None)
    judge.run()
    return judge


def by_torchmetrics(tallies, *, masks=False):
    """What torchmetrics says, by pycocotools."""
    metric = MeanAveragePrecision(
        iou_type="segm" if masks else "bbox", class_metrics=True, backend="pycocotools", extended_summary=True
    )
    metric.warn_on_many_detections = False
    for one in tallies:
        found = {"scores": torch.from_numpy(one.scores), "labels": torch.from_numpy(one.classes)}
        true = {"labels": torch.from_numpy(one.true_classes), "iscrowd": torch.from_numpy(one.crowd.astype(int))}
        if masks:
            found["masks"], true["masks"] = (
                torch.from_numpy(coco.decode(list(each)).transpose(2, 0, 1).astype(bool))
                if each
                else torch.zeros(0, SIDE, SIDE, dtype=torch.bool)
                for each in (one.masks, one.true_masks)
            )
        else:
            found["boxes"], true["boxes"] = torch.from_numpy(one.boxes), torch.from_numpy(one.true_boxes)
        metric.update([found], [true])
    return metric.compute()
