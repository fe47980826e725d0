"""`similar`: what a search without any cleverness finds, computed once, never the picture itself unless asked for."""

import csv
import hashlib
import json
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_runs import make_mask_run
from PIL import Image
from torch import nn

import transferkit as tk
from transferkit.core.csv import csv_text
from transferkit.core.errors import CheckpointError, ConfigError, DataError, TransferkitWarning
from transferkit.data.augment.normalise import normalise
from transferkit.models.artifact import save_model
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.heads.embedding import embedding_of
from transferkit.models.module import TransferModule
from transferkit.results.predict.predictor import load
from transferkit.results.similar import gallery
from transferkit.results.similar.search import Match, Similar


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture
def similar(probed_run, store):
    def find(pictures, run=probed_run, **options):
        return tk.similar(run, pictures, **{"accelerator": "cpu", "workers": 0, "store": store, **options})

    return find


@pytest.fixture
def own(probed_run, folder, tmp_path):
    """A run of its own, whose pictures may be damaged."""
    data, run = shutil.copytree(folder, tmp_path / "data"), shutil.copytree(probed_run, tmp_path / "run")
    list_pictures(run, sorted(data.rglob("*.png")))
    return run, data


def list_pictures(run, paths):
    rows = [
        (path.parts[-3], path.parts[-2], str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths
    ]
    (run / "pictures.csv").write_text(csv_text([("split", "label", "path", "sha256"), *rows]), encoding="utf-8")


def by_definition(predictor, paths, searched, k, project=lambda rows: rows):
    """Features one by one in plain fp32, all cosines in float64, all sorted."""

    def features(path):
        view = torch.from_numpy(predictor.decode(path)[None])
        with torch.no_grad():
            row = predictor.module.backbone(normalise(view, predictor.info.preprocessing))
            return project(row)[0].double().numpy()

    rows = np.stack([features(path) for path in searched])
    nearest = []
    for path in paths:
        query = features(path)
        cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        nearest.append([(str(searched[at]), float(cosines[at])) for at in np.argsort(-cosines, kind="stable")[:k]])
    return nearest


def assert_as_defined(found, expected):
    for ours, exact in zip(found, expected, strict=True):
        assert [one.path for one in ours.matches] == [path for path, _ in exact]
        np.testing.assert_allclose([one.similarity for one in ours.matches], [cosine for _, cosine in exact], atol=1e-5)


def pictures_of(folder, split):
    return sorted((folder / split).rglob("*.png"))


# ---- what is found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [5, 8192])
def test_the_most_similar_by_definition(similar, probed_run, folder, monkeypatch, block):
    monkeypatch.setattr(gallery, "BLOCK", block)  # features are in memory block by block, those of queries too
    queries, searched = pictures_of(folder, "test"), pictures_of(folder, "train")
    found = similar(queries, top=4)
    assert_as_defined(found, by_definition(load(probed_run), queries, searched, 4))
    for one in found:
        assert one.error is None and one.same == ()
        assert all(match == Match(match.path, Path(match.path).parent.name, "train", match.similarity)
                   for match in one.matches)  # fmt: skip
    few = similar(queries[0], top=500)  # no more than there are, and none made up: facebookresearch/faiss issue 2657
    assert len(few) == 1 and len(few[0].matches) == len(searched)


def test_computed_once_for_each_model(similar, folder, decoded):  # fault 64
    queries = pictures_of(folder, "test")[:2]
    first = similar(queries)
    decoded.clear()
    assert similar(queries) == first
    assert decoded == []


def test_another_split_and_another_folder(similar, folder, tmp_path):
    query = pictures_of(folder, "train")[0]
    (of_val,) = similar(query, split="val", top=100)
    assert {one.path for one in of_val.matches} == set(map(str, pictures_of(folder, "val")))
    (everything,) = similar(query, split="all", top=100)
    assert len(everything.matches) == len(list(folder.rglob("*.png"))) - 1
    (in_data,) = similar(query, data=str(folder), split="test", top=100)
    assert {(one.label, one.split) for one in in_data.matches} == {
        (name, "test") for name in ("circle", "square", "stripes")
    }
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(pictures_of(folder, "val")):
        shutil.copy(path, flat / f"{number}.png")
    (unlabelled,) = similar(query, data=flat, top=2)
    assert [(one.label, one.split) for one in unlabelled.matches] == [("", ""), ("", "")]
    assert [one.similarity for one in unlabelled.matches] == [one.similarity for one in of_val.matches[:2]]
    (tmp_path / "list.csv").write_text("path,label\nflat/0.png,x\nflat/1.png,y\n", encoding="utf-8")
    (listed,) = similar(query, data=str(tmp_path / "list.csv"))
    assert sorted(one.label for one in listed.matches) == ["x", "y"]
    with pytest.raises(DataError, match=r"flat: has no splits, and no val - name one"):
        similar(query, data=flat, split="val")


def test_pictures_in_memory_are_like_their_files(similar, folder):
    path = pictures_of(folder, "test")[0]
    image = Image.open(path)
    from_file, *others = similar([path, path.read_bytes(), image, np.asarray(image.convert("RGB"))])
    for number, one in enumerate(others, 1):
        assert one.path == f"images[{number}]"
        assert [match.path for match in one.matches] == [match.path for match in from_file.matches]
    (alone,) = similar(np.asarray(image.convert("RGB")))
    assert [match.path for match in alone.matches] == [match.path for match in from_file.matches]


# ---- the picture itself -----------------------------------------------------------------------------------------


def test_the_picture_itself_is_said_and_left_out(similar, folder):  # fault 224
    path = pictures_of(folder, "train")[5]
    (without,) = similar(path, top=3)
    assert without.same == (str(path),)
    assert str(path) not in {one.path for one in without.matches} and len(without.matches) == 3
    (within,) = similar(path, top=4, with_same=True)
    assert within.same == (str(path),)
    assert [one.same for one in within.matches] == [True, False, False, False]
    assert within.matches[0].path == str(path) and within.matches[0].similarity == pytest.approx(1, abs=1e-6)
    assert [one.path for one in within.matches[1:]] == [one.path for one in without.matches]


@pytest.mark.parametrize("kind", ["file", "bytes", "array"])
def test_copies_under_other_bytes_are_the_picture_itself(similar, folder, tmp_path, kind):
    """As many as there may be: no list comes back short for them (idealo/imagededup issues of self-matches)."""
    searched = tmp_path / "searched"
    shutil.copytree(folder / "val", searched)
    path = pictures_of(folder, "test")[0]
    copies = [searched / f"circle/copy{number}.png" for number in range(12)]
    for number, copy in enumerate(copies):
        Image.open(path).save(copy, pnginfo=text_chunk(number))
    source = {"file": path, "bytes": path.read_bytes(), "array": np.asarray(Image.open(path).convert("RGB"))}[kind]
    (one,) = similar([source], data=searched, top=3)
    assert sorted(one.same) == sorted(map(str, copies))
    assert len(one.matches) == 3 and not {match.path for match in one.matches} & set(one.same)
    (within,) = similar([source], data=searched, top=13, with_same=True)
    assert [match.same for match in within.matches] == [True] * 12 + [False]


def text_chunk(number):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("copy", str(number))
    return info


# ---- what can be wrong ------------------------------------------------------------------------------------------


def test_files_that_are_gone_changed_or_no_pictures(own, similar):  # fault 225
    run, data = own
    train = pictures_of(data, "train")
    train[3].write_bytes(b"words")
    list_pictures(run, [*train, *pictures_of(data, "val")])
    train[0].unlink()
    shutil.copy(train[2], train[1])  # another picture under the name
    query = pictures_of(data, "test")[0]
    with pytest.warns(TransferkitWarning, match=r"3 of 24 pictures of '.*run' are gone, changed or no pictures"):
        (one,) = similar(query, run=run, top=100)
    assert {match.path for match in one.matches} == {str(path) for path in (train[2], *train[4:])}
    assert all(np.isfinite(match.similarity) for match in one.matches)


def test_a_folder_that_was_moved(own, similar, decoded, tmp_path):
    run, data = own
    moved = data.rename(tmp_path / "moved")
    query = pictures_of(moved, "test")[0]
    with pytest.raises(DataError, match=r"none of the 24 pictures of '.*run' is where it was.*--data"):
        similar(query, run=run)
    first = similar(query, run=run, data=str(moved), split="train")
    decoded.clear()
    assert similar(query, run=run, data=str(moved), split="train") == first and decoded == []
    assert len(first[0].matches) == 5


def test_runs_and_folders_that_have_nothing_to_search(own, similar, tmp_path):
    run, data = own
    query = pictures_of(data, "test")[0]
    list_pictures(run, pictures_of(data, "val"))
    with pytest.raises(CheckpointError, match=r"no pictures\.csv that lists training pictures, only those of 'val'"):
        similar(query, run=run)
    (run / "pictures.csv").unlink()
    with pytest.raises(CheckpointError, match=r"no pictures\.csv that lists training pictures - copy it"):
        similar(query, run=run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        similar(query, run=run, data=tmp_path / "empty")
    with pytest.raises(DataError, match="nothing found"):
        similar(query, run=run, data=tmp_path / "nowhere")
    (tmp_path / "empty" / "a.png").write_bytes(b"words")
    with pytest.raises(DataError, match=r"no picture can be decoded of those to search, such as '.*a\.png'"):
        similar(query, run=run, data=tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "--top is 0"),
        ({"out": "x.csv"}, "of the command line"),
        ({"split": "training"}, "split is 'training'"),
        ({"topp": 3}, "unknown option 'topp'"),
        ({"root": "x"}, "pass --data, too"),
    ],
)
def test_options_that_cannot_be(similar, folder, options, message):  # fault 38
    with pytest.raises(ConfigError, match=message):
        similar(pictures_of(folder, "test")[0], **options)


