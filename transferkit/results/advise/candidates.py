"""Candidates as networks: built one by one, those that cannot be had left out with their reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transferkit.core.errors import BackboneError, ConfigError, did_you_mean, gather
from transferkit.core.records import DataConfig
from transferkit.data.batches.statistics import measured
from transferkit.data.index.targets import framed
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.engine import Engine
from transferkit.features.extract.extract import frozen_backbone
from transferkit.models.backbones.registry import is_backbone, list_backbones
from transferkit.models.task import Task
from transferkit.options.advise import AdviseConfig, Candidate
from transferkit.results.advise.cost import Cost, measure_cost, with_speeds

__all__ = ["Contender", "check_names", "display_names", "load_candidates"]


@dataclass(frozen=True, eq=False)
class Contender:
    """A candidate that can run.

    Attributes:
        candidate: What was asked for.
        name: What it is called beside the others.
        frozen: The network.
        prepared: How pictures are decoded and shown to it.
        cost: What it costs.
    """

    candidate: Candidate
    name: str
    frozen: FrozenBackbone
    prepared: DataConfig
    cost: Cost


def check_names(candidates: Sequence[Candidate]) -> None:
    """Refuse names that no backbone has: a typing error is no candidate that cannot be had.

    Raises:
        BackboneError: With all of them.
    """
    unknown = [one.backbone for one in candidates if not is_backbone(one.backbone)]
    if unknown:
        known = list_backbones()
        problems = [f"unknown backbone {name!r}.{did_you_mean(name, known)}" for name in dict.fromkeys(unknown)]
        raise BackboneError(f"{gather(problems).rstrip('.')} - list them with `transferkit backbones`")


def display_names(candidates: Sequence[Candidate]) -> list[str]:
    """Return a name for each candidate, with its weights where size and backbone do not tell it from another."""
    names = [one.name for one in candidates]
    stems = [Path(one.weights).stem if Path(one.weights).suffix else one.weights for one in candidates]
    return [name if names.count(name) == 1 else f"{name} ({stem})" for name, stem in zip(names, stems, strict=True)]


def load_candidates(
    config: AdviseConfig,
    task: Task,
    compute: Compute,
    pictures: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Contender], dict[str, str]]:
    """Build all candidates and measure what they cost.

    Args:
        config: The options.
        task: Says how pictures are framed.
        compute: What they run on.
        pictures: The training pictures, paths by content, for statistics that no weights have.
        progress: Called with candidates done and all candidates.

    Returns:
        Those that run, and by name why others do not.

    Raises:
        BackboneError: None of them can be had; the message has each reason.
    """
    candidates = config.candidates
    built: list[tuple[Candidate, str, FrozenBackbone, DataConfig]] = []
    costs: list[tuple[Cost, Engine]] = []
    refused: dict[str, str] = {}
    for number, (candidate, name) in enumerate(zip(candidates, display_names(candidates), strict=True), 1):
        try:
            frozen = frozen_backbone(
                candidate.backbone, candidate.weights, candidate.size, config.seed, config.channels
            )
            usual = frozen.backbone.data_config  # of a network that others may use, too
            prepared = framed(task.targets, config.prepared(usual), config.fit)
            if frozen.backbone.measures:
                prepared = measured(prepared, pictures)
                frozen = frozen.prepared(prepared)
            costs.append(measure_cost(frozen, compute))
            built.append((candidate, name, frozen, prepared))
        except (BackboneError, ConfigError) as error:  # weights that cannot be had; a size that the network cannot take
            refused[name] = str(error)
        if progress is not None:
            progress(number, len(candidates))
    if not built:
        problems = [f"{name}: {reason}" for name, reason in refused.items()]
        raise BackboneError(f"none of the candidates can be had: {gather(problems)}")
    timed = with_speeds(costs, compute)
    return [Contender(*one, cost) for one, cost in zip(built, timed, strict=True)], refused
