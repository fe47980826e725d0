"""Options from Python: types, ranges, what belongs together, and every mistake in one error."""

import dataclasses
import math

import pytest

from transferkit.core.errors import ConfigError
from transferkit.core.records import Decoding
from transferkit.options.advise import AdviseConfig
from transferkit.options.features import BackbonesConfig, CheckConfig, FeaturesConfig, ProbeConfig, StoreConfig
from transferkit.options.fields import default_of, flag, make_config
from transferkit.options.results import (
    CalibrateConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    PredictConfig,
    ReportConfig,
    ServeConfig,
)
from transferkit.options.training import FinetuneConfig, LRFindConfig, PlanConfig, SearchConfig, SelftestConfig

KINDS = (
    AdviseConfig, BackbonesConfig, CalibrateConfig, CheckConfig, EvaluateConfig, ExplainConfig, ExportConfig,
    FeaturesConfig, FinetuneConfig, LRFindConfig, PlanConfig, PredictConfig, ProbeConfig, ReportConfig, SearchConfig,
    SelftestConfig, ServeConfig, StoreConfig,
)  # fmt: skip
PRESENT = {"data": "x", "run": "x", "runs": ["x"], "paths": ["x"], "out": "x", "resume": True}


def present(kind):
    """Values for what has to be there."""
    names = {item.name for item in dataclasses.fields(kind)}
    return {name: value for name, value in PRESENT.items() if name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_sound_and_what_has_to_be_there_is_named(kind):
    make_config(kind, present(kind))
    for item in dataclasses.fields(kind):
        if item.metadata["missing"]:
            with pytest.raises(ConfigError, match="is missing, expected"):
                make_config(kind, {name: value for name, value in present(kind).items() if name != item.name})


@pytest.mark.parametrize("kind", KINDS)
def test_every_range_has_an_outside(kind):
    for item in dataclasses.fields(kind):
        within = item.metadata["range"]
        if within is None:
            continue
        whole = "int" in item.type
        outside = [value for value in ((-1, 2**40) if whole else (-0.5, 1e9, math.nan)) if not within.holds(value)]
        assert outside, item.name
        for value in outside:
            with pytest.raises(ConfigError) as caught:
                make_config(kind, {**present(kind), item.name: value})
            assert f"{flag(item.name)} is {value}, expected {within.words}" in str(caught.value)
        assert default_of(item) is None or isinstance(default_of(item), str) or within.holds(default_of(item))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (FinetuneConfig, {"lr": math.inf}, "--lr is inf, expected a finite number above 0"),
        (FinetuneConfig, {"resume": True, "overwrite": True}, "--resume and --overwrite exclude each other"),
        (FinetuneConfig, {"sampler": "balanced", "class_weights": "balanced"}, "would count rare classes twice over"),
        (FinetuneConfig, {"momentum": 0.8}, "--momentum is of --optimizer sgd and rmsprop, not adamw - leave it out"),
        (FinetuneConfig, {"nesterov": False, "optimizer": "rmsprop"}, "--nesterov is of --optimizer sgd, not rmsprop"),
        (FinetuneConfig, {"resume": True, "out": None}, "--resume needs --out"),
        (FinetuneConfig, {"dry_run": True, "overfit_batches": 1}, "--dry-run and --overfit-batches exclude"),
        (
            FinetuneConfig,
            {"probe": "solve", "head": "mlp"},
            "--probe solve fits a linear head or class means, not 'mlp'",
        ),
        (FinetuneConfig, {"probe": "solve", "probe_lr": 0.1}, "--probe-lr belongs to --probe sgd"),
        (FinetuneConfig, {"val_split": 0.5, "test_split": 0.5}, "leave nothing to train on"),
        (LRFindConfig, {"lr_min": 1.0, "lr_max": 0.1}, "expected lr-min below lr-max"),
        (LRFindConfig, {"steps": 29}, "--steps is 29, expected a whole number of at least 30"),
        (FeaturesConfig, {"views": 2, "augment": "none"}, "--views without augmentation are all the same"),
        (ProbeConfig, {"classifier": "logistics"}, "unknown classifier 'logistics'. Did you mean 'logistic'"),
        (ProbeConfig, {"layer": "all"}, "--layer all gives several sets of features"),
        (FinetuneConfig, {"ground": "whit"}, "--ground is 'whit', expected white, black or #rrggbb"),
        (FeaturesConfig, {"ground": "#12345"}, "--ground is '#12345', expected"),
        (StoreConfig, {"dry_run": True}, "belong to 'store gc', not to 'store list'"),
        (ExportConfig, {"format": "torch", "precision": "int8"}, "are for --format onnx, not for torch"),
        (EvaluateConfig, {"tta": "6crop"}, "--tta is '6crop', expected none, flip, 5crop or a number of views"),
        (PredictConfig, {"tta": "101"}, "--tta is '101'"),
        (CalibrateConfig, {"data": ""}, "DATA is missing"),
        (
            FinetuneConfig,
            {"data": "photos/", "root": "."},
            "--data 'photos/' is no manifest (.csv or .parquet), so --root",
        ),
        (
            FeaturesConfig,
            {"data": "sample", "targets": "a", "path_column": "file"},
            "so --targets, --path-column would",
        ),
        (ProbeConfig, {"use_views": "average"}, "--use-views average says what becomes of --views"),
        (ExportConfig, {"data": None, "path_column": "file"}, "say how the manifest of --data is read"),
        (SelftestConfig, {"resume": False}, "nothing to test - pass --resume"),
    ],
)
def test_what_does_not_go_together(kind, options, message):
    base = {name: value for name, value in present(kind).items() if name != "resume" or kind is SelftestConfig}
    with pytest.raises(ConfigError) as caught:
        make_config(kind, {**base, **options})
    assert message in str(caught.value)


