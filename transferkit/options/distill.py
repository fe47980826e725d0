"""The options of `distill`: those of `finetune`, with the run that teaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from transferkit.options.data import DataOptions
from transferkit.options.fields import REQUIRED, default_of, option
from transferkit.options.training import FinetuneConfig

__all__ = ["DistillConfig", "data_of_run"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig(FinetuneConfig):
    """Fine-tune a backbone on what a finished run says of its pictures; writes a run directory."""

    teacher: str = option(
        REQUIRED, "run directory of the teacher", missing="TEACHER is missing, expected a run directory"
    )
    data: str = option(REQUIRED, "as of finetune; default: the pictures of the teacher, in its splits")


def data_of_run(options: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pictures and splits of a run; the seed that they were split by becomes ``split_seed``.

    Args:
        options: Of the command line; what they say goes before.
        config: The `config.yaml` of the run.
    """
    known = {item.name: default_of(item) for item in fields(DataOptions)}
    stated = {name: config[name] for name, default in known.items() if config.get(name, default) != default}
    if stated.get("split_seed") is None:
        stated["split_seed"] = config.get("seed", known["seed"])
    return {name: value for name, value in stated.items() if name not in ("seed", *options)}
