"""The `backbones` verb: list, search and describe."""

from __future__ import annotations

from rich.console import Console

from transferkit.core.errors import BackboneError, did_you_mean
from transferkit.models.backbones.registry import describe_backbone, list_backbones

__all__ = ["print_backbones"]


def print_backbones(
    pattern: str, *, pretrained_only: bool = False, describe: bool = False, console: Console | None = None
) -> None:
    """Print the backbones that match, one name a line; one match alone, or all with `describe`, with what is known.

    Args:
        pattern: Shell pattern, such as ``"*resnet18*"``.
        pretrained_only: Leave out what has no pretrained weights.
        describe: Build each match (with random weights; nothing is fetched) and describe it.
        console: Where to print.

    Raises:
        BackboneError: Nothing matches.
    """
    console = console or Console(highlight=False)
    names = list_backbones(pattern, pretrained_only=pretrained_only)
    if not names:
        raise BackboneError(
            f"no backbone matches {pattern!r}.{did_you_mean(pattern, list_backbones())} Use * and ?, such as '*resnet*'"
        )
    if not describe and len(names) > 1:
        for name in names:
            console.print(name, soft_wrap=True, markup=False)
        return
    for name in names:
        facts = describe_backbone(name)
        console.print(f"[bold]{name}[/bold]")
        height, width = facts["image_size"]
        rows = {
            "parameters": f"{facts['parameters']:,}",
            "features": f"{facts['num_features']:,} (penultimate, pooled)",
            "input": f"{height} x {width} px, {facts['interpolation']}, centre crop {facts['crop_pct']:.3g}",
            "mean, std": f"{facts['mean']}, {facts['std']}",
            "pretrained": facts["pretrained"] or "no pretrained weights known",
            "licence": facts["license"] or "not stated",
            "groups": ", ".join(f"{group} ({size:,})" for group, size in facts["layer_groups"].items()),
        }
        for title, text in rows.items():
            console.print(f"  {title:<12}{text}", soft_wrap=True, markup=False)
