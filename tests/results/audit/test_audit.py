"""The whole audit by the command: what it finds, what it writes, and what it does where something is missing."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.core.records import SkippedFile
from transferkit.data.scan.records import Kind, ScannedFile
from transferkit.results.audit import network
from transferkit.results.audit.page import LISTED, SHOWN, write_page
from transferkit.results.audit.record import Audit, Issue, Row


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def scene(seed, size=(48, 40)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def photos(root, labels=("cat", "dog"), count=10):
    for number, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for picture in range(count):
            scene(100 * number + picture).save(root / label / f"{picture:02}.png")
    return root


def findings(place):
    table = json.loads((place / "check.json").read_text(encoding="utf-8"))
    by_kind = {}
    for finding in table["findings"]:
        for case in finding["cases"]:
            names = sorted(Path(picture["path"]).name for picture in case.get("pictures", ()))
            by_kind.setdefault(finding["kind"], []).append(names)
    return by_kind, table


def spoilt(root):
    photos(root, count=30)
    (root / "cat" / "cut.jpg").write_bytes((root / "cat" / "00.png").read_bytes()[:200])
    scene(1).save(root / "cat" / "named.jpg", "PNG")
    shutil.copy(root / "dog" / "05.png", root / "cat" / "two labels.png")
    scene(900).save(root / "cat" / "again.bmp")
    scene(900).save(root / "cat" / "again.png")
    scene(102, (96, 80)).save(root / "dog" / "larger.png")
    Image.new("RGB", (48, 40), (9, 9, 9)).save(root / "dog" / "plain.png")
    scene(901, (480, 8)).save(root / "dog" / "long.png")
    scene(902).save(root / "dog" / "hidden.dat", "PNG")
    return root


def test_every_kind_is_told_and_a_manifest_leaves_it_out(tmp_path, command):
    data = spoilt(tmp_path / "d")
    status, out, err = command("check", "--data", "d", "--quick", "--out", "o")
    assert status == 3 and "finetune would refuse" in err
    kinds, table = findings(tmp_path / "o")
    assert kinds["unreadable"] == [["cut.jpg"]]
    assert ["named.jpg"] in kinds["wrong-name"] and "hidden.dat" in out
    assert kinds["leak"] == [["05.png", "two labels.png"]]
    assert ["again.bmp", "again.png"] in kinds["copy"]
    assert ["02.png", "larger.png"] in kinds["near-copy"]
    assert kinds["one-colour"] == [["plain.png"]]
    assert kinds["size"] == [["long.png"]]
    assert any("--quick" in reason for reason in table["left_out"])
    assert "larger.png" in (tmp_path / "o" / "check.html").read_text(encoding="utf-8")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    status, out, err = command("check", "--data", "d", "--quick", "--fix", "clean.csv")
    assert (status, err) == (0, "") and "next     transferkit finetune --data clean.csv" in out
    rows = (tmp_path / "clean.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "path,label,group"
    names = [row.split(",")[0] for row in rows[1:]]
    gone = {"cut.jpg", "two labels.png", "05.png", "plain.png"}
    assert not gone & {Path(name).name for name in names if name != "d/cat/05.png"}
    assert sum("again" in name for name in names) == 1
    groups = {row.split(",")[0]: row.split(",")[2] for row in rows[1:]}
    assert groups["d/dog/larger.png"] == groups["d/dog/02.png"] != ""
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert command("check", "--data", "clean.csv", "--quick")[0] == 0


def test_nothing_is_replaced_unasked(tmp_path, command):
    photos(tmp_path / "d")
    (tmp_path / "clean.csv").write_text("mine", encoding="utf-8")
    status, _, err = command("check", "--data", "d", "--quick", "--fix", "clean.csv")
    assert status == 2 and "--overwrite" in err
    assert (tmp_path / "clean.csv").read_text(encoding="utf-8") == "mine"
    assert command("check", "--data", "d", "--quick", "--out", "o")[0] == 0
    status, _, err = command("check", "--data", "d", "--quick", "--out", "o")
    assert status == 2 and "--overwrite" in err
    assert command("check", "--data", "d", "--quick", "--out", "o", "--fix", "clean.csv", "--overwrite")[0] == 0
    assert command("check", "--data", "clean.csv", "--quick", "--fix", "clean.csv", "--overwrite")[0] == 2


def test_a_manifest_elsewhere_names_its_root(tmp_path, command):
    photos(tmp_path / "far" / "d")
    (tmp_path / "here").mkdir()
    status, out, _ = command("check", "--data", "far/d", "--quick", "--fix", "here/clean.csv")
    assert status == 0 and "--root far/d" in out
    assert "cat/00.png,cat" in (tmp_path / "here" / "clean.csv").read_text(encoding="utf-8")
    assert command("check", "--data", "here/clean.csv", "--root", "far/d", "--quick")[0] == 0


def test_a_default_place_that_cannot_be_written_costs_the_page(tmp_path, command):
    photos(tmp_path / "d")
    (tmp_path / "runs").write_text("in the way", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status, out, err = command("check", "--data", "d", "--quick")
    assert status == 0 and "cat" in out and "no check.html" in err
    assert command("check", "--data", "d", "--quick", "--out", "runs")[0] == 74


def test_small_and_odd_data_sets(tmp_path, command):
    (tmp_path / "empty").mkdir()
    assert command("check", "--data", "empty", "--quick")[0] == 3
    photos(tmp_path / "one", labels=("cat",))
    status, _, err = command("check", "--data", "one", "--quick", "--out", "o1")
    assert status == 3 and "at least 2 classes" in err
    assert [finding["kind"] for finding in findings(tmp_path / "o1")[1]["findings"]] == ["one-class"]
    photos(tmp_path / "two", count=1)
    assert command("check", "--data", "two", "--quick", "--out", "o2")[0] == 0


def test_pictures_of_one_colour_alone(tmp_path, command):  # fault 107
    """None has a sketch to compare, all have features."""
    for label in ("cat", "dog"):
        (tmp_path / "flat" / label).mkdir(parents=True)
        for number in range(6):
            grey = 20 * number + (label == "dog")
            Image.new("RGB", (48, 40), (grey, grey, 9)).save(tmp_path / "flat" / label / f"{number}.png")
    words = ("--backbone", "test_resnet", "--weights", "random", "--image-size", 32, "--accelerator", "cpu")
    status, out, err = command("check", "--data", "flat", *words, "--workers", 0, "--store", "store", "--out", "o")
    assert status == 0, err
    assert "12 pictures" in out
    assert "one colour" in out


def test_without_weights_the_rest_is_done(tmp_path, command):
    photos(tmp_path / "d")
    words = ("check", "--data", "d", "--weights", "nowhere.safetensors")
    status, out, _ = command(*words, "--out", "o")
    assert status == 0 and "left out: likely wrong labels" in out and "nowhere.safetensors" in out
    assert findings(tmp_path / "o")[1]["features"] is None
    status, _, err = command("check", "--data", "d", "--backbone", "resnet_18", "--out", "p")
    assert status == 4 and "unknown backbone" in err and not (tmp_path / "p" / "check.json").exists()


def test_an_interrupt_leaves_nothing_half_written(tmp_path, command, monkeypatch):
    photos(tmp_path / "d")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(network, "look", stop)
    monkeypatch.setattr(network, "prepare", lambda config: object())
    status, _, err = command("check", "--data", "d")
    assert status == 130 and "SIGINT" in err
    assert not (tmp_path / "runs" / "d-check-1").exists()


def test_the_page_shows_the_first_and_the_table_all(tmp_path):
    names = [f"d/cat/<b>{number}.png" for number in range(100_000)]
    issue = Issue(Kind.NOTE, "a <script> of a message", tuple(Row((name,), "text") for name in names))
    audit = Audit(
        data="d", files={name: ScannedFile(name, "cat", "train") for name in names}, sizes={"train": 100_000},
        classes=("cat",), counts={"train": {"cat": 100_000}}, issues=(issue,),
        skipped=tuple(SkippedFile(name, "no picture") for name in names),
    )  # fmt: skip
    write_page(audit, tmp_path / "check.html")
    text = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert len(text) < 300_000 and "100,000" in text and "<b>0.png" not in text and "<script> of" not in text
    assert text.count("&lt;b&gt;") <= 2 * LISTED + SHOWN
    assert len(audit.to_json()["findings"][0]["cases"]) == 100_000


def test_pictures_are_decoded_as_the_options_say(tmp_path, command):
    """Over white nothing is to be seen on them, and 12 bits are no 16."""
    data = photos(tmp_path / "d")
    seen = np.zeros((40, 48, 4), np.uint8)
    seen[..., :3] = 255
    seen[10:20, 10:30, 3] = 255
    Image.fromarray(seen).save(data / "cat" / "clear.png")
    deep = np.linspace(0, 4095, 48 * 40).reshape(40, 48).astype(np.uint16)
    Image.fromarray(deep).save(data / "dog" / "deep.png")
    scene(1, (400, 400)).save(data / "dog" / "large.png")

    def kinds(place, *flags):
        status, _, _ = command("check", "--data", "d", "--quick", "--out", place, *flags)
        by_kind, table = findings(tmp_path / place)
        return status, by_kind, " ".join(finding["message"] for finding in table["findings"])

    status, by_kind, message = kinds("usual")
    assert status == 0 and by_kind["one-colour"] == [["clear.png"]]
    assert "laid over white" in message and "--grey-bits 12" in message
    status, by_kind, message = kinds("named", "--ground", "black", "--grey-bits", "12")
    assert status == 0 and "one-colour" not in by_kind
    assert "laid over black" in message and "--grey-bits" not in message
    pages = [(tmp_path / place / "check.html").read_text(encoding="utf-8") for place in ("usual", "named")]
    assert len(set(pages)) == 2
    status, by_kind, _ = kinds("small", "--max-pixels", "50000")
    assert status == 3 and by_kind["unreadable"] == [["large.png"]]
