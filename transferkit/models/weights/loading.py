"""Weights into a backbone: every tensor must fit, and they are copied whole or not at all."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from transferkit.core.errors import BackboneError, TransferkitWarning
from transferkit.core.text import listing
from transferkit.models.weights.files import HEAD_NAMES, unwrapped_names

__all__ = ["load_backbone_weights", "not_finite"]

_COUNTER = "num_batches_tracked"  # absent from files of old trainers; evaluation does not use it
_SHOWN = 3  # names listed per kind of problem


def load_backbone_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, classifier: tuple[str, ...] = ()
) -> None:
    """Copy `state` into `module`, or raise and leave the module as it was.

    Every parameter and persistent buffer of the module must be in the file with the same shape and kind of number;
    only ``num_batches_tracked`` may be missing. What the file has beyond that must belong to a head: a prefix in
    `classifier`, or a usual head name such as ``fc``. Anything else left over means that the file is of another
    architecture, even when all names match: the tensors of a resnet18 are a part of those of a resnet34.

    Where the tensors lie under a prefix, as self-supervised trainings leave them (``teacher.backbone.``,
    ``module.encoder_q.``, ``encoder.``), and one prefix alone fits, what is under it is the file; a warning says so.

    Args:
        module: The backbone, on any device; its dtypes are kept.
        state: Tensors by name, as from `files.read_state_dict`.
        source: Name of the weights in messages: a file or a hub id.
        classifier: Prefixes of the classifier the weights were trained with, such as ``("fc",)``.

    Raises:
        BackboneError: Tensors are missing, of another shape or kind, left over, or not finite; or several networks of
            the file fit.
    """
    module_tensors = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    own, stored = _same_naming(module_tensors, state)
    required = [name for name in own if not name.endswith(_COUNTER)]
    prefix = "" if all(name in stored for name in required) else _prefix(own, required, state, source)
    if prefix:
        stored = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        warnings.warn(f"weights {source!r}: taken from under {prefix!r}", TransferkitWarning, stacklevel=3)
    mismatched = {name: why for name in required if name in stored and (why := _mismatch(own[name], stored[name]))}
    missing = [name for name in required if name not in stored]
    heads = tuple(prefix.rstrip(".") for prefix in classifier)
    left_over = [name for name in stored if name not in own and not name.endswith(_COUNTER) and not _under(name, heads)]
    unexpected = [name for name in left_over if name.partition(".")[0] not in HEAD_NAMES]
    matched = len(required) - len(missing) - len(mismatched)
    if missing or mismatched or unexpected:
        shown = [
            _listed("missing", [f"{name!r}{_nearest(name, stored)}" for name in missing[:_SHOWN]], len(missing)),
            _listed("different", [f"{n!r} {w}" for n, w in list(mismatched.items())[:_SHOWN]], len(mismatched)),
            _listed("left over", [repr(name) for name in unexpected[:_SHOWN]], len(unexpected)),
        ]
        raise BackboneError(
            f"weights {source!r} do not fit the backbone: {matched} of {len(required)} tensors matched; "
            f"{'; '.join(filter(None, shown))} - {_likely_cause(missing, mismatched, stored)}"
        )
    ready = {
        name: stored[key].detach().to(dtype=module_tensors[name].dtype)
        for name, key in zip(module_tensors, own, strict=True)
        if key in stored
    }
    bad = not_finite(ready, module)
    if bad:
        names = _listed("in", [repr(name) for name in bad[:_SHOWN]], len(bad))
        raise BackboneError(
            f"weights {source!r} hold NaN or infinity {names} - the file is damaged or its training diverged; "
            "use other weights"
        )
    module.load_state_dict(ready, strict=False)  # strictness is ours, above: torch's would insist on the counters


def _same_naming(
    module: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the module's tensors, in order, and the file's, both named as makes more of the names agree.

    A backbone may itself be called ``backbone.``, and then its saved file loses the prefix in `read_state_dict`.
    """
    as_they_are = dict(module), dict(state)
    shortened = _shortened(module), _shortened(state)
    if len(shortened[0]) < len(module):  # two names became one
        return as_they_are
    return max(as_they_are, shortened, key=lambda pair: len(pair[0].keys() & pair[1].keys()))


def _prefix(own: Mapping[str, Tensor], required: Sequence[str], state: Mapping[str, Tensor], source: str) -> str:
    """Return the one prefix under which every tensor of the backbone fits; ``""`` where there is none."""
    first = f".{required[0]}" if required else ""
    prefixes = sorted({name[: -len(first) + 1] for name in state if first and name.endswith(first)})
    fitting = [
        prefix
        for prefix in prefixes
        if all(f"{prefix}{name}" in state and state[f"{prefix}{name}"].shape == own[name].shape for name in required)
    ]
    if len(fitting) > 1:
        raise BackboneError(
            f"weights {source!r} hold {len(fitting)} networks that fit, under {listing(fitting)} - save the one that "
            "is meant alone, and pass that file"
        )
    return fitting[0] if fitting else ""


def _shortened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    short = unwrapped_names(tensors)
    return {short[name]: value for name, value in tensors.items()}


def _mismatch(own: Tensor, stored: Tensor) -> str:
    """Return how a tensor of the file differs from the module's, or ``""``."""
    if stored.layout is not torch.strided or stored.is_quantized:
        return "is sparse or quantized in the file"
    if stored.shape != own.shape:
        return f"is {tuple(stored.shape)} in the file, {tuple(own.shape)} in the backbone"
    if stored.is_floating_point() != own.is_floating_point() or stored.is_complex() != own.is_complex():
        return f"is {stored.dtype} in the file, {own.dtype} in the backbone"
    return ""


def not_finite(state: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    """Return the names of the tensors for a module that hold NaN or infinity where its own buffers hold none."""
    buffers = dict(module.named_buffers())
    return [name for name, value in state.items() if not _finite(value, buffers.get(name))]


def _finite(new: Tensor, current: Tensor | None) -> bool:
    """Whether `new` is finite, or as infinite as the buffer it replaces: attention masks hold -inf."""
    finite = torch.isfinite(new)
    return bool(finite.all()) or (current is not None and torch.equal(finite, torch.isfinite(current).cpu()))


def _under(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (nearest in the file: {close[0]!r})" if close else ""


def _likely_cause(missing: Sequence[str], mismatched: Mapping[str, str], stored: Mapping[str, Tensor]) -> str:
    """Return a guess at why the names or shapes do not agree, and what to do."""
    if missing:
        absent = set(missing)
        extra = Counter(front for name in stored for front, tail in _splits(name) if tail in absent)
        lacking = Counter(front for name in missing for front, tail in _splits(name) if tail in stored)
        for fronts, advice in (
            (extra, "carry the prefix {!r}: save them without it"),
            (lacking, "lack the prefix {!r}"),
        ):
            if fronts and fronts.most_common(1)[0][1] * 2 > len(missing):
                return "the file's names " + advice.format(fronts.most_common(1)[0][0])
    elif mismatched:
        return "they look like another size of this architecture, another image size or other input channels"
    return "they look like another architecture's; name the backbone they were made for, or pass other weights"


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield every ``("a.b.", "c")`` way to cut a dotted name in two."""
    parts = name.split(".")
    for cut in range(1, len(parts)):
        yield ".".join(parts[:cut]) + ".", ".".join(parts[cut:])


def _listed(title: str, shown: Sequence[str], total: int) -> str:
    if not total:
        return ""
    more = f" and {total - len(shown)} more" if total > len(shown) else ""
    return f"{title} {', '.join(shown)}{more}"
