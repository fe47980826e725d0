"""Relative gradient norms against autograd by hand, and the groups proposed from them."""

import copy
import math

import pytest
import torch
from small_runs import make_module
from torch import nn
from torch.nn import functional

from transferkit.core.errors import ConfigError, DataError, TrainingError
from transferkit.models.module import TransferModule
from transferkit.models.task import task_named
from transferkit.training.plan.surgical import propose_groups, relative_gradient_norms


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 3, 32, 32, generator=generator), torch.randint(3, (size,), generator=generator))
        for size in sizes
    ]


def by_hand(module, pictures):
    """One backward pass over all pictures at once, summed up parameter by parameter."""
    module = copy.deepcopy(module).eval().requires_grad_()
    images, targets = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    functional.cross_entropy(module(images), targets).backward()
    norms = {}
    for name, members in module.groups():
        gradient = sum((p.grad.double() ** 2).sum().item() for _, p in members)
        weights = sum((p.detach().double() ** 2).sum().item() for _, p in members)
        norms[name] = math.sqrt(gradient / weights)
    return norms


@pytest.mark.parametrize("trained", ["all", "head", "layer4"])
def test_norms_are_those_computed_by_hand_and_the_module_is_as_before(trained):
    module = make_module(drop_rate=0.5)
    module.train_groups(module.group_names() if trained == "all" else [trained])
    pictures = batches(4, 4, 2)  # the mean over pictures, not over batches
    expected = by_hand(module, pictures)
    gradients = {p: torch.full_like(p, 0.25) for p in module.parameters() if p.requires_grad}
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    state = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    grads = [p.requires_grad for p in module.parameters()]
    generator = torch.get_rng_state()
    rgn = relative_gradient_norms(module, iter(pictures))
    assert list(rgn) == list(module.group_names())
    assert rgn == pytest.approx(expected, rel=1e-4)
    assert all(value > 0 for value in rgn.values())
    assert all(value.equal(state[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == grads
    assert all(p.grad is gradients.get(p) for p in module.parameters())
    assert all((gradient == 0.25).all() for gradient in gradients.values())
    assert torch.get_rng_state().equal(generator)


class Tiny(TransferModule):
    """logits = x w: a single group beside the head, small enough to differentiate on paper."""

    def __init__(self, weight, head):
        nn.Module.__init__(self)
        self.task = task_named("classification")
        self.weight, self.other = nn.Parameter(torch.tensor([weight])), nn.Parameter(torch.tensor(head))

    def groups(self):
        return [("body", [("weight", self.weight)]), ("head", [("other", self.other)])]

    def forward(self, images):
        return images * self.weight * self.other  # (B, 1) * (1) * (2)

    learn = forward


def test_norms_on_paper():
    """d/dw log-loss = (p - y) . (x h), d/dh = (p - y) x w, for one picture x = 2, y = 0, w = 0.5, h = (1, -1)."""
    p = 1 / (1 + math.exp(-2.0))  # logits 1 and -1
    to_weight = abs((p - 1) * 2 * 1 + (1 - p) * 2 * -1)
    to_head = math.hypot((p - 1) * 2 * 0.5, (1 - p) * 2 * 0.5)
    rgn = relative_gradient_norms(Tiny(0.5, [1.0, -1.0]), [(torch.tensor([[2.0]]), torch.tensor([0]))])
    assert rgn == pytest.approx({"body": to_weight / 0.5, "head": to_head / math.sqrt(2)}, rel=1e-6)


def test_weights_of_zero_have_no_finite_ratio():
    one = [(torch.tensor([[2.0]]), torch.tensor([0]))]
    assert relative_gradient_norms(Tiny(0.0, [1.0, -1.0]), one) == {"body": math.inf, "head": 0.0}
    assert relative_gradient_norms(Tiny(0.0, [0.0, 0.0]), one) == {"body": 0.0, "head": 0.0}


def test_no_pictures_and_broken_ones_are_errors():
    module = make_module()
    with pytest.raises(DataError, match="no pictures to take gradients of"):
        relative_gradient_norms(module, [])
    images, targets = batches(2)[0]
    modes = [part.training for part in module.modules()]
    with pytest.raises(TrainingError, match="the gradient of group 'stem' is nan"):
        relative_gradient_norms(module, [(images * math.nan, targets)])
    module.train_groups(["head"])
    with pytest.raises(IndexError):  # whatever comes out of a batch, the module is put back
        relative_gradient_norms(module, [(images, targets + 9)])
    assert {name for name, members in module.groups() for _, p in members if p.requires_grad} == {"head"}
    assert len(modes) == len(list(module.modules()))


NAMES = ("stem", "layer1", "layer2", "head")


@pytest.mark.parametrize(
    ("rgn", "proposed"),
    [
        ((0.1, 0.4, 0.2, 9.0), ("layer1", "layer2", "head")),  # exactly half of the largest counts
        ((0.1, 0.4, 0.199, 0.0), ("layer1", "head")),
        ((3.0, 3.0, 3.0, 0.0), NAMES),
        ((0.0, 0.0, 0.0, 1.0), ("head",)),
        ((math.inf, 0.4, 0.1, 1.0), ("stem", "layer1", "head")),
    ],
)
def test_proposed_groups(rgn, proposed):
    assert propose_groups(dict(zip(NAMES, rgn, strict=True)), NAMES) == proposed


def test_a_group_without_a_norm_is_an_error():
    with pytest.raises(ConfigError, match=r"\(1\) group 'layer1' has a relative gradient norm of None.*\(2\).*of nan"):
        propose_groups({"stem": 1.0, "layer2": math.nan}, NAMES)
