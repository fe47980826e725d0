"""The command line: help, all mistakes at once, recipes, one-line errors, exit statuses."""

import dataclasses
import signal

import pytest
import yaml
from shapes import draw_folder

from transferkit.cli import verbs
from transferkit.cli.main import main
from transferkit.cli.parser import parse_options
from transferkit.cli.verbs import VERBS, _find
from transferkit.options.fields import default_of
from transferkit.options.training import FinetuneConfig
from transferkit.training.ranks.parallel import PeerError


def test_help_lists_every_verb(command):
    status, out, err = command("--help")
    assert (status, err) == (0, "")
    assert all(f"  {verb} " in out for verb in VERBS)
    assert command()[1] == out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_defaults(command, verb):
    status, out, _ = command(verb, "--help")
    assert status == 0
    folded = " ".join(out.split())
    for item in dataclasses.fields(VERBS[verb].options):
        assert item.metadata["help"].split("'")[0].split("{")[0][:30].strip() in folded
        if item.type in ("int", "float"):
            assert f"default: {default_of(item)}" in folded


def test_unknown_verb(command):
    status, _, err = command("finetun")
    assert status == 2
    assert err.startswith("transferkit: error[config]: unknown verb 'finetun'. Did you mean 'finetune'?")


def test_all_bad_flags_in_one_line(command, tmp_path, monkeypatch):  # fault 38
    monkeypatch.chdir(tmp_path)
    status, _, err = command(
        "finetune", "--data", "x", "--epochs", "0", "--lr", "nan", "--batch-size", "-1", "--val-split", "1.0",
        "--epoch", "3", "--augment", "hevy", "--workers", "two", "--out",
    )  # fmt: skip
    assert status == 2
    assert err.count("\n") == 1
    for part in (
        "--lr is 'nan', expected a number or auto",
        "--epochs is 0, expected a whole number of at least 1",
        "--batch-size is -1",
        "--val-split is 1.0, expected a number in [0, 1)",
        "unknown flag --epoch. Did you mean '--epochs'",
        "--augment is 'hevy'. Did you mean 'heavy'? Expected one of none, light, standard, heavy",
        "--workers is 'two', expected a whole number",
        "--out needs a value",
    ):
        assert part in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data is missing"),
        (["--data", "x", "--monitor", "val_lass"], "--monitor is 'val_lass'. Did you mean 'val_loss'"),
        (["--data", "x", "--resume", "--overwrite", "--out", "y"], "--resume and --overwrite exclude each other"),
        (["--data", "x", "--warmup-epochs", "20"], "warmup_epochs is 20.0, longer than the phase of 10 epochs"),
        (["--data", "x", "--schedule", "sgrd"], "unknown schedule 'sgrd'. Did you mean 'sgdr'?"),
        (["--data", "x", "--phases", "probe-fine"], "unknown phases 'probe-fine'. Did you mean 'probe-finetune'"),
        (
            ["--data", "x", "--head", "lineer"],
            "--head is 'lineer'. Did you mean 'linear'? Expected one of arcface",
        ),
        (["--data", "x", "--head", "fpn"], "--head is 'fpn'. It is a head of masks. Expected one of arcface"),
        (["--data", "x", "extra"], "'extra' is a word too many"),
    ],
)
def test_bad_options(command, tmp_path, monkeypatch, words, message):  # fault 38, fault 39
    monkeypatch.chdir(tmp_path)
    status, _, err = command("finetune", *words)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["probe", "--data", "x"], 3, "--data x does not exist - give a folder"),
        (["advise", "--data", "x", "--backbones", "a,b", "--out", "y"], 3, "--data x does not exist"),
        (["evaluate", "x", "y"], 6, "x: does not exist - expected the directory of a finished run"),
        (["similar", "x", "y"], 6, "x: does not exist"),
        (["export", "x"], 6, "x: does not exist"),
    ],
)
def test_what_is_not_there_is_told_before_libraries_are_loaded(command, tmp_path, monkeypatch, words, status, message):
    monkeypatch.chdir(tmp_path)

    def load(home):
        raise AssertionError(home)

    monkeypatch.setattr(verbs, "_find", load)
    code, _, err = command(*words)
    assert (code, err.count("\n")) == (status, 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_recipe_and_flags(tmp_path):
    path = recipe(tmp_path, "data: pictures\nepochs: 3\nlr: 1e-3\nskip_bad: true\nphases:\n- {name: a, epochs: 2}\n")
    options = parse_options("finetune", ["--config", str(path), "--epochs", "4", "--clip", "null"])
    assert options == {
        "data": "pictures", "epochs": 4, "lr": 1e-3, "skip_bad": True, "clip": None,
        "phases": [{"name": "a", "epochs": 2}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: x\nepochz: 3\n", "unknown key 'epochz' in the recipe. Did you mean 'epochs'"),
        ("data: x\ndata: y\n", "data given twice"),
        ("data: x\nout: !!python/object/apply:os.system ['true']\n", "could not determine a constructor for the tag"),
        ("data: [x\n", "not YAML"),
        ("- data\n", "holds no options"),
        ("data: x\nepochz: 3\naugment: hevy\nepochs: 0\n", "(2) --epochs is 0"),
        ("data: x\nepochs: many\n", "--epochs is 'many', expected a whole number"),
    ],
)
def test_bad_recipes(command, tmp_path, text, message):  # fault 41
    status, _, err = command("finetune", "--config", recipe(tmp_path, text))
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_missing_recipe(command, tmp_path):
    status, _, err = command("finetune", "--config", tmp_path / "none.yaml")
    assert (status, err.count("\n")) == (2, 1)
    assert "none.yaml: No such file or directory" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export"], "RUN is missing"),
        (["export", "--format", "onx"], "(1) --format is 'onx'. Did you mean 'onnx'? Expected one of onnx, torch"),
        (["store", "gcc"], "ACTION is 'gcc'. Did you mean 'gc'?"),
        (
            ["predict", "run", "--strict=1", "--top-k"],
            "(1) --strict takes no value; (2) --top-k needs a value; (3) PATH",
        ),
        (["predict", "run", "x.jpg", "--top-k", "0", "--tpo-k", "3"], "(2) --top-k is 0"),
    ],
)
def test_words_in_places_are_looked_at_too(command, words, message):  # fault 38
    status, _, err = command(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_the_work_of_every_verb_can_be_loaded(verb):
    assert callable(_find(verb.work) if isinstance(verb.work, str) else verb.work)


def test_a_process_that_failed_because_another_did_says_nothing(command, monkeypatch):
    def work(config):
        raise PeerError("disk full", 74)

    monkeypatch.setitem(VERBS, "backbones", dataclasses.replace(VERBS["backbones"], work=work))
    assert command("backbones") == (74, "", "")


def test_print_config_is_a_recipe(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["finetune", "--data", "pictures", "--epochs", "7", "--print_config"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    values = yaml.safe_load(text)
    assert values["epochs"] == 7
    assert set(values) == {item.name for item in dataclasses.fields(FinetuneConfig)}
    assert parse_options("finetune", ["--config", str(recipe(tmp_path, text))])["data"] == "pictures"


def test_a_bug_is_one_line_without_debug(command, monkeypatch):
    monkeypatch.setitem(VERBS, "backbones", dataclasses.replace(VERBS["backbones"], work=lambda config: 1 / 0))
    status, _, err = command("backbones")
    assert (status, err.count("\n")) == (1, 1)
    assert "error[internal]: ZeroDivisionError: division by zero - this is a bug of transferkit" in err
    with pytest.raises(ZeroDivisionError):
        main(["backbones", "--debug"])


def test_a_refusal_of_the_system_is_no_bug(command, monkeypatch, tmp_path):
    """Wherever it comes from: the place and the system's words."""
    work = {"work": lambda config: (tmp_path / "none" / "file").read_bytes()}
    monkeypatch.setitem(VERBS, "backbones", dataclasses.replace(VERBS["backbones"], **work))
    status, _, err = command("backbones")
    assert status == 74
    assert err == f"transferkit: error[io]: cannot use '{tmp_path}/none/file': No such file or directory\n"


@pytest.mark.parametrize("path", ["x" * 256, "x/" * 2100, "./" + "é" * 128])
@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "--data", "sample", "--out"), ("finetune", "--data"), ("probe", "--data", "sample", "--store"),
        ("check", "--data", "sample", "--fix"), ("finetune", "--data", "sample", "--init-from"), ("report",),
        ("evaluate",), ("export",), ("predict",), ("predict", "run"), ("store", "list", "--store"), ("serve",),
    ],
)  # fmt: skip
def test_paths_that_are_too_long(command, words, path):  # fault 153
    status, _, err = command(*words, path)
    assert (status, err.count("\n")) == (2, 1)
    assert f"({len(path) + 2:,} characters), longer than a path can be" in err or len(path) < 200
    assert len(err) < 800


