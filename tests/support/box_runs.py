"""A model of boxes that was never trained: what it finds hangs on the picture, and nothing on weights."""

from pathlib import Path

import torch
from torch import nn

from transferkit.core.records import DataConfig
from transferkit.models.artifact import save_model
from transferkit.models.heads.registry import register_head, registered_head
from transferkit.models.module import TransferModule

BOX_CLASSES = ("cell", "spot", '<b>"x"</b>')
GRID, ROWS = 4, 20
THRESHOLD = 0.5


class Seer(nn.Module):
    """Finds something in each of 16 squares of the canvas, the surer the redder; and twice in the first."""

    takes_pyramid = True
    finds_objects = True
    outlines = False
    floor = 0.0

    def __init__(self, levels, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        images = inputs[0]
        side = images.shape[2] / GRID
        means = nn.functional.adaptive_avg_pool2d(images.float(), GRID)
        scores = torch.sigmoid(1.5 * means[:, 0].flatten(1) * self.weight)
        rows = torch.zeros(len(images), ROWS, 6 + 784 * self.outlines, device=images.device)
        for at in range(GRID * GRID):
            top, left = divmod(at, GRID)
            edges = [left * side + 1, top * side + 2, (left + 1) * side + at % 3, (top + 1) * side - 1]
            rows[:, at, :4] = torch.tensor(edges)
            rows[:, at, 4], rows[:, at, 5] = scores[:, at], at % self.num_classes
            if self.outlines:
                places = (torch.arange(28) + 0.5) / 14 - 1
                rows[:, at, 6:] = 8 * (1 - places[:, None] ** 2 - (places * (1 + at / 16)) ** 2).flatten()
        rows[:, GRID * GRID, :6] = rows[:, 0, :6] + torch.tensor([2.0, 2, 3, 3, 0, 0])
        rows[:, GRID * GRID, 4] *= 0.5
        rows[:, : GRID * GRID + 1, 4].clamp_(min=self.floor)
        return rows

    def losses(self, inputs, targets):
        return {"nothing": self.weight * 0.0}


class OutlineSeer(Seer):
    """And the outlines of ellipses."""

    outlines = True


class SureSeer(Seer):
    """Never so unsure that results do not list it."""

    floor = 0.06


HEADS = {"test_seer": Seer, "test_outline_seer": OutlineSeer, "test_sure_seer": SureSeer}
for name, kind in HEADS.items():
    if registered_head(name) is None:
        register_head(name)(kind)


def make_box_run(directory, *, outlines=False, sure=False, side=64, threshold=THRESHOLD, names=BOX_CLASSES):
    """Write such a model; without a threshold none was chosen."""
    facts = {"outlines": outlines}
    if threshold is not None:
        facts["thresholds"] = {"every": threshold, "of_class": [threshold] * len(names)}
    head = "test_outline_seer" if outlines else "test_sure_seer" if sure else "test_seer"
    module = TransferModule(
        "transferkit/mini", len(names), head, weights="bundled", image_size=side, task="detection",
        class_names=names, target_facts=facts,
    )  # fmt: skip
    own = DataConfig.from_dict({**module.data_config.to_dict(), "crop_mode": "pad", "crop_pct": 1.0})
    directory.mkdir(parents=True, exist_ok=True)
    save_model(directory, module, head=head, preprocessing=own)
    return Path(directory)


def predict_boxes_in_rounds(words, lines, size):
    """Do what `predict_in_rounds` does, where these heads are known."""
    from parallel_worker import predict_in_rounds

    return predict_in_rounds(words, lines, size)
