"""The options of `advise`: which backbones compete, on what, and by what they are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from transferkit.core.documents import parse_json, parse_yaml
from transferkit.core.errors import ConfigError, did_you_mean
from transferkit.core.files import user_path
from transferkit.core.text import one_line, shown
from transferkit.options.data import BackboneOptions, DataOptions
from transferkit.options.features import ComputeOptions
from transferkit.options.fields import at_least, option, option_problems, same_option
from transferkit.options.sizes import image_size_of

__all__ = ["SMALL", "AdviseConfig", "Candidate", "read_backbones"]

SMALL: Final = (
    "transferkit/mini", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0", "resnet18", "resnet50",
    "regnety_008", "convnext_tiny", "vit_small_patch16_224",
)  # fmt: skip
"""Backbones of at most 30 million parameters, one or two of each family that is usually fine-tuned: ``small``."""

KEYS: Final = ("backbone", "weights", "image_size")
_FILES: Final = (".yaml", ".yml", ".json")
_MOST_BYTES: Final = 1_000_000
_ENTRY: Final = "a candidate is a name, or {backbone: NAME, weights: ..., image_size: ...}"


@dataclass(frozen=True)
class Candidate:
    """A backbone with its weights at an input size: what is compared.

    Attributes:
        backbone: Its name.
        weights: As ``--weights`` has them.
        image_size: As ``--image-size`` has it, a side or ``"224x320"``; ``None`` for the backbone's own.
    """

    backbone: str
    weights: str
    image_size: int | str | None

    @property
    def name(self) -> str:
        """The backbone, with ``@`` and the size where one was named."""
        return self.backbone if self.image_size is None else f"{self.backbone}@{self.image_size}"

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the model's input; ``None`` for the backbone's own."""
        return image_size_of(self.image_size)

    def options(self) -> dict[str, Any]:
        """Return it as options of the verbs that take one backbone."""
        values = {"backbone": self.backbone, "weights": self.weights, "image_size": self.image_size}
        return {key: value for key, value in values.items() if value is not None}


def read_backbones(value: Any) -> list[dict[str, Any]]:
    """Return the candidates that an option names, a mapping with some of `KEYS` each.

    Args:
        value: ``"small"``; names with commas between them, ``NAME@SIZE`` for one at a size; the path of a file with a
            list; or the list: names, or mappings.

    Raises:
        ConfigError: With everything that is wrong with it.
    """
    if not isinstance(value, str):
        return _entries(value, "--backbones")
    if value.strip() == "small":
        return [{"backbone": name} for name in SMALL]
    if Path(value).suffix.lower() not in _FILES:
        return _entries([part.strip() for part in value.split(",")], "--backbones")
    path = Path(user_path(value))
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"--backbones {value} has more than {_MOST_BYTES:,} bytes, expected a list of candidates")
        text = path.read_text(encoding="utf-8")
        entries = parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except OSError as error:
        raise ConfigError(
            f"--backbones {value} cannot be read ({error.strerror}) - expected a file with a list of candidates"
        ) from error
    except ValueError as error:
        raise ConfigError(f"--backbones {value}: {one_line(error)} - expected a list of candidates") from error
    return _entries(entries, value)


def _entries(entries: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list | tuple) or not entries:
        raise ConfigError(f"{where}: expected a list of candidates, one at least, got {shown(entries)} - {_ENTRY}")
    read, problems = [], []
    for number, entry in enumerate(entries, 1):
        place = f"{where}: candidate {number}"
        if isinstance(entry, str):
            name, at, size = entry.partition("@")
            entry = {"backbone": name.strip(), **({"image_size": _size(size)} if at else {})}
        if not isinstance(entry, Mapping) or not entry.get("backbone"):
            problems.append(f"{place} is {shown(entry)} - {_ENTRY}")
            continue
        unknown = [key for key in entry if key not in KEYS]
        problems += [f"{place}: unknown key {shown(key)}.{did_you_mean(str(key), KEYS)} Known: {', '.join(KEYS)}"
                     for key in unknown]  # fmt: skip
        if not unknown:
            values = {str(key): value for key, value in entry.items() if value is not None}
            problems += [f"{place}: {problem}" for problem in option_problems(BackboneOptions, {"data": "-", **values})]
            read.append(values)
    if problems:
        raise ConfigError("; ".join(problems))  # they are one item of what is wrong with the options
    return read


def _written(size: int | str | list[int] | None) -> int | str | None:
    """Return a size as it is written: a list of height and width with an ``x`` between them."""
    return "x".join(map(str, size)) if isinstance(size, list | tuple) else size


def _size(text: str) -> int | str:
    """Return the size behind ``@``: a number where it is one."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else text


@dataclass(frozen=True, kw_only=True)
class AdviseConfig(DataOptions):
    """Say which backbone suits the pictures, and how to tune it; writes a recipe that runs."""

    backbones: str | list[Any] = option(
        "small",
        "candidates: small, names with commas between them (NAME@SIZE for one at a size), or a .yaml or .json FILE: a "
        "list of {backbone, weights, image_size}",
        reads=read_backbones,
    )
    weights: str = option(
        "pretrained", "{pretrained|bundled|random|FILE|hf-hub:ID} of candidates that name none of their own"
    )
    image_size: int | str | list[int] | None = option(
        None, "model's input in pixels of candidates that name none: a side, or HEIGHTxWIDTH; default: the backbone's "
        "own",
    )  # fmt: skip
    source: str | None = option(
        None, "folder of pictures like those the weights were trained on: how unlike them the data are is tested"
    )
    folds: int = option(5, "folds of the cross-validation inside the training split", at_least(2))
    halving: bool = option(
        True, "drop candidates early that are clearly behind on a part of the pictures (successive halving)"
    )
    pictures: int | None = option(None, "training pictures to measure on at most; default: all of them", at_least(20))
    depth: bool = option(True, "also probe every stage of the best candidate: whether earlier features suit better")
    store: str | None = same_option(ComputeOptions, "store")
    precision: Literal["auto", "32", "bf16"] = same_option(ComputeOptions, "precision")
    compile: Literal["auto", "on", "off"] = same_option(ComputeOptions, "compile")
    batch_size: int | None = same_option(ComputeOptions, "batch_size")
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = same_option(ComputeOptions, "accelerator")
    workers: int | None = same_option(ComputeOptions, "workers")
    out: str | None = option(None, "directory for recipe, table and plot; default: runs/<data>-advice-<n>")
    overwrite: bool = option(False, "replace the advice in --out; it is deleted only when the new one is done")
    quiet: bool = option(False, "no progress bars, no table")

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates, each with weights and size."""
        shared = {"weights": self.weights, "image_size": self.image_size}
        read = [{**shared, **entry} for entry in read_backbones(self.backbones)]
        return [
            Candidate(entry["backbone"], user_path(entry["weights"]), _written(entry["image_size"])) for entry in read
        ]

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        shared = {"data": "-", "weights": self.weights, "image_size": self.image_size}
        yield from option_problems(BackboneOptions, shared)
        try:
            candidates = self.candidates
        except ConfigError:  # which is told of the option itself
            return
        twice = sorted({one.name for one in candidates if candidates.count(one) > 1})
        if twice:
            yield f"--backbones names a candidate twice: {', '.join(twice)} - each competes once"