def test_nothing_that_is_a_picture(similar):
    with pytest.raises(ConfigError, match="there is no picture"):
        similar([])
    with pytest.raises(ConfigError, match=r"images\[0\] is int"):
        similar([3])


# ---- other tasks, other heads -----------------------------------------------------------------------------------


def test_masks_are_compared_by_pooled_features(tmp_path, similar, folder):
    run = make_mask_run(tmp_path / "run", side=32)
    (one,) = similar(pictures_of(folder, "test")[0], run=run, data=str(folder), top=2)
    assert [match.label for match in one.matches] == ["", ""]


def test_windows_are_refused_in_a_sentence(tmp_path, similar, folder):  # fault 226
    run = make_mask_run(tmp_path / "run", side=32, crop_mode="tile")
    with pytest.raises(ConfigError, match=r"compared as a whole, and this model sees them in windows \(--tile\)"):
        similar(pictures_of(folder, "test")[0], run=run, data=str(folder))


class Projecting(nn.Module):
    """A head of metric learning with a space of its own."""

    def __init__(self, in_features, num_classes):
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(in_features, 6), nn.Tanh())
        self.out = nn.Linear(6, num_classes)

    def forward(self, features):
        return self.out(self.embedding(features))


def test_a_head_with_an_embedding_compares_by_it(tmp_path, similar, folder, store):
    torch.manual_seed(3)
    tk.register_head("projecting")(Projecting)
    module = TransferModule(create_backbone("test_resnet", weights="random", image_size=32), 3, "projecting").eval()
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", module, head="projecting")
    queries, searched = pictures_of(folder, "test")[:3], pictures_of(folder, "train")
    found = similar(queries, run=tmp_path / "run", data=str(folder), split="train", top=6)
    predictor = load(tmp_path / "run")
    project = predictor.module.head.embedding
    assert_as_defined(found, by_definition(predictor, queries, searched, 6, project))
    plain = by_definition(predictor, queries, searched, 6)
    assert [[path for path, _ in one] for one in plain] != [[match.path for match in one.matches] for one in found]


