"""The page about a run: what it says, what it leaves out, and that nothing in it can run or be fetched."""

import base64
import errno
import hashlib
import io
import itertools
import json
import re
import shlex
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image
from report_runs import CLASSES, HOSTILE, Page, draw, draw_all, figures, history, metrics, plan, predictions, write_run

from transferkit.cli.parser import parse_options
from transferkit.core.errors import CheckpointError, ConfigError, StorageError
from transferkit.core.text import visible
from transferkit.models.figures.paired import Outcomes, compare
from transferkit.options.features import ProbeConfig
from transferkit.options.fields import make_config
from transferkit.options.results import ReportConfig
from transferkit.options.training import FinetuneConfig
from transferkit.results.report import command as report_command
from transferkit.results.report.report import report, write_report
from transferkit.runs.curves import rates_chart
from transferkit.runs.files import read_run
from transferkit.show import charts
from transferkit.show import svg as report_svg
from transferkit.training.plan.options import resolve_options, resolve_phases

GROUPS = ("stem", "layer1", "head")


@pytest.fixture(autouse=True)
def sketched(request, monkeypatch):
    """Leave the drawing of charts out, which takes most of the time, where a test does not ask for `drawn`."""
    if "drawn" not in request.fixturenames:
        box = '<svg class="chart" role="img" aria-label="{}"></svg>'
        monkeypatch.setattr(report_svg, "svg_of", lambda figure, name, text: Markup(box).format(visible(text)))


@pytest.fixture
def drawn():
    """Charts are drawn."""


@pytest.fixture(scope="module")
def drawn_page(tmp_path_factory):
    """The page of a run, with its charts."""
    root = tmp_path_factory.mktemp("drawn")
    return page_of(write_run(root / "run", data=root / "data"))


@pytest.fixture
def run(tmp_path):
    """A run whose pictures are not there."""
    return write_run(tmp_path / "run", data=tmp_path / "data")


def page_of(*runs, **options):
    return Page(write_report(runs, **options).read_text(encoding="utf-8"))


# ---- what it says -----------------------------------------------------------------------------------------------


def test_headline_says_test_with_its_interval(run):
    text = page_of(run).text
    assert "Accuracy on 12 test pictures 75.0 %" in text
    assert "9 of 12 test pictures were classified correctly." in text
    assert "anything from 50.0 % to 95.0 %" in text
    assert "Always answering “<script>alert(1)</script>”, the most frequent class, would give 50.0 %." in text
    assert "Read with care" not in text


@pytest.mark.parametrize(
    ("measured", "warned"),
    [
        (metrics(), False),  # test was not looked at
        ({key: value for key, value in metrics().items() if key != "test"}, True),
        ({"val": figures(), "selection": {"monitor": None, "note": "nothing was chosen on val"}}, False),
    ],
)
def test_a_split_that_something_was_chosen_on_is_read_with_care(tmp_path, measured, warned):
    text = page_of(write_run(tmp_path / "run", data=tmp_path, measured=measured)).text
    assert ("Read with care: the epoch was chosen on val, so val is optimistic" in text) == warned
    assert ("Nothing was chosen on val." in text) == ("test" not in measured and not warned)


def test_no_mistake_is_no_certainty(tmp_path):
    perfect = figures(confusion=[[10, 0, 0], [0, 10, 0], [0, 0, 10]], acc_ci=[1.0, 1.0])
    text = page_of(write_run(tmp_path / "run", data=tmp_path, measured=metrics(test=perfect))).text
    assert "up to 10.0 % of all such pictures may still go wrong" in text  # 3 / 30
    assert "100.0 % to 100.0 %" not in text
    assert "There are no confusions" in text


@pytest.mark.parametrize(
    ("probe", "kept", "verdict"),
    [
        (0.70, "epoch 2", "+5.0 points on val. The probe lies inside the fine-tuned model's interval"),
        (0.45, "epoch 2", "Yes: +30.0 points on val, and the probe lies below"),
        (0.99, "epoch 2", "No: \u221224.0 points on val, and the probe lies above"),
        (0.75, "the solved probe", "No epoch of fine-tuning was better on val than the probe"),
    ],
)
def test_the_probe_is_the_baseline(tmp_path, probe, kept, verdict):
    measured = metrics()
    measured["phases"][0]["val_acc"] = probe
    measured["selection"]["kept"] = kept
    assert verdict in page_of(write_run(tmp_path / "run", data=tmp_path, measured=measured)).text


def test_figures_before_and_after_calibration(run):
    page = page_of(run)
    assert "0.061 0.142 uncalibrated" in page.text
    assert "ECE was 0.142 before calibration and is 0.061 after it." in page.text
    assert "a temperature of 1.4: the model was too sure of itself." in page.text
    assert "fitted on validation pictures, cross-fitted over 5 folds" in page.text


def test_a_class_without_pictures_is_not_known(run):
    page = page_of(run)
    assert [cell["data-value"] for cell in page.all("td", class_="num") if "data-value" in cell][:4] == [
        "6", str(5 / 6), "1.0", str(10 / 11),
    ]  # fmt: skip
    assert "$x$ 0 n/a 0.0 % n/a" in page.text


