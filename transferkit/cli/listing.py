"""The `backbones` verb: list, search and describe."""

from __future__ import annotations

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
            "parameters": f"{facts['parameters']:,}",
            "features": f"{facts['num_features']:,} (penultimate, pooled)",
            "input": f"{height} x {width} px, {facts['interpolation']}, centre crop {facts['crop_pct']:.3g}",
            "mean, std": f"{facts['mean']}, {facts['std']}",
            "pretrained": facts["pretrained"] or "no pretrained weights known",
            "licence": facts["license"] or "not stated",
            "groups": ", ".join(f"{group} ({size:,})" for group, size in facts["layer_groups"].items()),
        }
        for title, text in rows.items():
            console.print(f"  {title:<12}{text}", soft_wrap=True)
