"""Sizes of training pictures as an option: a number, a list, or numbers between commas."""

import pytest

from transferkit.core.errors import ConfigError
from transferkit.options.fields import make_config, read_value
from transferkit.options.sizes import train_size_problems, train_sizes
from transferkit.options.training import FinetuneConfig

HINT = int | str | list[int] | None


@pytest.mark.parametrize(
    ("value", "sides"),
    [
        (None, ()), (96, (96,)), ("96", (96,)), ("128,160,224", (128, 160, 224)), (" 128, 160 ,224 ", (128, 160, 224)),
        ([64, 96], (64, 96)), ((64,), (64,)), ("224,128", (224, 128)), ("96,128,96", (96, 128, 96)),
    ],
)  # fmt: skip
def test_what_is_a_size(value, sides):
    assert train_size_problems(value) == []
    assert train_sizes(value) == sides


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (0, "0"), (-3, "-3"), ("0", "0"), ("small", "'small'"), ("128,,224", "''"), ("128,", "''"),
        ("128;160", "128;160"),
        ("1e2,160", "1e2"), ([64, 0], "0"), ([64, True], "True"), ([64.5], "64.5"), (20_000, "20000"),
        ("96,9999999999", "9"),
        ("\u0661\u0662\u0668", ""), ([], "[]"), ("", "''"),
    ],
)  # fmt: skip
def test_what_is_none(value, seen):  # fault 218
    problems = train_size_problems(value)
    assert len(problems) == 1
    assert problems[0].startswith("--train-size is ")
    assert seen in problems[0]


def test_every_mistake_is_in_the_one_error_with_others():
    with pytest.raises(ConfigError) as caught:
        make_config(FinetuneConfig, {"data": "x", "train_size": "0,x,128", "epochs": 0})
    assert all(words in str(caught.value) for words in ("--epochs is 0", "instead of 0", "instead of 'x'"))


def test_windows_have_one_size():
    assert train_size_problems("64", tile=True) == []
    assert "windows of --tile have one size" in train_size_problems("64,96", tile=True)[0]


@pytest.mark.parametrize(
    ("word", "value"), [("128", 128), ("128,160", "128,160"), ("[128, 160]", [128, 160]), ("null", None)]
)
def test_words_of_the_command_line(word, value):
    assert read_value(word, HINT) == value
