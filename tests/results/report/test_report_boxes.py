"""The page of boxes: a table, curves and mistakes of every class, boxes and objects drawn where they are."""

import json
import re

import numpy as np
import pytest
from detections import SIDE, drawn
from PIL import Image
from report_runs import metrics, write_run

from transferkit.core.csv import csv_text
from transferkit.core.targets import TargetSpec
from transferkit.models.answers.detection import BoxScores
from transferkit.results.boxes.drawn import around, scene
from transferkit.results.boxes.judged import COLUMNS, Judged, JudgedBox, JudgedObject
from transferkit.results.predict.boxes import BoxOutput
from transferkit.results.report.boxes import box_comparison, box_sections, judged_kinds, mistake_chart, precision_chart
from transferkit.results.report.compare import compare_runs
from transferkit.results.report.facts import baseline
from transferkit.results.report.report import write_report
from transferkit.runs.curves import history_charts
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


@pytest.mark.parametrize(("kept", "final", "change"), [(1, 0.3, "+20.0 points"), (None, 0.1, "No epoch")])
def test_a_probe_is_held_against_what_is_measured_as_it_is(run, tmp_path, kept, final, change):  # fault 197
    """A finished run is measured at the pictures' own size, epochs on the square: the two are not subtracted."""
    phases = [{"name": "probe", "epochs": 1, "val_map": 0.1}, {"name": "finetune", "epochs": 2, "val_map": 0.9}]
    selection = {"epoch": kept, "kept": "the solved probe" if kept is None else f"epoch {kept}"}
    values = json.loads((run.run / "metrics.json").read_text(encoding="utf-8"))
    values["val"]["figures"] = [figure.to_dict() for figure in BoxScores().figures(values["val"])]
    values |= {"phases": phases, "selection": selection}
    (tmp_path / "metrics.json").write_text(json.dumps(values), encoding="utf-8")
    rows = [("phase", "epoch", "train_loss", "val_loss", "val_map"), ("probe", 0, 3.5, 1.0, 0.1)]
    rows += [("finetune", 1, 2.0, 0.9, 0.3), ("finetune", 2, 1.5, 0.8, 0.2)]
    (tmp_path / "history.csv").write_text(csv_text(rows), encoding="utf-8")
    files = RunFiles(tmp_path, lenient=True)
    said = baseline(files)
    assert [row["value"] for row in said["rows"]] == [0.1, final]
    assert change in said["verdict"] and "the square that the network sees" in said["verdict"]
    assert not any(row["ci"] for row in said["rows"]) and "Yes" not in said["verdict"]
    charts = history_charts(files.history, {}, files.followed, val_loss=files.epochs.val_loss)
    assert [chart.title for chart in charts[:2]] == ["Loss in training", "Loss on val: one minus the F1 of boxes"]
    together = history_charts(files.history, {}, files.followed)
    assert [chart.title for chart in together][:1] == ["Loss"] and len(together) == len(charts) - 1


def test_a_page_says_how_epochs_are_measured(tmp_path):  # fault 197
    def text_of(run):
        write_report([run], quiet=True)
        return (run / "report.html").read_text(encoding="utf-8")

    assert "Epochs are measured on the square" not in text_of(write_run(tmp_path / "classes", data=tmp_path))
    text = text_of(write_run(tmp_path / "boxes", data=tmp_path, measured=metrics(task="detection")))
    assert "Epochs are measured on the square" in text and "Loss on val: one minus the F1 of boxes" in text


def test_runs_of_different_answers_share_no_axis(tmp_path):  # fault 200
    runs = [write_run(tmp_path / "boxes", data=tmp_path, measured=metrics(task="detection")),
            write_run(tmp_path / "classes", data=tmp_path)]  # fmt: skip
    values = compare_runs([RunFiles(run, lenient=True) for run in runs])
    titles = [chart.title for chart in values["curves"]]
    assert [title for title in titles if "loss" in title] == [
        "Validation loss, detection", "Validation loss, classification",
    ]  # fmt: skip
    assert any("different kinds of answers (detection, classification)" in warning for warning in values["warnings"])
    alone = compare_runs([RunFiles(run, lenient=True) for run in (runs[1], runs[1])])
    assert [chart.title for chart in alone["curves"] if "loss" in chart.title] == ["Validation loss"]
    assert not any("different kinds" in warning for warning in alone["warnings"]) and alone["solved"]