def test_confusions(run):
    page = page_of(run)
    cells = [attrs for attrs in page.all("td") if "cell" in attrs.get("class", "").split()]
    assert [int(cell["data-n"]) for cell in cells] == [5, 1, 0, 0, 4, 2, 0, 0, 0]
    assert [cell["class"].split()[1] for cell in cells] == [
        "right", "wrong", "none", "none", "right", "wrong", "none", "none", "none",
    ]  # fmt: skip
    assert [cell["tabindex"] for cell in cells] == ["0"] + 8 * ["-1"]
    assert "a&b $x$ 2 33.3 %" in page.text


def test_many_classes_have_the_top_confusions_instead_of_the_matrix(tmp_path):
    names = [f"class{number:02d}" for number in range(31)]
    matrix = np.eye(31, dtype=int) * 3
    matrix[4, 9] = 7
    measured = metrics(test=figures(names, matrix.tolist()), val=figures(names, matrix.tolist()))
    run = write_run(tmp_path / "run", data=tmp_path, names=names, confusion=matrix.tolist(), measured=measured)
    page = page_of(run)
    assert page.all("table", role="grid") == []
    assert "class04 class09 7 70.0 %" in page.text
    assert len(page_of(write_run(tmp_path / "few", data=tmp_path)).all("table", role="grid")) == 1


def test_the_surest_mistakes_come_first(run):
    text = page_of(run).text
    assert "3 of 12 test pictures were classified wrongly." in text
    # The 12 pictures are stated with 0.50, 0.51, ...: of the three wrong ones the last is the surest.
    places = [text.index(name) for name in ("test/1/11.jpg", "test/1/10.jpg", "test/0/5.jpg")]
    assert places == sorted(places)
    assert "called $x$ 61.0 % , is a&b 10.0 % test/1/11.jpg" in text


def test_data_summary(tmp_path):
    skipped = [{"path": str(tmp_path / "data" / f"bad{i}.jpg"), "reason": "truncated"} for i in range(25)]
    told = {"skipped": skipped, "notes": ["2 pictures are the same file"]}
    text = page_of(write_run(tmp_path / "run", data=tmp_path / "data", data_json=told)).text
    assert "The largest class ($x$, 30 train pictures) has 3.0 times the pictures of the smallest" in text
    assert "2 pictures are the same file" in text
    assert "25 files were left out bad0.jpg : truncated" in text
    assert "and 5 more" in text


def test_what_was_done_to_the_weights(tmp_path):
    extra = {
        "interpolation": {"alpha": 0.6, "alphas": [0, 0.6, 1], "val_acc": [0.5, 0.8, 0.7], "val_loss": [1, 1, 1]},
        "recalibrated_bn": 20,
        "snapshots": {"val": {"acc": 0.9, "each_acc": [0.7, 0.8]}},
    }
    text = page_of(write_run(tmp_path / "run", data=tmp_path, measured=metrics(**extra), config={"ema": 0.99})).text
    assert "exponential moving average (decay 0.99)" in text
    assert "0.6 of the fine-tuned ones, chosen on val (50.0 % at 0, 70.0 % at 1)" in text
    assert "The statistics of 20 batch-norm layers" in text
    assert "2 snapshots together reach 90.0 % on val; alone they reach 70.0 % to 80.0 %." in text


def test_a_probe_run(tmp_path):
    curve = [{"C": 0.01, "acc": 0.5, "acc_std": 0.1, "nll": 1.0}, {"C": 1.0, "acc": 0.7, "acc_std": 0.1, "nll": 0.8}]
    depth = [{"layer": f"layer{i}", "width": 8, "acc": 0.5, "acc_low": 0.4, "acc_high": 0.6} for i in range(3)]
    labels = [{"share": s, "rows": 100 * s, "acc": 0.5 + s / 4, "acc_min": 0.4, "acc_max": 0.8} for s in (0.1, 1.0)]
    measured = {
        "val": figures(), "phases": [{"name": "probe", "epochs": 0, "train_acc": 0.9, "val_acc": 0.7, "time_s": 3.0}],
        "probe": {"classifier": "logistic", "layer": "pooled", "C": 1.0, "curve": curve}, "depth": depth,
        "learning_curve": labels, "time_s": 4.0, "environment": {"torch": "2.11"},
    }  # fmt: skip
    run = write_run(tmp_path / "run", data=tmp_path, measured=measured, config={"classifier": "logistic"})
    for name in ("plan.json", "history.csv"):
        (run / name).unlink()
    page = page_of(run)
    assert [label["aria-label"] for label in page.all("svg")] == [
        "Cross-validated accuracy over 2 values of C; chosen: 1",
        "Cross-validated log loss over 2 values of C; chosen: 1",
        "Accuracy of a probe on val over 3 layers; best: layer0, 50.0%",
        "Accuracy on val over 2 amounts of labels, from 52.5% with 10 to 75.0% with 100",
        "Reliability diagram of the validation pictures in 6 bins. The largest share of the error: where 97% were "
        "stated on average, 75% of 2 were right.",
    ]  # fmt: skip
    assert "transferkit probe --config" in page.text
    assert "Was fine-tuning worth it?" not in page.text


