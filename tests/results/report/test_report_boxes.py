"""The page of boxes: a table, curves and mistakes of every class, boxes and objects drawn where they are."""

import json
import re

import numpy as np
import pytest
from detections import SIDE, drawn
from PIL import Image

from transferkit.core.csv import csv_text
from transferkit.core.targets import TargetSpec
from transferkit.models.answers.detection import BoxScores
from transferkit.results.boxes.drawn import around, scene
from transferkit.results.boxes.judged import COLUMNS, Judged, JudgedBox, JudgedObject
from transferkit.results.predict.boxes import BoxOutput
from transferkit.results.report.boxes import box_comparison, box_sections, judged_kinds, mistake_chart, precision_chart
from transferkit.runs.files import RunFiles

HOSTILE = "<script>alert(1)</script>"
NAMES = ("cat", "$x$", HOSTILE)


class Files(RunFiles):
    """A run whose task is known by its parts alone."""

    @property
    def predictions(self):
        return self.rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of pictures that are all there but one."""
    folder = tmp_path_factory.mktemp("boxes")
    tallies = drawn(count=9)
    spec = TargetSpec(NAMES)
    values = BoxScores().measure(tallies, None, spec)
    cells = BoxOutput().rows(tallies, None, spec)
    rows = []
    for number, row in enumerate(cells):
        path = folder / f"{number}.png"
        if number:
            Image.fromarray(np.full((SIDE, SIDE, 3), 20 * number, dtype=np.uint8)).save(path)
        rows.append({"split": "val", "path": str(path), **dict(zip(COLUMNS, row, strict=True))})
    (folder / "metrics.json").write_text(json.dumps({"task": "detection", "val": values}), encoding="utf-8")
    (folder / "table.csv").write_text(csv_text([list(rows[0]), *(list(row.values()) for row in rows)]), "utf-8")
    files = Files(folder, lenient=True)
    files.rows = rows
    return files


def body(sections, key):
    return next(str(one.body) for one in sections.sections if one.key == key)


def test_every_part_is_on_the_page(run):
    sections = box_sections(run)
    assert [one.key for one in sections.sections] == ["classes", "mistakes", "worst"]
    assert sections.title == "3 classes of objects" and "right" in sections.sentences[0]
    judged = [Judged.read(row) for row in run.rows]
    text = body(sections, "mistakes")
    wrong, missed = sum(len(one.wrong) for one in judged), sum(len(one.missed) for one in judged)
    assert f"{wrong:,} are wrong" in text and f"{missed:,} are missed" in text
    assert text.count("<figure>") == 1 + min(12, wrong) + min(12, missed)  # the chart, too
    whole = body(sections, "worst")
    assert whole.count("<figcaption>") == 6 and "data:image/jpeg" in whole
    everything = "".join(str(one.body) for one in sections.sections)
    assert HOSTILE not in everything and "&lt;script&gt;" in everything


def test_pictures_that_are_gone_or_not_wanted(run):
    drawn_once = body(box_sections(run), "worst") + body(box_sections(run), "mistakes")
    assert "0.png" in drawn_once and drawn_once.count("<img") < drawn_once.count("<figcaption>")
    assert "<img" not in "".join(str(one.body) for one in box_sections(run, pictures=False).sections)


def test_a_run_without_figures_has_no_part(tmp_path):
    (tmp_path / "metrics.json").write_text('{"task": "detection"}', encoding="utf-8")
    assert box_sections(RunFiles(tmp_path, lenient=True)).sections == ()


def test_charts_say_what_they_show(run):
    chart = precision_chart(run.metrics["val"], "curves")
    assert len(chart.legend) == 3 and "area below is the average precision" in chart.description
    counts = judged_kinds(Judged.read(row) for row in run.rows)
    assert mistake_chart(counts, "kinds").description.endswith(f"{counts['missed']:,} missed")
    assert mistake_chart(dict.fromkeys(counts, 0), "kinds") is None
    assert precision_chart({"per_class": {}}, "curves") is None


def test_runs_side_by_side(run):
    page = str(box_comparison([run, run], ["one", "other"], "val").sections[0].body)
    assert page.count('<th scope="row">') == 3 and "other" in page
    assert box_comparison([run], ["one"], None).sections == ()


# ---- drawing ------------------------------------------------------------------------------------------------------


PICTURE = np.zeros((100, 400, 3), dtype=np.uint8)
BOX = JudgedBox((40.0, 20.0, 80.0, 60.0), "cat", 0.9, "right", 0.8)
LOST = JudgedObject((380.0, 0.0, 400.0, 20.0), "dog", "missed", 0.0)


def test_boxes_lie_where_they_are():
    one = scene(PICTURE, Judged((BOX,), (LOST,)), 200)
    assert (one.width, one.height) == (200, 50)
    lost, told = one.marks
    assert (told.left, told.top, told.width, told.height, told.style) == (20.0, 10.0, 20.0, 20.0, "right")
    assert told.text == "cat 0.90" and lost.text == "missed dog" and lost.style == "missed"
    assert lost.text_left + lost.text_width <= 200 and lost.text_top >= 0


def test_names_never_lie_on_each_other():
    crowd = tuple(JudgedBox((float(at), 20.0, at + 40.0, 60.0), "cat", 0.9, "wrong", 0.8) for at in range(30))
    named = [mark for mark in scene(PICTURE, Judged(crowd), 200).marks if mark.text]
    assert 1 < len(named) < 30
    for at, one in enumerate(named):
        for other in named[at + 1 :]:
            apart = abs(one.text_left - other.text_left) >= min(one.text_width, other.text_width)
            assert apart or abs(one.text_top - other.text_top) >= 12


@pytest.mark.parametrize("box", [(0, 0, 10, 10), (390, 90, 400, 100), (0, 0, 400, 100), (200, 50, 200, 50)])
def test_a_part_lies_within_the_picture_and_holds_the_box(box):
    left, top, right, bottom = around(tuple(map(float, box)), (100, 400))
    assert 0 <= left <= box[0] and 0 <= top <= box[1] and box[2] <= right <= 400 and box[3] <= bottom <= 100
    one = scene(PICTURE, Judged((BOX,)), 280, part=(left, top, right, bottom))
    assert max(one.width, one.height) == 280


def test_the_chosen_one_alone_is_named_in_a_part():
    other = JudgedBox((45.0, 20.0, 85.0, 60.0), "dog", 0.7, "double", 0.6)
    one = scene(PICTURE, Judged((BOX, other)), 280, part=around(other.box, (100, 400)), chosen=other)
    assert [(mark.text, mark.strong) for mark in one.marks] == [("", False), ("dog 0.70", True)]
    assert re.fullmatch(r"data:image/jpeg;base64,\S+", one.image)
