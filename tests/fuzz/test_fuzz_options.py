"""Options as words and as keywords, of every verb: accepted, or refused in one line with status 2; never a crash."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from fuzzing import Outcomes, check_ending, counts, refused, run, searching, texts, values
from hypothesis import given
from hypothesis import strategies as st

from transferkit.cli.verbs import VERBS
from transferkit.core.documents import parse_yaml, yaml_text
from transferkit.options.fields import default_of, flag, make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.plan.options import resolve_options


def names_of(verb):
    return [item.name for item in dataclasses.fields(VERBS[verb].options)]


@st.composite
def command_lines(draw):
    """A verb with flags and words, right and wrong ones."""
    verb = draw(st.sampled_from(list(VERBS)))
    flags = [flag(name) for name in names_of(verb)]
    known = st.sampled_from([*flags, *flags, "--config", "--no-such", "-x", "--", "--epoch", "--print_config"])
    words = draw(st.lists(st.one_of(known, values, st.tuples(known, values).map("=".join)), max_size=8))
    sound = draw(st.lists(st.sampled_from(sound_words(verb)), max_size=3))
    return [verb, *(word for pair in sound for word in pair), *words]


def sound_words(verb):
    """Every option of a verb with its default, and the data; as words."""
    pairs = [[flag(item.name), str(default_of(item))] for item in dataclasses.fields(VERBS[verb].options)
             if isinstance(default_of(item), str | int | float) and not isinstance(default_of(item), bool)]  # fmt: skip
    return [pair for pair in pairs if pair[0].strip("-") not in VERBS[verb].places] or [[]]


@pytest.fixture
def no_work(monkeypatch):
    """Verbs do nothing but check their options."""

    def only_check(kind):
        def work(options):
            if kind is FinetuneConfig:
                resolve_options(options)
            elif isinstance(options, dict):
                make_config(kind, options)

        return work

    for name, verb in VERBS.items():
        monkeypatch.setitem(VERBS, name, dataclasses.replace(verb, work=only_check(verb.options)))


@pytest.mark.parametrize("count", counts(150, 20_000))
def test_command_lines(no_work, count, tmp_path, monkeypatch):  # fault 38
    monkeypatch.chdir(tmp_path)
    outcomes = Outcomes()

    @searching(count)
    @given(command_lines())
    def check(words):
        status, err = run(*words)
        check_ending(words, status, err, allowed=(0, 2, 6))
        assert list(tmp_path.iterdir()) == [], "a refused or checked option made a file"
        outcomes[status] += 1

    check()
    outcomes.shown()
    assert outcomes[0] > count / 100
    assert outcomes[2] > count / 5


class Odd:
    """Nothing that an option takes."""


KEYWORDS = (
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, 10**400, -(10**30), 0.0, -0.0, 0.5, 1.0, 1e308, 5e-324, math.nan,
    math.inf, -math.inf, "", " ", "auto", "none", "head", "cosine", "\0", "\ud800", "🙂", "x" * 5000, b"bytes", [], {},
    (), set(), [1], ["a"], [None], [[]], [{}], {"name": "sgdr"}, {"name": None}, {1: 2}, [{"name": "a", "epochs": 1}],
    Path("x"), Path("\0"), np.float32(0.5), np.int64(3), np.array([1, 2]), np.array(1), Odd, Odd(), 1j, range(3), len,
)  # fmt: skip

keywords = st.one_of(
    st.sampled_from(KEYWORDS),
    st.floats(),
    st.integers(),
    texts(8),
    st.recursive(
        st.none() | st.booleans() | st.floats() | texts(4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(4), inner, max_size=3),
        max_leaves=6,
    ),
)


@pytest.mark.parametrize("count", counts(200, 30_000))
def test_keyword_arguments(count):  # fault 38
    outcomes = Outcomes()

    @searching(count)
    @given(st.sampled_from(list(VERBS)), st.data())
    def check(verb, data):
        names = names_of(verb)
        chosen = data.draw(st.lists(st.sampled_from([*names, "no_such"]), max_size=2, unique=True))
        options = {"data": "x", "run": "x", "out": "x", "runs": ["x"], "paths": ["x"]}
        options = {name: value for name, value in options.items() if name in names}
        options |= {name: data.draw(keywords) for name in chosen}
        outcomes[refused(lambda: make_config(VERBS[verb].options, options), allowed=(2,))] += 1
        if verb == "finetune":
            refused(lambda: resolve_options(options), allowed=(2, 6))

    check()
    outcomes.shown()
    assert min(outcomes["accepted"], outcomes["ConfigError"]) > count / 50


legal = texts(8).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | legal
    | st.sampled_from(["3e-4", "on", "off", "yes", "1:30", "010", "0o7", "1_000", "2020-01-01", "~", "<<", ".inf"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(legal, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("count", counts(150, 20_000))
def test_what_a_run_writes_down_is_read_back(count):
    """Whatever an option may hold, the recipe of a run means the same."""

    @searching(count)
    @given(st.dictionaries(legal, plain, max_size=5))
    def check(values):
        assert parse_yaml(yaml_text(values)) == values

    check()


@pytest.mark.parametrize("count", counts(150, 20_000))
def test_any_text_as_a_recipe(no_work, count, tmp_path, monkeypatch):  # fault 41
    monkeypatch.chdir(tmp_path)
    recipe, keys = tmp_path / "recipe.yaml", st.sampled_from(["data", "epochs", "phases", "lr", "seed", "x"])

    @searching(count)
    @given(
        st.one_of(
            st.binary(max_size=200),
            st.lists(st.tuples(keys, values), max_size=4).map(
                lambda pairs: "".join(f"{name}: {value}\n" for name, value in pairs).encode("utf-8", "surrogatepass")
            ),
        )
    )
    def check(content):
        recipe.write_bytes(content)
        words = ["finetune", "--data", "x", "--config", str(recipe)]
        check_ending(words, *run(*words), allowed=(0, 2))
        assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]

    check()