def evaluation(tmp_path, **changes):
    side = {"first": 0.75, "second": 0.5, "difference": 0.25, "ci": [0.1, 0.4]}
    told = {"n": 12, "acc": side, "loss": side, "mcnemar_p": 0.2, "left_out": 3, "verdict": "one is right on 3 more",
            "table": {"both_right": 5, "only_first": 4, "only_second": 1, "both_wrong": 2}}  # fmt: skip
    measured = {
        "all": figures(), "run": "/models/best", "data": "/photos", "seen_in_training": 2, "seen_in_val": 0,
        "left_out": {"unknown_classes": 4, "unreadable": 1, "seen_in_training": 0}, "time_s": 1.0,
        "against": {"run": "/models/old", "names": ["best", "old"], "all": told}, **changes,
    }  # fmt: skip
    run = write_run(
        tmp_path / "evaluation", data=tmp_path, measured=measured, rows=predictions(tmp_path, split="all"),
        config={"run": "/models/best", "data": "/my photos", "tta": "flip", "against": "/models/old"},
        data_json={"unknown_classes": {"owl": 4}, "missing_classes": ["$x$"]},
    )  # fmt: skip
    config = run / "config.yaml"
    config.write_text(
        "\n".join(
            line for line in config.read_text(encoding="utf-8").splitlines() if not line.startswith(("epo", "pha"))
        ),
        encoding="utf-8",
    )
    for name in ("plan.json", "history.csv", "pictures.csv"):
        (run / name).unlink()
    return run


def test_an_evaluation(tmp_path):
    text = page_of(evaluation(tmp_path)).text
    assert "best measured on my photos" in text
    assert "Accuracy on 12 labelled pictures" in text
    assert "Read with care: the run was trained on 2 of these pictures" in text
    assert "Against old one is right on 3 more. both right only best only old both wrong 5 4 1 2" in text
    assert "3 pictures of classes that the other run lacks" in text
    assert "4 pictures of 1 classes that the model lacks were left out: owl (4)." in text
    assert "There are no pictures of 1 classes that the model knows: $x$." in text
    assert "transferkit evaluate /models/best '/my photos' --against /models/old --tta flip --out NEW" in text


# ---- what it leaves out -----------------------------------------------------------------------------------------


def test_an_older_run_has_fewer_parts(run):
    for name in ("pictures.csv", "predictions.csv", "plan.json", "data.json"):
        (run / name).unlink()
    measured = metrics()
    for split in ("val", "test"):
        for key in ("reliability", "uncalibrated"):
            del measured[split][key]
    del measured["calibration"]
    (run / "metrics.json").write_text(json.dumps(measured), encoding="utf-8")
    page = page_of(run)
    headings = list(re.findall(r"<h2[^>]*>([^<]+)", (run / "report.html").read_text(encoding="utf-8")))
    assert headings == ["Accuracy on 12 test pictures", "Was fine-tuning worth it?", "Figures", "Training", "Classes",
                        "Confusions", "Repeat it", "Environment"]  # fmt: skip
    assert "Left out of this page" not in page.text


@pytest.mark.parametrize("measured", [{"time_s": 1.0}, {"val": {"acc": 0.5}}, {"val": {"acc": None}, "phases": []}])
def test_hardly_anything_is_enough(tmp_path, measured):
    (tmp_path / "metrics.json").write_text(json.dumps(measured), encoding="utf-8")
    text = page_of(tmp_path).text
    assert ("50.0 %" in text) == (measured.get("val") == {"acc": 0.5})


def test_damaged_files_are_said(run):
    (run / "plan.json").write_text("{", encoding="utf-8")
    (run / "data.json").write_text("[]", encoding="utf-8")
    (run / "history.csv").write_text("a,b\n1\n", encoding="utf-8")
    (run / "predictions.csv").write_text("split,path\ntest,x\n", encoding="utf-8")
    (run / "config.yaml").write_text("{: [", encoding="utf-8")
    text = page_of(run).text
    for told in ("plan.json cannot be read", "data.json cannot be read (it holds no mapping)", "history.csv cannot be",
                 "predictions.csv has no column label, predicted", "config.yaml cannot be read"):  # fmt: skip
        assert told in text


