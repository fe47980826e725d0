"""The plan of the house: imports only go down, start-up is light, one public door, every guard can fail."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import transferkit

PACKAGE = Path(transferkit.__file__).parent

# Lowest first. A module may import from its own row and from the rows above it in this list.
ROWS = (
    ("transferkit", "transferkit.core"),
    ("transferkit.machine",),
    ("transferkit.show",),
    ("transferkit.options",),
    ("transferkit.data",),
    ("transferkit.models",),
    ("transferkit.features",),
    ("transferkit.runs",),
    ("transferkit.training",),
    ("transferkit.results",),
    ("transferkit.tasks",),
    ("transferkit.cli",),
    ("transferkit.__main__",),
)
# Wings that lie side by side: pictures know nothing of models, and models nothing of pictures, but what labels mean.
SEPARATE = (("transferkit.models", "transferkit.data"),)
BETWEEN = "transferkit.data.index.targets"


def row_of(module):
    for number, row in reversed(list(enumerate(ROWS))):
        if any(module == name or (name != "transferkit" and module.startswith(f"{name}.")) for name in row):
            return number
    raise AssertionError(f"{module} is in no row of the house")


def imports_of(source, module):
    """Names of transferkit modules imported anywhere in a file, except for type checking of the public door."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "transferkit":
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "transferkit")


def upward_imports(files):
    """Sentences for every import that goes up; `files` maps module names to sources."""
    found = []
    for module, source in files.items():
        if module == "transferkit":
            continue  # the door: it names its rooms for type checkers and loads them on first use
        for target in imports_of(source, module):
            if row_of(target) > row_of(module):
                found.append(f"{module} -> {target}: upward import")
            for lower, other in SEPARATE:
                if module.startswith(lower) and target.startswith(other) and target != BETWEEN:
                    found.append(f"{module} -> {target}: import between separate wings")
    return found


def cycles(files):
    """Modules that import each other in a circle."""
    graph = {module: {t for t in imports_of(source, module) if t in files} for module, source in files.items()}
    graph["transferkit"] = set()
    found = []

    def walk(module, trail):
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
            return
        for target in graph[module]:
            walk_once(target, [*trail, module])

    seen = set()

    def walk_once(module, trail):
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in seen:
            walk(module, trail)
            seen.add(module)

    for module in graph:
        walk_once(module, [])
    return found


