"""Sizes of training pictures as an option: a number, a list, or numbers between commas."""

import pytest

from transferkit.core.errors import ConfigError
from transferkit.options.fields import make_config, read_value
from transferkit.options.sizes import (
    image_size_of,
    image_size_problem,
    scaled_to,
    train_size_problems,
    train_sizes,
)
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


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, None), (224, (224, 224)), ("224", (224, 224)), ("224x320", (224, 320)), (" 224 X 320 ", (224, 320)),
        ([224, 320], (224, 320)), ((64, 96), (64, 96)), ([96], (96, 96)),
    ],
)  # fmt: skip
def test_what_is_a_size_of_the_input(value, size):
    assert image_size_problem(value) == []
    assert image_size_of(value) == size
    options = {"data": "x"} if value is None else {"data": "x", "image_size": value}
    assert make_config(FinetuneConfig, options).size == size


@pytest.mark.parametrize(
    "value", [0, -3, "0x10", "224x", "x", "", "224x320x3", [1, 2, 3], [], "2.5x3", 99_999, "a", [True, 2]]
)
def test_what_is_no_size_of_the_input(value):
    with pytest.raises(ConfigError, match="--image-size is .*, expected a side or HEIGHTxWIDTH"):
        make_config(FinetuneConfig, {"data": "x", "image_size": value})


def test_sizes_of_a_rectangle_are_scaled_shapes():
    assert scaled_to(160, (224, 320)) == (112, 160)
    assert scaled_to(224, (224, 224)) == (224, 224)
    assert scaled_to(1, (2, 320)) == (1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fit": "stretch"}, "fit"),
        ({"fit": "pad", "tile": True}, "--fit pad is of whole pictures"),
        ({"channels": 0}, "--channels is 0"), ({"channels": 600}, "--channels is 600"),
        ({"value_range": "1"}, "--value-range is '1', expected LOW:HIGH"),
        ({"value_range": "5:5"}, "expected LOW:HIGH, a number and a larger one"),
        ({"value_range": "a:b"}, "--value-range is 'a:b'"), ({"value_range": "0:inf"}, "--value-range is '0:inf'"),
        ({"value_range": "0:9", "grey_bits": 10}, "--value-range and --grey-bits both"),
    ],
)  # fmt: skip
def test_what_is_no_way_to_show_a_picture(options, words):
    with pytest.raises(ConfigError, match=words):
        make_config(FinetuneConfig, {"data": "x", **options})
