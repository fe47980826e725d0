"""Damaged files of a finished run and of the store: one error of ours, or right rows, and nothing else changes."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import yaml
from fuzzing import Outcomes, check_ending, counts, refused, run, searching
from hypothesis import given
from hypothesis import strategies as st
from mutation import as_json, as_yaml, damaged_bytes, damaged_values

from transferkit.features.store.spec import FeatureSpec, row_key
from transferkit.features.store.store import FeatureStore
from transferkit.features.store.upkeep import describe, gc, verify
from transferkit.results.predict.predictor import load

ON_CPU = ("--accelerator", "cpu", "--workers", "0", "--quiet")

CALLS = {
    "report": ("report", "RUN", "--out", "OUT.html", "--pictures", "off", "--quiet"),
    "compare": ("report", "RUN", "WHOLE", "--out", "OUT.html", "--pictures", "off", "--quiet"),
    "evaluate": ("evaluate", "RUN", "DATA", "--split", "test", "--out", "OUT", "--report", "off", *ON_CPU),
    "against": (
        "evaluate",
        "WHOLE",
        "DATA",
        "--split",
        "test",
        "--against",
        "RUN",
        "--out",
        "OUT",
        "--report",
        "off",
        *ON_CPU,
    ),
    "calibrate": ("calibrate", "RUN", "DATA", *ON_CPU),
    "explain": ("explain", "RUN", "PICTURE", "--out", "OUT", "--store", "STORE", *ON_CPU),
    "export": ("export", "RUN", "--format", "safetensors", "--pictures", "2", "--out", "OUT.safetensors", "--quiet"),
    "complete": ("finetune", "--resume", "--out", "RUN"),
}
"""What reads a finished run; RUN is the damaged one, WHOLE another."""

REWRITES = {"calibrate": {"model.json"}, "export": set()}
"""What a verb may change in the run that it reads."""


def documents(path):
    """Return a strategy of damage to a file of a run: its bytes or, where it is a document, its values."""
    damage = damaged_bytes(path.read_bytes())
    if path.suffix == ".json":
        return st.one_of(damage, *[damaged_values(json.loads(path.read_text(encoding="utf-8"))).map(as_json)] * 3)
    if path.suffix == ".yaml":
        return st.one_of(damage, *[damaged_values(yaml.safe_load(path.read_text(encoding="utf-8"))).map(as_yaml)] * 3)
    return damage


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def damaged(tmp_path, finished_run, probed_run, folder, monkeypatch):
    """Give a check of one call on one damaged file; it returns how the command ended."""
    monkeypatch.chdir(tmp_path)

    def check(call, source, name, content):
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        own = shutil.copytree(source, work / "run")
        (own / name).write_bytes(content)
        before = contents(own)
        places = {
            "RUN": str(own), "WHOLE": str(finished_run), "OUT": str(work / "out"),
            "DATA": str(folder), "STORE": str(tmp_path / "store"),
            "PICTURE": str(folder / "test" / "circle" / "000.png"),
        }  # fmt: skip
        words = [places.get(word, word.replace("OUT.", f"{work / 'out'}.")) for word in CALLS[call]]
        status, err = run(*words)
        check_ending(words, status, err, allowed=(0, 2, 3, 4, 6, 7, 8, 74))
        after = contents(own)
        changed = {str(path) for path in before if after.get(path) != before[path]}
        assert changed <= REWRITES.get(call, set()), f"{call} of a run with a damaged {name} changed {changed}"
        assert not any(path.name == "ran" or path.name == "fuzzed" for path in tmp_path.rglob("*")), "code ran"
        return status

    return check


def tables_and_documents(run):
    return sorted(path.name for path in run.iterdir() if path.suffix in (".json", ".csv", ".yaml", ".safetensors"))


@pytest.mark.parametrize("count", counts(24, 2500))
def test_damaged_files_of_a_finished_run(count, damaged, finished_run, probed_run):
    outcomes = Outcomes()

    @searching(count)
    @given(st.sampled_from(list(CALLS)), st.sampled_from([finished_run, probed_run]), st.data())
    def check(call, source, data):
        name = data.draw(st.sampled_from(tables_and_documents(source)))
        outcomes[damaged(call, source, name, data.draw(documents(source / name)))] += 1

    check()
    outcomes.shown()


@pytest.mark.parametrize("count", counts(60, 6000))
def test_damaged_models(count, tmp_path, finished_run, folder):  # fault 87, fault 130
    outcomes = Outcomes()
    own = tmp_path / "run"
    own.mkdir()

    @searching(count)
    @given(st.sampled_from(["model.json"] * 4 + ["model.safetensors"]), st.data())
    def check(name, data):
        for file in ("model.json", "model.safetensors"):
            shutil.copy(finished_run / file, own)
        (own / name).write_bytes(data.draw(documents(finished_run / name)))

        def use():
            predictions = load(own).predict([folder / "test" / "circle" / "000.png"], workers=0)
            assert len(predictions) == 1

        outcomes[refused(use, allowed=(2, 4, 6))] += 1

    check()
    outcomes.shown()
    assert outcomes["CheckpointError"] > count / 4


# ---- store --------------------------------------------------------------------------------------------------------

SPEC = FeatureSpec("net", "0" * 64, "pooled", "avg", {"size": 32}, None, "32", {"torch": "1"})
OTHER = dataclasses.replace(SPEC, backbone="other")


@pytest.fixture(scope="module")
def filled_store(tmp_path_factory):
    """Two sets of rows, one in three shards; and the rows."""
    root = tmp_path_factory.mktemp("store")
    rows = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    keys = [row_key(hashlib.sha256(bytes([number])).hexdigest()) for number in range(24)]
    for spec in (SPEC, OTHER):
        for at in range(0, 24, 8):
            FeatureStore(root).open(spec).add(keys[at : at + 8], rows[at : at + 8])
    FeatureStore(root).open(SPEC).add([], np.empty((0, 5), np.float32), {row_key("ff" * 32): "cannot be read"})
    return root, keys, rows


@pytest.mark.parametrize("count", counts(60, 10_000))
@pytest.mark.filterwarnings("ignore::transferkit.core.errors.TransferkitWarning")
def test_damaged_stores(count, filled_store, tmp_path):  # fault 66
    """A row is the one that was written, or missing and computed again; the other set stays as it is."""
    root, keys, rows = filled_store
    names = sorted(path.name for path in (root / SPEC.folder).iterdir() if path.is_file())
    outcomes = Outcomes()

    @searching(count)
    @given(st.sampled_from([*names, *[name for name in names if name.endswith(".json")] * 2]), st.data())
    def check(name, data):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        own = FeatureStore(shutil.copytree(root, tmp_path / "store"))
        path = own.root / SPEC.folder / name
        path.write_bytes(data.draw(documents(path) if name != "lock" else st.binary(max_size=50)))
        other = contents(own.root / OTHER.folder)

        def use():
            found = np.full_like(rows, np.nan)
            missing = own.open(SPEC).read(keys, found)
            there = [at for at in range(len(keys)) if at not in missing]
            assert np.array_equal(found[there], rows[there]), "a row that was never written"
            outcomes[f"{len(missing)} rows lost"] += 1
            own.open(SPEC).add([keys[at] for at in missing], rows[missing])
            assert own.open(SPEC).read(keys, found) == []
            assert np.array_equal(found, rows)

        for step in (
            lambda: describe(own),
            lambda: verify(own),
            use,
            lambda: gc(own),
            use,
            lambda: gc(own, unused_days=1),
        ):
            outcomes[refused(step, allowed=(7, 74))] += 1
        assert contents(own.root / OTHER.folder) == other

    check()
    outcomes.shown()
