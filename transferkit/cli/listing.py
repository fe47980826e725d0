"""The `backbones` verb: list, search and describe."""

from __future__ import annotations

from typing import Any

from transferkit.core.errors import BackboneError, did_you_mean
from transferkit.models.backbones.registry import describe_backbone, list_backbones
from transferkit.options.features import BackbonesConfig
from transferkit.show.progress import output_console

__all__ = ["print_backbones"]


def print_backbones(config: BackbonesConfig) -> None:
    """Print the backbones that match, one name a line; one match alone, or all with `describe`, with what is known.

    To be described a backbone is built with random weights; nothing is fetched.

    Raises:
        BackboneError: Nothing matches.
    """
    console = output_console()
    names = list_backbones(config.pattern, pretrained_only=config.pretrained)
    if not names:
        raise BackboneError(
            f"no backbone matches {config.pattern!r}.{did_you_mean(config.pattern, list_backbones())} Use * and ?, "
            "such as '*resnet*'"
        )
    if not config.describe and len(names) > 1:
        for name in names:
            console.print(name, soft_wrap=True)
        return
    for name in names:
        facts = describe_backbone(name)
        console.print(name, style="bold")
        height, width = facts["image_size"]
        rows = {
            "parameters": _parameters(facts),
            "operations": f"{facts['multiply_adds'] / 1e6:,.0f} M multiply-adds for a picture of this input",
            "features": f"{facts['num_features']:,} (penultimate, pooled)",
            "input": f"{height} x {width} px, {facts['interpolation']}, centre crop {facts['crop_pct']:.3g}",
            "mean, std": f"{facts['mean']}, {facts['std']}",
            "pretrained": facts["pretrained"] or "no pretrained weights known",
            "licence": facts["license"] or "not stated",
            "groups": ", ".join(f"{group} ({size:,})" for group, size in facts["layer_groups"].items()),
        }
        lines = [*rows.items(), *(("stages", _stage(stage)) for stage in facts["stages"])]
        for place, (title, text) in enumerate(lines):
            shown = "" if place and lines[place - 1][0] == title else title
            console.print(f"  {shown:<12}{text}", soft_wrap=True)


def _parameters(facts: dict[str, Any]) -> str:
    """Say how many parameters a backbone has, without and with the classifier."""
    text, whole = f"{facts['parameters']:,}", facts["parameters_with_classifier"]
    return text if whole is None else f"{text} without the classifier, {whole:,} with it"


def _stage(stage: dict[str, Any]) -> str:
    """Say what a stage gives: stride, width and receptive field."""
    if stage["field"] is None:
        field = "the whole picture" if stage["sees_all"] else "not one number (windows)"
    else:
        gates = ", and the whole picture through gates or norms" if stage["sees_all"] else ""
        field = f"{stage['field']:,} px{gates}"
    name = f" ({stage['name']})" if stage["name"] else ""
    return f"stride {stage['stride']}, {stage['channels']:,} channels{name}, receptive field {field}"