def test_a_list_that_is_too_long_is_not_read(run, monkeypatch):
    monkeypatch.setattr("transferkit.runs.files.MAX_TABLE_BYTES", 1000)
    assert "pictures.csv is longer than a report reads (0 MB)" in page_of(run).text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no metrics.json, which marks a finished run"),
        ("{", r"metrics\.json: cannot be read"),
        ("[]", r"metrics\.json: cannot be read \(it holds no mapping\)"),
        ('{"val": {"acc": 1.0, "n": "many"}}', r"the figures cannot be understood \(ValueError"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        write_report([tmp_path])
    assert not (tmp_path / "report.html").exists()


def test_no_directory_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory, expected one that finetune, probe or evaluate wrote"):
        write_report([tmp_path / "none"])
    with pytest.raises(CheckpointError, match="there is no run to report on"):
        write_report([])


# ---- pictures ---------------------------------------------------------------------------------------------------


def pictures_in(page):
    found = []
    for image in page.all("img"):
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        found.append((Image.open(io.BytesIO(base64.b64decode(data))).size, image["alt"]))
    return found


def test_pictures_that_are_gone_are_said(run):
    page = page_of(run)
    assert page.all("img") == []
    assert "3 of these pictures cannot be read any more where they were" in page.text
    assert "The pictures are not where they were when the run was made" in page.text


def test_pictures_that_are_there_are_shown(run):
    draw_all(run)
    page = page_of(run)
    shown = pictures_in(page)
    assert [size for size, _ in shown] == 3 * [(224, 224)] + 12 * [(112, 112)]
    assert shown[0][1] == "test/1/11.jpg, which shows a&b"
    # The class of lowest recall first, the one that has none known last.
    assert shown[3][1] == "Picture 1 of a&b"
    assert shown[-1][1] == "Picture 4 of $x$"
    assert "There are no heat maps: the model is not in this directory." in page.text


def test_one_unreadable_picture_leaves_the_others(run):
    draw_all(run)
    (run.parent / "data" / "test" / "1" / "11.jpg").write_bytes(b"no picture")
    (run.parent / "data" / "train" / "1" / "0.jpg").write_bytes(b"no picture")
    page = page_of(run)
    assert len(pictures_in(page)) == 2 + 12
    assert "1 of these pictures cannot be read any more" in page.text


def test_pictures_can_be_left_out(run):
    draw_all(run)
    page = page_of(run, pictures=False)
    assert page.all("img") == []
    assert "cannot be read any more" not in page.text
    assert "test/1/11.jpg" in page.text


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory: random weights, three classes."""
    from transferkit.models.artifact import save_model
    from transferkit.models.backbones.registry import create_backbone
    from transferkit.models.module import TransferModule

    directory = tmp_path_factory.mktemp("model")
    backbone = create_backbone("test_resnet", weights="random", image_size=32)
    save_model(directory, TransferModule(backbone, 3, "linear", class_names=CLASSES))
    return directory


def give_model(run, model):
    for name in ("model.json", "model.safetensors"):
        (run / name).write_bytes((model / name).read_bytes())


def test_heat_maps_lie_beside_the_mistakes(run, model):
    draw_all(run)
    give_model(run, model)
    page = page_of(run)
    shown = pictures_in(page)[:6]
    assert [size for size, _ in shown] == 6 * [(224, 224)]
    assert [alt for _, alt in shown][1] == "Heat map of the evidence for $x$ in the same picture"
    assert "There are no heat maps" not in page.text


def test_the_network_sees_what_the_heat_map_is_of(run, model, monkeypatch):
    from transferkit.results.predict.predictor import load

    draw_all(run)
    give_model(run, model)
    paths = [run.parent / "data" / "test" / name for name in ("1/11.jpg", "1/10.jpg", "0/5.jpg")]
    for seed, path in enumerate(paths):
        draw(path, seed, side=700)  # so large that the decoder scales it down, as far as it may
    seen = {}

    def remember(predictor, images, targets):
        seen.update(images=images, targets=list(targets))
        return np.zeros(images.shape[:3], dtype=np.float32)

    monkeypatch.setattr("transferkit.results.explain.gradcam.heatmaps", remember)
    write_report([run])
    predictor = load(model)
    assert np.array_equal(seen["images"], np.stack([predictor.decode(path) for path in paths]))
    assert seen["targets"] == [predictor.class_names[place] for place in (2, 2, 1)]


def test_no_heat_maps_without_a_reason(run, model, monkeypatch):
    def refuse(*args):
        raise ConfigError("no part of the backbone works on a map of the picture")

    draw_all(run)
    give_model(run, model)
    monkeypatch.setattr("transferkit.results.explain.gradcam.heatmaps", refuse)
    page = page_of(run)
    assert "There are no heat maps: no part of the backbone works on a map of the picture." in page.text
    assert len(pictures_in(page)) == 3 + 12
    (run / "model.safetensors").write_bytes(b"damaged")
    assert "There are no heat maps: " in page_of(run).text


def test_the_model_is_loaded_for_mistakes_only(tmp_path, model, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the model was loaded for nothing")

    monkeypatch.setattr("transferkit.results.predict.predictor.load", fail)
    perfect = [[5, 0, 0], [0, 4, 0], [0, 0, 3]]
    measured = metrics(test=figures(confusion=perfect))
    run = write_run(tmp_path / "run", data=tmp_path / "data", confusion=perfect, measured=measured)
    draw_all(run)
    give_model(run, model)
    assert "None of the 12 test pictures was classified wrongly." in page_of(run).text
    wrong = write_run(tmp_path / "wrong", data=tmp_path / "data")
    draw_all(wrong)
    give_model(wrong, model)
    with pytest.raises(AssertionError, match="for nothing"):
        write_report([wrong])


def test_the_page_stays_small(tmp_path):
    names = [f"class{number:02d}" for number in range(20)]
    matrix = np.eye(20, dtype=int)
    matrix[0, 1:] = 1
    measured = metrics(test=figures(names, matrix.tolist()))
    run = write_run(tmp_path / "run", data=tmp_path / "data", names=names, confusion=matrix.tolist(), measured=measured)
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)  # the worst case of a JPEG
    Image.fromarray(noise).save(tmp_path / "noise.jpg", quality=90)
    for row in [*read_run(run).pictures, *read_run(run).predictions]:
        Path(row["path"]).parent.mkdir(parents=True, exist_ok=True)
        Path(row["path"]).write_bytes((tmp_path / "noise.jpg").read_bytes())
    page = write_report([run])
    assert len(Page(page.read_text(encoding="utf-8")).all("img")) == 12 + 12 * 4
    assert page.stat().st_size < 3e6


# ---- nothing runs, nothing is fetched ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """Names of everything that a user or an attacker names; its page is written, with charts and pictures."""
    tmp_path = tmp_path_factory.mktemp("hostile")
    bad = '"><script>alert(2)</script><img src="http://evil/x.png" onerror=alert(3)>'
    names = (HOSTILE, bad, "turn\u202eback\x1b[31m")
    data = tmp_path / "d'\"<b>"
    told = {"notes": [bad], "skipped": [{"path": bad, "reason": bad}]}
    measured = metrics(val=figures(names), test=figures(names), environment={bad: bad})
    measured["selection"] |= {"monitor": "val_acc", "note": bad}
    measured["phases"][1]["name"] = bad
    curves = [row if not n else (bad, *row[1:]) for n, row in enumerate(history())]
    run = write_run(
        tmp_path / "r<i>un", data=data, names=names, measured=measured, data_json=told, history=curves,
        plan=plan(groups=(bad, "x", "head")), config={"backbone": bad, "head": bad},
    )  # fmt: skip
    draw_all(run)
    write_report([run])
    return run


def test_names_cannot_become_elements(hostile_run, tmp_path):  # fault 92
    text = (hostile_run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.all("script")) == len(page.scripts) == 1
    assert page.all("b") == page.all("i", onerror="alert(3)") == []
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert HOSTILE in page.text
    assert "turn\\u202eback\\x1b[31m" in page.text
    assert not re.search("[\u202e\x1b]", text)
    other = write_run(tmp_path / "other", data=tmp_path)
    both = Page(write_report([hostile_run, other], tmp_path / "both.html").read_text(encoding="utf-8"))
    assert len(both.all("script")) == 1
    assert not any(name.startswith("on") for _, attrs in both.elements for name in attrs)


def test_nothing_is_fetched(hostile_run):  # fault 91
    page = Page((hostile_run / "report.html").read_text(encoding="utf-8"))
    for _, attrs in page.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
        assert not re.search(r"url\((?!#)", attrs.get("style", ""))
    assert [attrs["rel"] for attrs in page.all("link")] == ["icon"]
    style = (resources.files("transferkit.results") / "templates" / "report.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_lets_one_script_run(run):
    page = page_of(run)
    (policy,) = [attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert "connect-src" not in rules


def test_visible():
    assert visible("plain ünïcode 猫") == "plain ünïcode 猫"
    assert visible("a\x00b\u2066c\udcff") == "a\\x00b\\u2066c\\udcff"


# ---- charts -----------------------------------------------------------------------------------------------------


def test_charts_share_a_page(drawn_page):
    page = drawn_page
    assert len(page.all("svg")) == 4
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = set()
    for _, attrs in page.elements:
        for value in attrs.values():
            links |= set(re.findall(r"^#(.+)$|url\(#([^)]+)\)", value or ""))
    assert {a or b for a, b in links} <= set(ids)
    assert len(links) > 20


def test_charts_take_the_colours_of_the_page(drawn_page):
    page = drawn_page
    style = (resources.files("transferkit.results") / "templates" / "report.css").read_text(encoding="utf-8")
    start = next(at for at, (tag, _) in enumerate(page.elements) if tag == "svg")
    drawn = " ".join(attrs.get("style", "") for tag, attrs in page.elements[start:] if tag in ("path", "text", "use"))
    assert not re.search(r"(?:fill|stroke): ?#", drawn)
    used = set(re.findall(r"var\((--[\w-]+)\)", drawn))
    assert {"--accent", "--second", "--muted", "--line", "--ink", "--shade"} <= used
    assert used <= set(re.findall(r"(--[\w-]+):", style))


def svg_text(lines, **options):
    return str(report_svg.drawn(charts.Lines(lines, **options).chart("x", "X", "d < e")).svg)


def test_the_page_has_the_colours_of_charts_in_light():
    style = (resources.files("transferkit.results") / "templates" / "report.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[0]))
    assert {name: light[name] for name in report_svg.VARIABLES.values()} == {
        name: colour for colour, name in report_svg.VARIABLES.items()
    }


def test_charts_stay_light(drawn):
    long = plan(epochs=300, groups=tuple(f"blocks.{number}" for number in range(14)))
    long["lr"] = {key: values[:: max(1, len(values) // 200)] for key, values in long["lr"].items()}
    rates = report_svg.drawn(rates_chart(long, [("finetune", 0.5, 300.5)]))
    assert 5_000 < len(rates.svg) < 60_000
    assert [name for name, *_ in rates.legend] == ["blocks.13", "blocks.7", "blocks.0"]
    noise = np.random.default_rng(0).random(500).tolist()
    lines = [charts.Line(name, range(500), noise) for name in ("train", "val")]
    assert 5_000 < len(svg_text(lines)) < 60_000


def test_a_chart_says_what_it_holds(drawn):
    line = charts.Line("val", [1, 2, 3], [0.1, None, 0.001], charts.SECOND)
    svg = svg_text([line], log=True, phases=[("$a_b$", 0.5, 2.5), ("c", 2.5, 3.5)])
    assert 'aria-label="d &lt; e"' in svg
    assert ">$a_b$</text>" in svg  # not taken for a formula
    assert ">1e-2</text>" in svg
    assert charts.Lines([line]).chart("x", "X", "d").legend == ()


def test_many_phases_are_named_as_far_as_there_is_room(drawn):
    line = charts.Line("val", range(24), range(24))
    phases = [(f"unfreeze-layer{at}", 3 * at, 3 * at + 3) for at in range(8)]
    assert re.findall(r">(\u2026[^<]+)</text>", svg_text([line], phases=phases)) == [
        f"\u2026layer{at}" for at in range(8)
    ]
    many = [(f"phase {at}", at, at + 1) for at in range(30)]
    assert "\u2026" not in svg_text([line], phases=many)


# ---- access -----------------------------------------------------------------------------------------------------


def luminance(colour):
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(colour, share, ground):
    pairs = [(int(colour[at : at + 2], 16), int(ground[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def test_contrast_is_computed_as_the_standard_says():
    assert contrast("#ffffff", "#000000") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # known to fall just short


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_contrast(mode):
    from transferkit.results.report.counts import MAX_TINT

    style = (resources.files("transferkit.results") / "templates" / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if mode:
        dark = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", blocks[1]))
        assert dark.keys() == colours.keys()
        colours = dark
    for ground in ("--bg", "--surface", "--shade", "--shade-2"):
        for text in ("--ink", "--muted", "--accent", "--second"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["--ink"], colours["--warn"]) >= 4.5
    for line in ("--s3", "--s4", "--s5", "--s6"):
        assert contrast(colours[line], colours["--bg"]) >= 3.0, line
    for tint in ("--accent", "--second"):
        strongest = mixed(colours[tint], MAX_TINT / 100, colours["--surface"])
        assert contrast(colours["--ink"], strongest) >= 4.5, tint


def test_access(run, tmp_path):
    draw_all(run)
    for page in (page_of(run), page_of(run, write_run(tmp_path / "b", data=tmp_path), out=tmp_path / "both.html")):
        assert page.all("html") == [{"lang": "en"}]
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert all(image.get("alt") for image in page.all("img"))
        assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
        assert all(
            attrs.get("aria-label") for _, attrs in page.elements if attrs.get("role") in ("region", "img", "grid")
        )
        assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
        assert len(page.all("meta", name="viewport")) == 1
        assert len(page.all("main")) == 1


# ---- repeating it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epochs": 3, "lr": 1e-5, "clip": None, "optimizer": "sgd", "nesterov": False, "ema": 0.99, "layer_decay": 1.0},
        {"phases": "gradual", "schedule": "one_cycle", "image_size": 64, "patience": 2},
        {"phases": "probe", "interpolate": False, "batch_size": 8},
        {"phases": [{"name": "a b", "epochs": 2, "train": ["head", "layer1"], "lr": 1e-4}], "workers": 0},
        {"fixres_epochs": 2, "train_size": 32, "image_size": 64},
        {"schedule": {"name": "sgdr", "cycle_epochs": 2}, "snapshots": True, "epochs": 6},
    ],
)
def test_the_flags_give_the_same_run(tmp_path, options):
    """From options to `config.yaml`, as a run writes it, to the command of the page, and back."""
    config = resolve_options({"data": "my photos", **options})
    spelled = [phase.to_dict() for phase in resolve_phases(config, GROUPS)]
    saved = json.loads(json.dumps({**config.to_dict(), "phases": spelled}))
    run = write_run(tmp_path / "a run", data="my photos", config=saved)
    recipe, flags = (row["command"] for row in report_command.repeat_commands(read_run(run)))
    assert shlex.split(recipe) == ["transferkit", "finetune", "--config", str(run / "config.yaml"), "--out", "NEW"]
    words = shlex.split(flags)
    assert words[:2] == ["transferkit", "finetune"]
    again = make_config(FinetuneConfig, parse_options("finetune", words[2:]))
    told = {**again.to_dict(), "phases": [phase.to_dict() for phase in resolve_phases(again, GROUPS)]}
    assert json.loads(json.dumps(told)) == {**saved, "out": "NEW", "report": told["report"]}
    if not isinstance(options.get("phases"), list):
        assert "'[" not in flags  # presets by name


def test_defaults_are_left_out(tmp_path):
    config = make_config(ProbeConfig, {"data": "x"})
    saved = {key: value for key, value in vars(config).items() if key not in ("out", "quiet", "overwrite")}
    run = write_run(tmp_path / "run", data="x", config={**saved, "epochs": 3})
    (run / "config.yaml").write_text(json.dumps(saved), encoding="utf-8")
    assert [row["command"] for row in report_command.repeat_commands(read_run(run))][1] == (
        "transferkit probe --data x --out NEW"
    )


# ---- several runs -----------------------------------------------------------------------------------------------


def other_run(tmp_path, name="other", rows=None, **config):
    confusion = [[6, 0, 0], [0, 3, 3], [0, 0, 0]]
    measured = metrics(test=figures(confusion=confusion))
    data = tmp_path / "data"
    rows = rows or predictions(data)
    guesses = [CLASSES[0]] * 6 + [CLASSES[1]] * 3 + [CLASSES[2]] * 3
    rows = [(s, p, label, guess, "0.9", "0.7") for (s, p, label, *_), guess in zip(rows, guesses, strict=True)]
    return write_run(tmp_path / name, data=data, confusion=confusion, measured=measured, rows=rows, config=config)


def test_two_runs_are_compared_picture_by_picture(run, tmp_path):
    other = other_run(tmp_path, lr=0.01, epochs=4)
    page = page_of(run, other, out=tmp_path / "both.html")
    right = np.array([row[2] == row[3] for row in predictions(tmp_path / "data")])
    own = -np.log([float(row[5]) for row in predictions(tmp_path / "data")])
    expected = compare(
        Outcomes(np.arange(12) < 9, np.full(12, -np.log(0.7))), Outcomes(right, own),
        np.repeat([0, 1], 6), CLASSES[:2], names=("other", "run"),
    )  # fmt: skip
    # Same pictures, in another order: the counts and the p-value must agree, the bootstrap need not.
    assert expected["table"] == {"both_right": 8, "only_first": 1, "only_second": 1, "both_wrong": 2}
    assert "only other only run both wrong 8 1 1 2" in page.text
    assert "other and run are right on equally many of 12 pictures" in page.text
    assert "2 runs compared on test pictures" in page.text
    assert f"{HOSTILE} 6 83.3 % 100.0 % +16.7 a&b 6 66.7 % 50.0 % \u221216.7 $x$ 0 n/a n/a n/a" in page.text
    assert "option run other --lr null 0.01" in page.text
    assert "--epochs" not in page.text
    assert [svg["aria-label"] for svg in page.all("svg")] == [
        "Validation accuracy over the epochs of run, other", "Validation loss over the epochs of run, other",
    ]  # fmt: skip


def test_other_pictures_are_not_paired(run, tmp_path):
    elsewhere = predictions(tmp_path / "elsewhere")
    other = other_run(tmp_path, rows=elsewhere)
    (other / "data.json").write_text(json.dumps({"classes": list(CLASSES), "digest": "another"}), encoding="utf-8")
    text = page_of(run, other, out=tmp_path / "both.html").text
    assert "Picture by picture" not in text
    assert "The runs were not made on the same pictures" in text


def test_three_runs_warn_of_chance(run, tmp_path):
    text = page_of(run, other_run(tmp_path), other_run(tmp_path, "third"), out=tmp_path / "all.html").text
    assert "The p-values are not corrected for the 2 comparisons" in text
    assert "third against run" in text


def test_runs_without_a_common_split(run, tmp_path):
    text = page_of(run, evaluation(tmp_path), out=tmp_path / "both.html").text
    assert "The runs have no split in common (run: test, val, evaluation: all)" in text
    assert "option run evaluation verb finetune evaluate" in text


def test_runs_of_one_name_are_told_apart(tmp_path):
    first = write_run(tmp_path / "a" / "run", data=tmp_path)
    second = write_run(tmp_path / "b" / "run", data=tmp_path)
    text = page_of(first, second, out=tmp_path / "both.html").text
    assert f"{first} · {second}" in text


# ---- the file ---------------------------------------------------------------------------------------------------


def test_where_the_page_goes(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert write_report([run]) == run / "report.html"
    assert write_report([run], tmp_path) == tmp_path / "report.html"
    other = other_run(tmp_path)
    assert write_report([run, other]) == Path("report.html")
    page = report(ReportConfig(runs=[str(run)], out=str(tmp_path / "mine.html"), pictures="off"))
    assert page == tmp_path / "mine.html"
    assert capsys.readouterr().out.splitlines()[0] == f"report   {page}"
    report(ReportConfig(runs=[str(run)], quiet=True))
    assert capsys.readouterr().out == ""


def test_the_same_run_gives_the_same_bytes(run):
    draw_all(run)
    assert write_report([run]).read_bytes() == write_report([run]).read_bytes()


def test_a_full_disk_keeps_the_old_page(run, monkeypatch):
    before = write_report([run]).read_bytes()
    (run / "plan.json").unlink()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(StorageError, match=r"cannot write '.*report.html': No space left on device"):
        write_report([run])
    monkeypatch.undo()
    assert (run / "report.html").read_bytes() == before
    assert write_report([run]).read_bytes() != before


def test_paths_are_shown_below_the_data(tmp_path):
    files = read_run(write_run(tmp_path / "run", data=tmp_path / "data"))
    assert files.shown_path(str(tmp_path / "data" / "test" / "0" / "1.jpg")) == "test/0/1.jpg"
    assert files.shown_path("/elsewhere/deep/down/1.jpg") == "down/1.jpg"
    sample = read_run(write_run(tmp_path / "sample", data=tmp_path / "cache", config={"data": "sample"}))
    assert sample.shown_path(str(tmp_path / "cache" / "test" / "0" / "1.jpg")) == "0/1.jpg"


def test_the_templates_travel_with_the_package():
    names = {item.name for item in (resources.files("transferkit.results") / "templates").iterdir()}
    assert {"base.html.j2", "run.html.j2", "comparison.html.j2", "parts.html.j2", "report.css", "report.js"} <= names


# ---- any task ---------------------------------------------------------------------------------------------------


def numbers(**changes):
    """Figures of a run whose answers are numbers: no class, no share."""
    rows = [
        {"key": "mae", "label": "Mean absolute error", "value": 0.25, "ci": [0.2, 0.3], "higher_is_better": False,
         "unit": "mm", "meaning": "mean distance to the true value", "of": None},
        {"key": "r2", "label": "R2", "value": 0.5, "ci": None, "higher_is_better": True, "unit": "", "meaning": "m",
         "of": None},
        {"key": "mae", "label": "Mean absolute error", "value": 0.1, "ci": None, "higher_is_better": False,
         "unit": "mm", "meaning": "m", "of": "red"},
    ]  # fmt: skip
    return {"n": 12, "figures": rows, **changes}


@pytest.fixture
def other_task(tmp_path):
    """A run of a task that has figures and nothing else."""
    phases = [{"epochs": 0, "name": "probe", "val_mae": 0.4, "val_loss": 0.9},
              {"epochs": 4, "name": "finetune", "train_mae": 0.2, "val_mae": 0.25, "val_loss": 0.5}]  # fmt: skip
    measured = metrics(val=numbers(), test=numbers(), phases=phases, calibration={}, task="numbers")
    rows = [[cell.replace("_acc", "_mae") if isinstance(cell, str) else cell for cell in row] for row in history()]
    run = write_run(
        tmp_path / "numbers", data=tmp_path, measured=measured, history=rows, data_json={"notes": ["a note"]}
    )
    (run / "data.json").write_text(json.dumps({"notes": ["a note"]}), encoding="utf-8")
    for name in ("predictions.csv", "pictures.csv"):
        (run / name).unlink()
    return run


def test_a_page_of_figures_alone(other_task):
    page = page_of(other_task)
    assert "Mean absolute error on 12 test pictures 0.250 95 % interval 0.200 to 0.300" in page.text
    assert "could well have given anything from 0.200 to 0.300" in page.text
    assert "Yes: \u22120.150 on val, and the probe lies above the fine-tuned model's interval." in page.text
    assert "R2 m 0.500 0.500" in page.text
    assert "train mae val mae val loss" in page.text
    assert [svg["aria-label"].split(" over ")[0] for svg in page.all("svg")] == [
        "Loss", "Mean absolute error", "Learning rate",
    ]  # fmt: skip
    assert "a note" in page.text
    headings = re.findall(r"<h2[^>]*>([^<]+)", (other_task / "report.html").read_text(encoding="utf-8"))
    assert headings[1:] == ["Was fine-tuning worth it?", "Figures", "Training", "Data", "Repeat it", "Environment"]
    assert page.all("div", class_="strip") == []  # a strip is a scale of shares


def test_runs_of_another_task_are_compared(other_task, run, tmp_path):
    text = page_of(other_task, other_task, out=tmp_path / "both.html").text
    assert "Mean absolute error R2 time" in text
    assert "0.250 0.200 to 0.300 0.500" in text
    assert "Validation mean absolute error" in text
    assert "Classes" not in text
    mixed = page_of(run, other_task, out=tmp_path / "mixed.html").text
    assert "75.0 % 50.0 % to 95.0 %" in mixed and "0.250 0.200 to 0.300" in mixed
