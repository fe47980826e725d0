"""Gradients of a module of one's own, checked against differences of its outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from transferkit.core.errors import ConfigError, gather
from transferkit.core.text import first_line

__all__ = ["check_gradients"]

EXACT = 128
"""Up to so many elements are differentiated one by one."""

SUMS = 32
"""A larger tensor is cut into so many pieces, and each is shifted as a whole, by random signs."""

REPEATS = 4

_INPUT = "the input"


def check_gradients(
    module: nn.Module, inputs: Tensor, *, eps: float = 1e-6, atol: float = 1e-5, rtol: float = 1e-3
) -> None:
    """Compare a module's gradients with central differences: `torch.autograd.gradcheck` for its input and parameters.

    For heads and layers of your own, above all those with a ``torch.autograd.Function``. A copy in float64 and eval
    mode is checked; `module` itself, its gradients and the random generators stay as they are.

    The elements of a large tensor are checked in sums, not one by one, so a whole network takes minutes, not days.

    A function has no derivative at a kink (ReLU at 0, a maximum of two equal values): draw `inputs` at random.

    Args:
        module: Takes one tensor and returns one.
        inputs: What it shall be checked at, such as features ``(B, D)``; a few rows are enough.
        eps: Step of the differences.
        atol: Absolute tolerance.
        rtol: Relative tolerance.

    Raises:
        ConfigError: Gradients are wrong, cut off (``detach``) or random, with the names of the parameters; or the
            module cannot be checked, because it fails in float64 or is random in eval mode.
    """
    if not inputs.is_floating_point():
        raise ConfigError(f"inputs are of {inputs.dtype}, expected floating point - gradients need real numbers")
    kind = type(module).__name__
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        work = _copy(module)
        tensors = {_INPUT: inputs.detach().double().requires_grad_()}
        tensors |= {name: parameter for name, parameter in work.named_parameters() if parameter.is_floating_point()}
        output = _check_outputs(work, tensors[_INPUT], kind)
        cut = _cut_off(output, tensors, kind)
        problems: dict[str, list[str]] = {"cut off": [], "wrong": []}
        cause: GradcheckError | None = None
        for name, tensor in tensors.items():
            try:
                function, shift = _function(work, tensors[_INPUT], name, tensor)
                torch.autograd.gradcheck(
                    function,
                    (shift,),
                    eps=eps,
                    atol=atol,
                    rtol=rtol,
                    nondet_tol=1e-9,
                    check_undefined_grad=False,  # the gradient of a single output is always there
                )
            except GradcheckError as error:
                problems["cut off" if name in cut else "wrong"].append(name)
                cause = error
    if cause is not None:
        raise ConfigError(_message(kind, problems)) from cause


def _copy(module: nn.Module) -> nn.Module:
    try:
        work = copy.deepcopy(module).double().eval()
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"{type(module).__name__} cannot be copied ({first_line(error)}) - check a newly built one, before its "
            "first forward"
        ) from error
    for parameter in work.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()
    return work


def _function(
    module: nn.Module, inputs: Tensor, name: str, tensor: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the module as a function of a shift of one of its tensors, and the shift of 0 to check it at.

    It gets a copy of the input, since a layer may work in place.
    """
    count = tensor.numel()
    pieces = count if count <= EXACT else SUMS
    length = -(-count // max(pieces, 1))
    signs = torch.randint(2, (count,), generator=torch.Generator().manual_seed(0)) * 2 - 1
    signs = signs.to(tensor)

    def shifted(shift: Tensor) -> Tensor:
        spread = shift[:, None].expand(-1, length).reshape(-1)[:count] * signs
        moved = tensor.detach() + spread.reshape(tensor.shape)
        output: Tensor = (
            module(moved) if name == _INPUT else functional_call(module, {name: moved}, (inputs.detach().clone(),))
        )
        return output

    return shifted, tensor.new_zeros(pieces, requires_grad=True)


def _check_outputs(module: nn.Module, inputs: Tensor, kind: str) -> Tensor:
    """Return what the module gives, once it is clear that it can be differentiated numerically."""
    try:
        outputs = [module(inputs.clone()) for _ in range(REPEATS)]
    except Exception as error:  # the user's own code: anything may come out of it
        raise ConfigError(
            f"{kind} fails in float64 on inputs {tuple(inputs.shape)} ({first_line(error)}) - create its tensors with "
            "the type of its input, and give inputs that it accepts"
        ) from error
    first = outputs[0]
    if not isinstance(first, Tensor):
        raise ConfigError(f"{kind} returns a {type(first).__name__}, expected one tensor - wrap it to return one")
    if first.dtype != torch.float64:
        raise ConfigError(
            f"{kind} returns {first.dtype} for float64 inputs, too coarse for differences - leave out `.float()` and "
            "the like, and create its tensors with the type of its input"
        )
    if not first.isfinite().all():
        raise ConfigError(f"{kind} returns values that are not finite - give inputs where it is defined")
    if not all(_same(first, other) for other in outputs[1:]):
        raise ConfigError(
            f"{kind} returns other values each time for the same input in eval mode, expected the same - let it draw "
            "only where `self.training` is set (F.dropout needs `training=self.training`), and keep no state"
        )
    return first


def _cut_off(output: Tensor, tensors: dict[str, Tensor], kind: str) -> set[str]:
    """Return the tensors that autograd cannot reach from `output`, once it is clear that backward is deterministic."""
    if not output.requires_grad:
        return set(tensors)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).reshape(output.shape)
    gradients = []
    try:
        for _ in range(REPEATS):
            gradients.append(
                torch.autograd.grad(output, list(tensors.values()), weights, retain_graph=True, allow_unused=True)
            )
    except Exception as error:  # the user's own backward
        raise ConfigError(f"{kind} fails in its backward pass ({first_line(error)}) - correct it") from error
    for name, *results in zip(tensors, *gradients, strict=True):
        first = results[0]
        if first is not None and not all(_same(first, other) for other in results[1:]):
            raise ConfigError(f"{kind} gives another gradient each time for {_named([name])}, expected the same - "
                              "let its backward draw nothing and keep no state")  # fmt: skip
    return {name for name, gradient in zip(tensors, gradients[0], strict=True) if gradient is None}


def _same(first: Tensor, other: Tensor) -> bool:
    # Not exactly: sums may be taken in another order on a GPU.
    return torch.allclose(first, other, rtol=1e-9, atol=1e-12, equal_nan=True)


def _message(kind: str, problems: dict[str, list[str]]) -> str:
    sentences = []
    if problems["wrong"]:
        sentences.append(
            f"{kind} has a wrong gradient for {_named(problems['wrong'])}: it is not the slope of what forward "
            "computes - correct its backward, or move the inputs if they lie on a kink"
        )
    if problems["cut off"]:
        sentences.append(
            f"{kind} gives no gradient for {_named(problems['cut off'])}, though its output depends on it - look for "
            "detach(), .data, .item(), numpy or no_grad in its forward"
        )
    return gather(sentences)


def _named(names: Sequence[str]) -> str:
    return " and ".join(name if name == _INPUT else f"parameter {name!r}" for name in names)