def test_what_is_no_embedding():
    head = nn.Linear(3, 2)
    assert embedding_of(head) is None
    head.embedding = "pooled"
    with pytest.raises(ConfigError, match="`embedding` of head Linear is a str - it must be an nn.Module"):
        embedding_of(head)


# ---- the command ------------------------------------------------------------------------------------------------


def test_what_the_command_prints_and_writes(command, probed_run, folder, store, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    shutil.copy(pictures_of(folder, "train")[0], odd / "=1+1.png")
    shutil.copy(pictures_of(folder, "test")[0], odd / "[bold]\x1b.png")
    (odd / "words.png").write_bytes(b"words")
    words = ["similar", probed_run, odd, "--accelerator", "cpu", "--workers", "0", "--store", store, "--top", "2"]
    status, out, err = command(*words)  # fault 83, 92
    assert status == 8 and "1 of 3 pictures could not be read" in err
    assert "\x1b" not in out and "is itself among them" in out and "cannot be read" in out
    (expected, *_) = tk.similar(probed_run, odd / "=1+1.png", top=2, accelerator="cpu", workers=0, store=store)
    assert f"  {expected.matches[0].similarity:6.3f}  circle" in out

    assert command(*words, "--out", tmp_path / "s.csv")[0] == 8
    rows = list(csv.DictReader(StringIO((tmp_path / "s.csv").read_text(encoding="utf-8"))))
    assert [(row["rank"], row["same"]) for row in rows] == [("1", "no"), ("2", "no")] * 2 + [("", "")]
    assert rows[0]["similar"] == expected.matches[0].path and rows[-1]["error"]

    assert command(*words, "--with-same", "--out", tmp_path / "s.jsonl")[0] == 8
    lines = list(map(json.loads, (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()))
    assert [len(line["similar"]) for line in lines] == [2, 2, 0]
    assert lines[0]["similar"][0]["same"] and lines[0]["same"] == [lines[0]["similar"][0]["path"]]

    assert command(*words, "--out", tmp_path / "s.html")[0] == 8
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 6 and "\x1b" not in page and "Cannot be read" in page

    before = (tmp_path / "s.csv").read_bytes()
    status, _, err = command(*words, "--out", tmp_path / "s.csv")
    assert status == 2 and "exists already" in err and (tmp_path / "s.csv").read_bytes() == before
    assert command(*words, "--out", tmp_path / "s.csv", "--overwrite")[0] == 8
    status, _, err = command(*words, "--out", tmp_path / "s.txt")
    assert status == 2 and "unknown ending '.txt'" in err
    assert command("similar", probed_run, tmp_path / "nowhere.png")[0] == 3
    assert command("similar", tmp_path, odd)[0] == 6
    status, _, err = command("similar", probed_run)
    assert status == 2 and "PATH is missing" in err


def test_a_record_is_plain():
    assert Similar("a.png") == Similar("a.png", (), (), None)
