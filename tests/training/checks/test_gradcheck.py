"""The gradient check: right for the built-in heads, and each kind of wrong gradient is named."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from transferkit.core.errors import ConfigError
from transferkit.models.heads.registry import build_head
from transferkit.training.checks.gradcheck import check_gradients


def features(count=3, width=6, **options):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("name", ["linear", "mlp", "cosine"])
@pytest.mark.parametrize("width", [6, 150])  # elements one by one, and in sums
def test_the_built_in_heads_pass(name, width):
    head = build_head(name, width, 4, drop_rate=0.5)
    head.register_buffer("kept", torch.ones(1))
    with torch.no_grad():
        for parameter in head.parameters():  # away from the small weights of the beginning
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before, x = copy.deepcopy(head.state_dict()), features(width=width)
    generator, values = torch.get_rng_state(), x.clone()
    check_gradients(head, x)
    assert head.training
    assert {tensor.dtype for tensor in head.state_dict().values()} == {torch.float32}
    assert all(value.equal(before[key]) for key, value in head.state_dict().items())
    assert all(parameter.grad is None for parameter in head.parameters())
    assert torch.get_rng_state().equal(generator)
    assert x.equal(values)
    assert not x.requires_grad


class MapHead(nn.Module):
    takes_maps = True

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, maps):
        return self.norm(self.conv(maps)).mean(dim=(2, 3))


def test_a_head_of_feature_maps_passes():
    check_gradients(MapHead(), torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0)))


def test_a_frozen_head_is_checked_all_the_same_and_stays_frozen():
    head = build_head("linear", 6, 4).requires_grad_(False)
    check_gradients(head, features())
    assert not any(parameter.requires_grad for parameter in head.parameters())
    with pytest.raises(ConfigError, match="wrong gradient for parameter 'weight'"):
        check_gradients(Custom("weight").requires_grad_(False), features())


class Scaled(torch.autograd.Function):
    """x * weight, whose backward may be off."""

    @staticmethod
    def forward(ctx, x, weight, faults):
        ctx.save_for_backward(x, weight)
        ctx.faults = faults
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        to_x, to_weight = grad * weight, (grad * x).sum(dim=0)
        if "input" in ctx.faults:
            to_x = to_x * 1.1
        if "weight" in ctx.faults:
            to_weight = to_weight + 0.01
        if "one" in ctx.faults:
            to_weight = to_weight + 0.5 * (torch.arange(len(to_weight)) == 3)
        if "random" in ctx.faults:
            to_weight = to_weight * torch.rand(len(to_weight))
        if "raises" in ctx.faults:
            raise RuntimeError("sizes do not fit")
        return to_x, to_weight, None


class Custom(nn.Module):
    def __init__(self, *faults, width=6):
        super().__init__()
        self.faults = faults
        self.weight = nn.Parameter(torch.linspace(1, 2, width))
        self.linear = nn.Linear(width, 4)

    def forward(self, x):
        return self.linear(Scaled.apply(x, self.weight, self.faults))


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (("input",), "^Custom has a wrong gradient for the input: it is not the slope"),
        (("weight",), "^Custom has a wrong gradient for parameter 'weight': it is not"),
        (("one",), "^Custom has a wrong gradient for parameter 'weight': it is not"),
        (("input", "weight"), "^Custom has a wrong gradient for the input and parameter 'weight': it"),
        (("random",), "^Custom gives another gradient each time for parameter 'weight', expected the same"),
        (("raises",), "^Custom fails in its backward pass .RuntimeError: sizes do not fit. - correct it"),
    ],
)
def test_a_wrong_backward_is_named(faults, message):
    check_gradients(Custom(), features())
    with pytest.raises(ConfigError, match=message):
        check_gradients(Custom(*faults), features())


@pytest.mark.parametrize("fault", ["weight", "one"])
def test_a_wrong_backward_of_a_large_tensor_is_found(fault):
    check_gradients(Custom(width=1500), features(width=1500))
    with pytest.raises(ConfigError, match="wrong gradient for parameter 'weight'"):
        check_gradients(Custom(fault, width=1500), features(width=1500))


class Written(nn.Module):
    """A layer whose forward is given."""

    def __init__(self, forward):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.count = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)  # no gradient, no complaint
        self.unused = nn.Parameter(torch.ones(2))
        self.calls = 0
        self._forward = forward

    def forward(self, x):
        self.calls += 1
        return self._forward(self, x)


def counting(self, x):
    return self.linear(x) * self.calls


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: self.linear(x.detach()), "^Written gives no gradient for the input, though its output"),
        (lambda self, x: self.linear(x).detach(),
         "gives no gradient for the input and parameter 'linear.weight' and parameter 'linear.bias', though"),
        (lambda self, x: x @ self.linear.weight.data.T, "gives no gradient for parameter 'linear.weight', though"),
        (lambda self, x: functional.dropout(self.linear(x), 0.5), "returns other values each time .* in eval mode"),
        (counting, "returns other values each time for the same input in eval mode"),
        (lambda self, x: self.linear(x).float(), r"returns torch.float32 for float64 inputs, .*leave out `.float\(\)`"),
        (lambda self, x: x @ torch.ones(6, 4), "fails in float64 on inputs .3, 6. .RuntimeError: .* - create its"),
        (lambda self, x: (self.linear(x), x), "returns a tuple, expected one tensor"),
        (lambda self, x: self.linear(x) / 0, "returns values that are not finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_said_plainly(forward, message):
    layer, generator = Written(forward), torch.get_rng_state()
    with pytest.raises(ConfigError, match=message) as caught:
        check_gradients(layer, features())
    assert "\n" not in str(caught.value)
    assert torch.get_rng_state().equal(generator)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.linear(x),
        lambda self, x: self.linear(functional.dropout(x, 0.5, training=self.training)),
        lambda self, x: self.linear(x.relu_()),  # in place on its input
        lambda self, x: self.linear(x + self.unused.detach().sum() * 0),  # detached, and nothing depends on it
    ],
)
def test_what_is_right_passes(forward):
    check_gradients(Written(forward), features())


def test_wrong_and_cut_off_come_together():
    def forward(self, x):
        return Scaled.apply(self.linear(x.detach()), self.unused.new_ones(4), ("input",))

    with pytest.raises(ConfigError, match=r"\(1\) Written has a wrong gradient for parameter 'linear.weight' and .*"
                                          r"\(2\) Written gives no gradient for the input"):  # fmt: skip
        check_gradients(Written(forward), features())


def test_inputs_of_whole_numbers_are_refused():
    with pytest.raises(ConfigError, match="inputs are of torch.int64, expected floating point"):
        check_gradients(nn.Linear(6, 4), torch.ones(3, 6, dtype=torch.int64))


def test_inputs_may_be_float64_and_share_their_rows():
    x = features(count=1, dtype=torch.float64).expand(3, 6)
    check_gradients(nn.Linear(6, 4), x)
    x = features(dtype=torch.float64)
    values = x.clone()
    check_gradients(Written(lambda self, x: self.linear(x.relu_())), x)
    assert x.equal(values)
    assert not x.requires_grad


def test_a_module_that_cannot_be_copied_is_named():
    layer = nn.Linear(6, 4)
    layer.cache = layer.weight * 2  # a tensor with a history
    with pytest.raises(ConfigError, match="^Linear cannot be copied .RuntimeError: .* - check a newly built one"):
        check_gradients(layer, features())
