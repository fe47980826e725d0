"""Weights of an earlier run: rows of the head go by the names of the classes, never by their places."""

import pytest
import torch

from transferkit.core.errors import TransferkitWarning
from transferkit.models.artifact import load_model, save_model
from transferkit.models.initial import load_weights_from
from transferkit.models.module import TransferModule


def model(names, head="linear", seed=0):
    torch.manual_seed(seed)
    return TransferModule("test_resnet", len(names), head, class_names=names, weights="random", image_size=32)


@pytest.mark.parametrize("head", ["linear", "mlp", "cosine"])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("b", "a"), None),  # only the order differs
        (("b", "new", "a"), "names that start fresh: 'new'"),
        (("a", "z"), "start fresh: 'z'; names of it that are not here: 'b'"),
    ],
)
def test_rows_go_by_name(tmp_path, head, names, words):  # fault 98
    old = model(("a", "b"), head).eval()
    save_model(tmp_path, old)
    new = model(names, head, seed=1)
    fresh = {name: tensor.clone() for name, tensor in new.head.state_dict().items()}
    if words is None:
        load_weights_from(tmp_path, new)
    else:
        with pytest.warns(TransferkitWarning, match=words):
            load_weights_from(tmp_path, new)
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        before, after = old(images), new.eval()(images)
    for column, name in enumerate(names):
        if name in ("a", "b"):
            assert torch.allclose(after[:, column], before[:, "ab".index(name)], atol=1e-6)
    if words is not None:
        place = names.index("new" if "new" in names else "z")
        rows = {
            key: tensor for key, tensor in new.head.state_dict().items() if tensor.ndim and len(tensor) == len(names)
        }
        assert rows and all(torch.equal(tensor[place], fresh[key][place]) for key, tensor in rows.items())


def test_equal_classes_say_nothing(tmp_path):
    old = model(("a", "b"))
    save_model(tmp_path, old)
    new = model(("a", "b"), seed=1)
    load_weights_from(tmp_path, new)
    assert all(torch.equal(tensor, new.head.state_dict()[key]) for key, tensor in old.head.state_dict().items())


class Tied(torch.nn.Module):
    """A head that holds one layer under two names."""

    def __init__(self, width):
        super().__init__()
        self.block = torch.nn.Linear(width, width)
        self.again = self.block
        self.out = torch.nn.Linear(width, 2)

    def forward(self, features):
        return self.out(self.again(torch.relu(self.block(features))))


def test_one_layer_under_two_names_is_saved_and_loaded(tmp_path):  # fault 93
    width = model(("a", "b")).backbone.num_features
    module = TransferModule(
        "test_resnet", 2, Tied(width), class_names=("a", "b"), weights="random", image_size=32
    ).eval()
    save_model(tmp_path, module)
    loaded, _ = load_model(tmp_path, head=Tied(width))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images), module(images))
    assert loaded.head.again is loaded.head.block