def package_files():
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("transferkit", *path.relative_to(PACKAGE).with_suffix("").parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return files


def test_imports_only_go_down():
    assert upward_imports(package_files()) == []


def test_the_import_test_can_fail():
    bad = {
        "transferkit.data.index.index": "from transferkit.training.loop.phase_schedule import PhaseSchedule",
        "transferkit.models.heads.registry": "import transferkit.data.images.decode",
    }
    assert upward_imports(bad) == [
        "transferkit.data.index.index -> transferkit.training.loop.phase_schedule: upward import",
        "transferkit.models.heads.registry -> transferkit.data.images.decode: import between separate wings",
    ]


def test_no_circles():
    assert cycles(package_files()) == []


def test_the_circle_test_can_fail():
    circle = {
        "transferkit": "",
        "transferkit.data.a": "import transferkit.data.b",
        "transferkit.data.b": "from transferkit.data.a import x",
    }
    assert cycles(circle) == ["transferkit.data.a -> transferkit.data.b -> transferkit.data.a"]


def test_no_two_files_of_tests_have_one_name():  # pytest would collect only one of them
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def unnamed_encodings(source):
    """Lines that open, read or write text without naming its encoding; ruff's own rule sees no variables of paths."""
    found = []
    for node in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        words = {word.arg: word.value for word in node.keywords}
        if "encoding" in words:
            continue
        place = {"open": isinstance(node.func, ast.Name), "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0}
        if name in place:
            default = "r" if "open" in name else "w+b"
            mode = words.get("mode", node.args[place[name]] if len(node.args) > place[name] else ast.Constant(default))
            # `archive.open(entry)` has no mode in that place, and what it gives are bytes
            text = isinstance(mode, ast.Constant) and set(str(mode.value)) <= set("rwxat+")
        else:
            text = {"read_text": not node.args, "write_text": len(node.args) < 2, "TextIOWrapper": True}.get(
                name, False
            )
        asked = [words[word] for word in ("text", "universal_newlines") if word in words]
        if text or any(isinstance(value, ast.Constant) and value.value is True for value in asked):
            found.append(node.lineno)
    return found


def test_every_text_names_its_encoding():
    """Else a name with an accent reads otherwise under another locale."""
    root = PACKAGE.parent
    files = [path for folder in (PACKAGE, root / "tests", root / "recipes") for path in folder.rglob("*.py")]
    places = [(path, line) for path in files for line in unnamed_encodings(path.read_text(encoding="utf-8"))]
    assert [f"{path.relative_to(root)}:{line}" for path, line in places] == []


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("path.read_text()", False),
        ("path.read_text(errors='replace')", False),
        ("path.read_text('utf-8')", True),
        ("path.write_text('x')", False),
        ("path.write_text('x', encoding='utf-8')", True),
        ("path.open()", False),
        ("path.open('w', newline='')", False),
        ("path.open('rb')", True),
        ("path.open(mode='a')", False),
        ("archive.open(entry)", True),
        ("open(path)", False),
        ("open(path, 'w+')", False),
        ("open(path, 'rb')", True),
        ("open(path, encoding='utf-8')", True),
        ("os.fdopen(handle, 'w')", False),
        ("tempfile.NamedTemporaryFile()", True),
        ("tempfile.NamedTemporaryFile('w')", False),
        ("io.TextIOWrapper(stream)", False),
        ("subprocess.run(words, text=True)", False),
        ("subprocess.run(words, capture_output=True)", True),
        ("subprocess.run(words, encoding='utf-8')", True),
    ],
)
def test_the_encoding_test_can_fail(code, named):
    assert unnamed_encodings(code) == ([] if named else [1])


def test_modules_are_rooms():
    """A docstring line of purpose, no `utils`, and at most 400 lines (350 is a hint that there are two ideas)."""
    for module, source in package_files().items():
        assert ast.get_docstring(ast.parse(source)), module
        assert "utils" not in module
        assert source.count("\n") <= 400, f"{module} has {source.count(chr(10))} lines"


HEAVY = ("torch", "torchvision", "timm", "lightning", "albumentations", "sklearn", "matplotlib", "cv2", "numpy", "PIL")


def loaded_by(code, names=HEAVY):
    script = f"{code}\nimport sys\nprint(*(name for name in {names!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=True)
    return result.stdout.split("\n")[-2].split()


@pytest.mark.parametrize(
    "code",
    [
        "import transferkit",
        "from transferkit.cli.main import main; main(['--help'])",
        "from transferkit.cli.main import main; main(['finetune', '--help'])",
        "from transferkit.cli.main import main; main(['predict', '--help'])",
        "from transferkit.cli.main import main; main(['finetune', '--epochs', '0'])",
        "import transferkit.training.schedules.schedules, transferkit.training.plan.phases",
        "import transferkit.options.features",
        "import transferkit.machine.cores, transferkit.machine.timings",
    ],
)
def test_start_up_is_light(code):
    assert loaded_by(code) == []


def test_the_audit_loads_a_network_only_when_it_looks():
    assert loaded_by("import transferkit.results.audit.audit") == ["numpy", "PIL"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["check", "--data", "{folder}", "--quick", "--out", "{store}", "--quiet"], ["numpy", "PIL"]),
        (["store", "list", "--store", "{store}"], ["numpy"]),
        (["store", "verify", "--store", "{store}", "--quiet"], ["numpy"]),
        (["store", "gc", "--store", "{store}"], ["numpy"]),
    ],
)
def test_verbs_without_a_network_load_none(folder, tmp_path, words, expected):
    """Nor Lightning for a progress bar (`tests/bench/startup.py` has the seconds)."""
    words = [word.format(folder=folder, store=tmp_path / "store") for word in words]
    assert loaded_by(f"from transferkit.cli.main import main; assert main({words!r}) == 0") == expected