def test_a_calibration_is_taken_off_without_pictures():
    assert make_config(CalibrateConfig, {"run": "x", "method": "none"}).data == ""


def test_types_and_names_are_checked_all_at_once():
    with pytest.raises(ConfigError) as caught:
        make_config(FinetuneConfig, {"data": "x", "epoch": 3, "lr": "fast", "augment": "hevy", "quiet": 1})
    for part in ("unknown option 'epoch'. Did you mean 'epochs'", "lr is 'fast', expected a number or auto",
                 "augment is 'hevy'. Did you mean 'heavy'", "quiet is 1, expected true or false"):  # fmt: skip
        assert part in str(caught.value)


def test_paths_and_whole_numbers_are_taken(tmp_path):
    config = make_config(FinetuneConfig, {"data": tmp_path, "lr": 1})
    assert (config.data, config.lr) == (str(tmp_path), 1.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Decoding("#203040", 12, 7)), ({"ground": "white"}, Decoding("#ffffff", 12, 7)),
        ({"ground": "black", "max_pixels": 9}, Decoding("#000000", 12, 9)),
        ({"ground": "#AbCdEf", "grey_bits": 16}, Decoding("#abcdef", 16, 7)),
    ],
)  # fmt: skip
def test_what_is_not_asked_for_stays_as_it_travels_with_the_weights(options, expected):
    config = make_config(ProbeConfig, {"data": "x", **options})
    assert config.decoding(Decoding("#203040", 12, 7)) == expected


@pytest.mark.parametrize("word", ["pretrained", "bundled", "random"])
def test_a_weights_file_called_like_a_word_is_never_shadowed(tmp_path, monkeypatch, word):  # fault 108
    monkeypatch.chdir(tmp_path)
    (tmp_path / word).mkdir()
    assert make_config(FinetuneConfig, {"data": "x", "weights": word}).weights == word, "no folder is a weights file"
    (tmp_path / word).rmdir()
    (tmp_path / word).write_bytes(b"")
    for kind in (FinetuneConfig, FeaturesConfig, ProbeConfig):
        with pytest.raises(ConfigError, match=rf"a file .*, too - pass \./{word} for the file, or rename it"):
            make_config(kind, {"data": "x", "weights": word})
    assert make_config(FinetuneConfig, {"data": "x", "weights": f"./{word}"}).weights == f"./{word}"


def test_paths_are_the_users(monkeypatch):  # fault 101
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "/data")
    config = make_config(FinetuneConfig, {"data": "~/d", "out": "$PLACE/r", "store": "~/s", "init_from": "~/r"})
    places = config.data, config.out, config.store, config.init_from
    assert places == ("/home/me/d", "/data/r", "/home/me/s", "/home/me/r")
    assert make_config(PredictConfig, {"run": "~/r", "paths": ["~/a.png", "-"]}).paths == ["/home/me/a.png", "-"]
    assert make_config(FinetuneConfig, {"data": "d", "backbone": "~x"}).backbone == "~x"  # no path