def test_debug_shows_the_traceback(command):
    status, _, err = command("finetune", "--epochs", "0", "--debug")
    assert status == 2
    assert "Traceback" in err


def test_terminal_escapes_in_names_are_made_visible(command, tmp_path, monkeypatch):  # fault 92
    monkeypatch.chdir(tmp_path)
    status, _, err = command("finetune", "--data", "no\x1b[31m\nsuch")
    assert status == 3
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_the_commands_signal_handler_does_not_outlive_it(command):
    before = signal.getsignal(signal.SIGTERM)
    command("finetune", "--data", "/no/such/folder")
    assert signal.getsignal(signal.SIGTERM) is before


def test_missing_accelerator(command, tmp_path, monkeypatch):  # fault 43
    monkeypatch.chdir(tmp_path)
    status, _, err = command("finetune", "--data", "sample", "--accelerator", "mps")
    assert status == 2
    assert "--accelerator mps is not on this machine, which has: cpu" in err


def test_numbers_with_an_exponent_are_numbers_wherever_they_stand(tmp_path):  # fault 121
    phase = "{name: a, epochs: 1, lr: 1e-3, group_lrs: {layer4: 3e-4, head: .5E-2, stem: -1.5e+1}}"
    path = recipe(tmp_path, f"data: d\nphases: [{phase}]\n")
    config = parse_options("finetune", ["--config", str(path)])["phases"][0]
    assert (config["lr"], config["group_lrs"]) == (1e-3, {"layer4": 3e-4, "head": 5e-3, "stem": -15.0})


def test_names_are_printed_as_they_are(tmp_path, command, monkeypatch):  # fault 113
    monkeypatch.chdir(tmp_path)
    names = ("[red]a", ":cat:", "[b")
    for name in names:
        draw_folder(tmp_path / "data", classes=(name,), per_class=2, size=32, seed=len(name))
    _, out, err = command("check", "--data", tmp_path / "data", "--quick")
    assert all(name in out for name in names), err