ASIDE = (
    "albumentations", "lightning", "matplotlib.pyplot", "optuna", "pandas", "peft", "pyarrow", "scipy.optimize",
    "scipy.stats", "sklearn", "tensorboard", "torchmetrics", "transformers", "wandb",
)  # fmt: skip
"""What one verb or another can do without, and takes a tenth of a second or more."""


LIGHTNING = {"lightning", "matplotlib.pyplot", "torchmetrics"}
"""Lightning loads torchmetrics, and that matplotlib."""

TRAINING = LIGHTNING | {"albumentations"}


AT_FIRST_STEP = """
import os, sys
from transferkit.models.module import TransferModule

def step(*_):
    print(*(name for name in {names!r} if name in sys.modules), flush=True)
    os._exit(0)

TransferModule.training_step = step
from transferkit.cli.main import main
sys.exit(main({words!r}) or 1)
"""


def of_small_network(folder):
    network = "--backbone transferkit/mini --weights bundled --image-size 32 --accelerator cpu --precision 32"
    return ["--data", str(folder), *network.split(), "--quiet"]


@pytest.mark.parametrize("verb", ["features", "predict"])
def test_verbs_load_what_they_use(folder, tmp_path, verb):
    model, out = PACKAGE.parent / "tests" / "fixtures" / "model_0_1", ["--out", str(tmp_path / "predictions.csv")]
    words, allowed = {
        "features": (["features", *of_small_network(folder), "--store", str(tmp_path / "store")], set()),
        "predict": (["predict", str(model), str(folder / "train"), *out, "--quiet"], LIGHTNING),
    }[verb]
    assert set(loaded_by(f"from transferkit.cli.main import main; assert main({words!r}) == 0", ASIDE)) <= allowed


def test_fine_tuning_loads_what_it_uses_until_the_first_step(folder, tmp_path):
    words = [
        "finetune",
        *of_small_network(folder),
        "--phases",
        "finetune",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "r"),
    ]
    script = AT_FIRST_STEP.format(names=ASIDE, words=words)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=True)
    assert set(result.stdout.split()) <= TRAINING


DOORS = {
    "timm": "models/backbones/timm_import.py",
    "lightning": "machine/lightning_import.py",
    "torchmetrics": "machine/lightning_import.py",
}
"""The one module that imports a library, where it matters how that is done."""


def imports(source, library):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if any(name.split(".")[0] == library for name in names):
            return True
    return False


@pytest.mark.parametrize("library", DOORS)
def test_one_module_imports_a_library(library):
    found = [path for path in PACKAGE.rglob("*.py") if imports(path.read_text(encoding="utf-8"), library)]
    assert found == [PACKAGE / DOORS[library]]


def test_the_search_for_imports_can_fail():
    assert imports("import timm.data", "timm") and imports("def f():\n    from timm import create_model", "timm")
    assert not imports("from transferkit.models.backbones.timm import build_timm", "timm")


def test_the_start_up_test_can_fail():
    assert loaded_by("import wave, json", ("wave", "json", "chunk.not_there")) == ["wave", "json"]
    assert loaded_by("import numpy") == ["numpy"]


def test_one_door():
    assert sorted(transferkit.__all__) == sorted(transferkit._HOMES)
    assert len(transferkit.__all__) <= 20
    for name in transferkit.__all__:
        assert getattr(transferkit, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'finetun'"):
        transferkit.finetun  # noqa: B018


def test_version_is_the_changelogs():
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {transferkit.__version__}" in changelog
    assert f'version = "{transferkit.__version__}"' in (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")


def imported_conftests(tests):
    """Sentences for every test that imports a conftest by name: which of several it gets depends on their order."""
    named = re.compile(r"^\s*(from|import) conftest\b", re.MULTILINE)
    return [
        f"{path.name} imports conftest"
        for path in sorted(tests.rglob("*.py"))
        if named.search(path.read_text(encoding="utf-8"))
    ]


def test_no_test_imports_a_conftest(tmp_path):
    assert imported_conftests(Path(__file__).parent) == []
    (tmp_path / "test_it.py").write_text("def test_it():\n    from conftest import draw\n", encoding="utf-8")
    assert imported_conftests(tmp_path) == ["test_it.py imports conftest"]
