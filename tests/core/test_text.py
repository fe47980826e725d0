"""Text from elsewhere: one line, nothing that moves a cursor or turns a name around, nothing left out unsaid."""

import pytest

from transferkit.core.text import (
    bytes_of,
    first_line,
    is_text,
    listing,
    one_line,
    printable,
    shown,
    valid_text,
    visible,
)


def test_a_message_of_many_lines_becomes_one():
    assert one_line("two\n  lines\x1b[31m and\ta tab") == r"two lines\x1b[31m and a tab"
    assert printable("kept\nlines \x07") == "kept\nlines \\x07"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("\n bad shape \n more"), "ValueError: bad shape"),
        (RuntimeError(), "RuntimeError"),
        (KeyError("x" * 300), "KeyError: '" + "x" * 199),
    ],
)
def test_the_first_line_of_an_error(error, expected):
    assert first_line(error) == expected


def test_marks_of_direction_and_control_characters_are_shown():
    assert visible("\u202egnp.exe\n\x00 caf\udce9 \u00e9") == "\\u202egnp.exe\n\\x00 caf\\udce9 \u00e9"
    assert valid_text("caf\udce9") == r"caf\xe9"


def test_listings_are_cut_and_counted():
    assert listing(list("abc")) == "'a', 'b', 'c'"
    assert listing(list("abc"), limit=1, quote=False) == "a and 2 more (3 in all)"


def test_values_in_messages_are_cut():
    assert shown("a'b") == '"a\'b"'
    assert shown("x" * 1000) == "'" + "x" * 199 + "... (1,002 characters)"
    assert shown(10**10_000) == "a int"  # Python writes no number of more than 4300 digits


def test_texts_that_can_be_written_down():
    assert is_text("caf\udce9 é 🙂\n")
    assert not is_text("a\0b")
    assert not is_text("\ud800")


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("1.5g", 1_500_000_000), ("512 MiB", 512 << 20), ("2T", 2 * 10**12), (" 3kb ", 3000)],
)
def test_sizes(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "20", "GB", "-1GB", "0GB", "0.0001kB", "1e3GB", "infGB", "2PB", "٣GB", "1_0GB"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="expected a size with its unit, such as 20GB"):
        bytes_of(text)
