"""Modules that others load unasked are loaded when they are used (trap 31)."""

import copy
import pickle
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from transferkit.machine.later import later

SHOP = """
PRICES = {"tea": 3}

def price(name):
    return PRICES[name]

class Tea:
    cups = 2
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The name of a module that can be imported."""
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "shop"
    sys.modules.pop("shop", None)


def test_names_are_had_and_loaded_when_they_are_used(shop):
    with later(shop):
        from shop import Tea, price
    assert shop not in sys.modules
    assert price("tea") == 3 and Tea.cups == 2
    assert sys.modules[shop].price is not price  # which the real one has by now, and keeps
    with pytest.raises(AttributeError, match="saucers"):
        Tea.saucers  # noqa: B018


def test_a_module_is_had_too(shop):
    with later(shop):
        import shop as held

        assert find_spec(shop) is not None and not hasattr(held, "__path__")
    assert shop not in sys.modules
    assert held.price("tea") == 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_as_good(shop, copied):
    with later(shop):
        from shop import price
    assert copied(price)("tea") == 3


def test_what_is_loaded_already_stays(shop):
    import shop as real

    with later(shop):
        import shop as again
    assert again is real and sys.modules[shop] is real


def test_what_is_not_installed_cannot_be_imported():
    with later("shop_that_is_not_there"), pytest.raises(ModuleNotFoundError):
        import shop_that_is_not_there  # noqa: F401


def test_a_mock_in_its_place_stays(monkeypatch):
    mock = ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", mock)  # without a spec, as mocks are
    with later("shop", "shop.stock"):
        import shop

        with pytest.raises(ModuleNotFoundError):
            import shop.stock
    assert shop is mock


def test_a_class_cannot_be_inherited_from(shop):
    with later(shop):
        from shop import Tea

        with pytest.raises(ImportError, match="shop.Tea is used while its module is put off"):

            class Green(Tea):
                pass

    with later("shop"), pytest.raises(ModuleNotFoundError):
        import shop.stock


def test_the_real_one_is_back_after_an_error(shop):
    with pytest.raises(ZeroDivisionError), later(shop):
        raise ZeroDivisionError
    import shop as real

    assert real.price("tea") == 3


HELD = """
import sys
from types import ModuleType
import transferkit.cli.job
from transferkit.machine.later import _Later, _StandIn

planted = sys.modules["planted"] = ModuleType("planted")
planted.name = _Later("wandb", "log")
for module in list(sys.modules.values()):
    for name, value in list(vars(module).items()):
        if type(value) in (_Later, _StandIn):
            print("held", module.__name__, name)
for name in ("torchmetrics", "scipy.signal", "transformers", "wandb"):
    print("loaded" if name in sys.modules else "absent", name)
"""


def test_what_lightning_and_timm_hold_is_used_in_functions_alone():
    """What the libraries of today hold names of: anything else has to be looked at before it is put off."""
    known = {
        ("held", "torchmetrics.functional.text.bert", "AutoModel"),
        ("held", "torchmetrics.functional.text.bert", "AutoTokenizer"),
        ("held", "timm.utils.summary", "wandb"),
    }
    result = subprocess.run([sys.executable, "-c", HELD], capture_output=True, encoding="utf-8", check=True)
    found = {tuple(line.split()) for line in result.stdout.splitlines()}
    planted = ("held", "planted", "name")  # by which the search is seen to find what there is
    assert planted in found and {line for line in found if line[0] == "held"} <= {planted, *known}
    assert {line for line in found if line[0] != "held"} == {
        ("loaded", "torchmetrics"),
        ("absent", "scipy.signal"),
        ("absent", "transformers"),
        ("absent", "wandb"),
    }


NEEDY = """
import sys

class Finder:
    tried = 0

    def find_spec(self, name, path, target=None):
        if name == "torchmetrics.functional.text.bert" and not self.tried:
            Finder.tried += 1
            raise ImportError("this version needs the real transformers at once")

sys.meta_path.insert(0, Finder())
from transferkit.machine.lightning_import import L, MeanMetric
import torchmetrics.functional.text.bert as bert
print(Finder.tried, L.Trainer.__name__, MeanMetric()(3.0).item(), type(bert.__dict__.get("AutoModel")).__name__)
"""


def test_a_torchmetrics_that_needs_them_at_once_gets_the_real_ones():
    result = subprocess.run([sys.executable, "-c", NEEDY], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout.startswith("1 Trainer 3.0 ") and "_Later" not in result.stdout
