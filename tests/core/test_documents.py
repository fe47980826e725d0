"""JSON and YAML as people and enemies write them: plain values, or one `ValueError`."""

import pytest

from transferkit.core.documents import MAX_DEPTH, MAX_VALUES, parse_json, parse_yaml, yaml_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("3.0e-4", 3e-4), ("-.5", -0.5), (".inf", float("inf")), ("12", 12),
        ("1_000", 1000), ("010", 10), ("0x1f", 31), ("0o17", 15), ("-3", -3), ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"), ("on", "on"), ("=", "="),
        ("off", "off"), ("yes", True), ("no", False), ("true", True), ("~", None), ("", None), ("null", None),
        ("a: 1e5", {"a": 1e5}),
        ("1e", "1e"), ("e5", "e5"), ("1.2.3", "1.2.3"), ("\ufeffa: 1", {"a": 1}), ("'3e-4'", "3e-4"),
    ],
)  # fmt: skip
def test_scalars_mean_what_people_mean(text, value):  # fault 121, fault 128
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_anchors_and_merge_keys():
    phases = parse_yaml("- &first {name: a, epochs: 1, train: head}\n- {<<: *first, name: b}\n")
    assert phases == [
        {"name": "a", "epochs": 1, "train": "head"},
        {"name": "b", "epochs": 1, "train": "head"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1, a: 2}", "a given twice"),
        ("{a: 1, 'a': 2}", "a given twice"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.mkdir [ran]", "not YAML"),
        ("[" * 50_000, "levels deep"),
        ("{a: " * 5_000, "levels deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "levels deep"),
        ("&a [*a]", "levels deep"),
        (f"[{', '.join(['1'] * (MAX_VALUES + 1))}]", "more than 100,000 values"),
    ],
)
def test_yaml_that_is_refused(text, message):  # fault 41, fault 127
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)


def test_aliases_that_stand_for_gigabytes():  # fault 127
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    with pytest.raises(ValueError, match="more than 100,000 values"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000, b"\xff\xfe", "nul", b"\xef\xbb\xbfx"])
def test_json_that_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_what_is_written_is_read_back():
    values = {
        "text": "3e-4",
        "switch": "off",
        "date": "2020-01-01",
        "line": "a\x85b\u2028c\r\n",
        "lr": 1e-05,
        "none": None,
    }
    assert parse_yaml(yaml_text(values)) == values
    assert list(parse_yaml(yaml_text(values))) == list(values)
