"""The candidates of `advise`: names, sizes, files and lists, and every mistake in one error."""

import json

import pytest

from transferkit.core.errors import ConfigError
from transferkit.models.backbones.registry import list_backbones
from transferkit.options.advise import SMALL, AdviseConfig, Candidate, read_backbones
from transferkit.options.fields import make_config


def candidates(value, **options):
    return make_config(AdviseConfig, {"data": "x", "backbones": value, **options}).candidates


def refusal(value, **options):
    with pytest.raises(ConfigError) as caught:
        make_config(AdviseConfig, {"data": "x", "backbones": value, **options})
    return str(caught.value)


def test_names_with_commas():
    assert candidates("resnet18, transferkit/mini@64", weights="random", image_size=32) == [
        Candidate("resnet18", "random", 32),
        Candidate("transferkit/mini", "random", 64),
    ]


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_file_has_a_list(tmp_path, ending):
    path = tmp_path / f"some.{ending}"
    path.write_text(json.dumps([{"backbone": "a", "weights": "w.safetensors"}, "b@64"]), encoding="utf-8")
    assert candidates(str(path)) == [Candidate("a", "w.safetensors", None), Candidate("b", "pretrained", 64)]


def test_the_value_is_the_list_from_then_on(tmp_path):
    """So that `config.yaml` repeats it, whatever becomes of the file."""
    path = tmp_path / "some.yaml"
    path.write_text("- {backbone: a, image_size: 64}\n", encoding="utf-8")
    config = make_config(AdviseConfig, {"data": "x", "backbones": str(path)})
    path.unlink()
    assert config.backbones == [{"backbone": "a", "image_size": 64}]
    assert read_backbones(config.backbones) == config.backbones


def test_small_ones_exist_and_have_weights():
    known = set(list_backbones(pretrained_only=True))
    assert known.issuperset(SMALL)
    assert [one.backbone for one in candidates("small")] == list(SMALL)
    assert SMALL[0] == "transferkit/mini"  # whose weights are there without a network


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "a candidate is a name"),
        ("a,,b", "candidate 2 is {'backbone': ''}"),
        ("a@", "--image-size is '', expected a side or HEIGHTxWIDTH in pixels"),
        ("a@x", "--image-size is 'x', expected a side or HEIGHTxWIDTH in pixels"),
        ("a@0", "--image-size is 0, expected a side or HEIGHTxWIDTH in pixels, such as 224 or 224x320, each of at"),
        ("a@32x", "--image-size is '32x', expected a side or HEIGHTxWIDTH in pixels"),
        ("missing.yaml", "cannot be read (No such file or directory)"),
        ([], "expected a list of candidates, one at least, got []"),
        ([3], "candidate 1 is 3"),
        ([{"backbone": "a", "wieghts": "x"}], "unknown key 'wieghts'. Did you mean 'weights'?"),
        ([{"backbone": "a", "weights": 3}], "weights is 3, expected a text"),
        ([{"weights": "x"}], "a candidate is a name, or"),
        ("a@64,b,a@64", "names a candidate twice: a@64"),
    ],
)
def test_mistakes(value, words):
    assert words in refusal(value)


def test_all_mistakes_come_at_once():
    message = refusal([{"backbone": "a", "wieghts": "x"}, {"backbone": "b", "image_size": -1}], folds=1, pictures=3)
    for words in ("unknown key 'wieghts'", "--image-size is -1", "--folds is 1", "--pictures is 3"):
        assert words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: b: c", "not YAML"), ("resnet18", "expected a list of candidates"), ("- !!python/name:os.system", "not YAML")],
)
def test_files_that_are_no_list(tmp_path, text, words):
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    assert words in refusal(str(path))


def test_a_file_called_as_a_word_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").write_text("", encoding="utf-8")
    assert "has a meaning of its own" in refusal("a", weights="random")
    assert "has a meaning of its own" in refusal([{"backbone": "a", "weights": "random"}])


def test_a_candidate_may_be_a_rectangle():
    config = AdviseConfig(
        data="x", backbones=["a@24x32", {"backbone": "b", "image_size": [24, 32]}, "c"], image_size=48
    )
    assert [one.name for one in config.candidates] == ["a@24x32", "b@24x32", "c@48"]
    assert [one.size for one in config.candidates] == [(24, 32), (24, 32), (48, 48)]
    assert config.candidates[1].options() == {"backbone": "b", "weights": "pretrained", "image_size": "24x32"}
