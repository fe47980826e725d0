"""Options of `predict` and `evaluate` that mean nothing for masks are refused, each in a sentence that is true."""

import pytest
from mask_runs import make_mask_run, picture

from transferkit.core.errors import ConfigError
from transferkit.options.results import EvaluateConfig, PredictConfig
from transferkit.results.evaluate.evaluate import evaluate
from transferkit.results.predict.predict import predict_files


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_mask_run(tmp_path_factory.mktemp("masks") / "run")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top_k": 2}, "--top-k is of one class per picture, and this model gives masks"),
        ({"abstain": 0.9}, "--abstain is of one class per picture, and this model gives masks"),
        ({"abstain": 0.9, "abstain_by": "thresholds"}, "--abstain is of one class per picture"),
        ({"coverage": 0.9}, "--coverage is of the intervals of numbers, and this model gives masks"),
        ({"unknown": 0.9}, "for a label, and segmentation gives none - leave it out$"),
        ({"check_classes": True}, "--check-classes compares folders with classes, and a model of segmentation"),
        ({"tta": "5crop"}, "expected one of none, flip"),
        ({"tta": "3"}, "expected one of none, flip"),
    ],
)
def test_predict(run, tmp_path, options, told):  # fault 154
    photo = picture(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=told):
        predict_files(PredictConfig(run=str(run), paths=[photo], out=str(tmp_path / "o.csv"), quiet=True, **options))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"unlike": "."}, "--unlike goes by features of whole pictures, and a model of segmentation keeps none"),
        (
            {"check_classes": True},
            "answers of segmentation lie on pixels",
        ),
    ],
)
def test_evaluate(run, tmp_path, options, told):  # fault 154
    with pytest.raises(ConfigError, match=told):
        evaluate(EvaluateConfig(run=str(run), data=str(tmp_path), out=str(tmp_path / "e"), quiet=True, **options))
    assert list(tmp_path.iterdir()) == []
