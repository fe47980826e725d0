"""The files of a run: read once, by one reader; damage is an error, or left out and said where that is asked for."""

import json

import pytest

from transferkit.core.errors import CheckpointError, StorageError
from transferkit.runs.files import EVALUATE, FINETUNE, PROBE, RunFiles, read_run

DOCUMENTS = ("metrics.json", "config.yaml", "data.json", "plan.json", "model.json")
TABLES = ("history.csv", "pictures.csv", "predictions.csv")


def content(files, name):
    return getattr(files, name.split(".")[0])


@pytest.fixture
def run(tmp_path):
    for name in DOCUMENTS:
        (tmp_path / name).write_text('{"is": "é"}', encoding="utf-8")
    (tmp_path / "history.csv").write_text(
        "phase,epoch,val_acc,val_loss\nhead,0,0.5,\nhead,1,nan,0.1\n", encoding="utf-8"
    )
    (tmp_path / "pictures.csv").write_text("split,label,path,sha256\ntrain,a,'=x.png,0\n", encoding="utf-8")
    (tmp_path / "predictions.csv").write_text(
        "split,path,label,predicted,probability,label_probability\nval,x,a,b,0.9,0.1\n", encoding="utf-8"
    )
    return tmp_path


def test_documents_are_mappings_and_tables_are_rows(run):
    files = RunFiles(run)
    assert all(content(files, name) == {"is": "é"} for name in DOCUMENTS)
    assert files.history == [
        {"phase": "head", "epoch": 0, "val_acc": 0.5, "val_loss": None},
        {"phase": "head", "epoch": 1, "val_acc": None, "val_loss": 0.1},
    ]
    assert files.pictures[0]["path"] == "=x.png"  # as it was, not as a table program shows it
    assert files.predictions[0]["predicted"] == "b"
    assert files.pictures is files.pictures


@pytest.mark.parametrize("name", DOCUMENTS[:-1])
def test_a_document_has_to_be_there(run, name):
    (run / name).unlink()
    with pytest.raises(CheckpointError, match=f"no {name}"):
        content(RunFiles(run), name)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_missing_is_empty(run, name):
    (run / name).unlink()
    assert content(RunFiles(run), name) == []


@pytest.mark.parametrize("name", [*DOCUMENTS, *TABLES])
def test_damage_is_an_error_or_said(run, name):
    (run / name).write_text("{: [" if name in DOCUMENTS else "a,b\n1\n", encoding="utf-8")
    with pytest.raises((CheckpointError, StorageError), match=name):
        content(RunFiles(run), name)
    files = RunFiles(run, lenient=True)
    if name == "metrics.json":  # without them there is nothing to say
        with pytest.raises(CheckpointError, match=name):
            content(files, name)
    else:
        assert not content(files, name)
        assert [problem.split()[0] for problem in files.problems] == [name]


def test_what_is_missing_is_no_problem_for_a_page(tmp_path):
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    files = read_run(tmp_path)
    assert files.problems == []
    assert (files.kind, files.model_run, files.model, files.plan, files.pictures) == (FINETUNE, None, {}, {}, [])


@pytest.mark.parametrize(("config", "kind"), [({"classifier": "knn"}, PROBE), ({"run": "x"}, EVALUATE)])
def test_the_options_tell_the_verb(run, config, kind):
    (run / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    assert RunFiles(run).kind == kind


def test_an_evaluation_shows_the_model_of_its_run(run, tmp_path):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "config.yaml").write_text(json.dumps({"run": str(run)}), encoding="utf-8")
    files = RunFiles(evaluation)
    assert (files.model_run, files.model) == (run, {"is": "é"})
