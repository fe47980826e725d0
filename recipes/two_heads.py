"""Two heads on one backbone: the kind and the weight of what a picture shows, learned together (multi-task).

    python recipes/two_heads.py MANIFEST [--uncertainty]

MANIFEST is a CSV of path,kind,weight[,split]. Cells may be empty: each head learns from the pictures that have its
answer. Losses are added as they are, or weighed by learned variances (Kendall et al. 2018, arXiv:1705.07115, 3.2).
"""

import sys

import lightning as L
import torch
from torch import nn

import transferkit as tk
from transferkit.data.answers import RowReader


@tk.register_head("kind-and-weight")
class TwoHeads(nn.Module):
    def __init__(self, in_features, outputs):
        super().__init__()
        self.kind, self.weight = nn.Linear(in_features, outputs - 1), nn.Linear(in_features, 1)
        self.log_variances = nn.Parameter(torch.zeros(2))

    def forward(self, features):
        return torch.cat((self.kind(features), self.weight(features)), dim=1)


class KindAndWeight(tk.TransferModule):
    def losses(self, batch, split):
        outputs, known, (kinds, weights) = self(batch[0]), ~batch[1].isnan(), batch[1].nan_to_num().T
        off = outputs[:, -1] - (weights - self.mean) / self.scale
        entropy = nn.functional.cross_entropy(outputs[:, :-1], kinds.long(), reduction="none")
        right, counts = outputs[:, :-1].argmax(dim=1) == kinds, known.sum(dim=0)
        for name, values, at in (("acc", right, 0), ("mae", off.abs() * self.scale, 1)):
            self.log(f"{split}_{name}", values[known[:, at]].sum() / max(counts[at], 1), batch_size=int(counts[at]))
        return (torch.stack((entropy, off.square()), dim=1) * known).sum(dim=0) / counts.clamp_min(1)  # 0 of none

    def training_step(self, batch, _):
        losses, variances = self.losses(batch, "train"), self.head.log_variances
        return (losses * (-variances).exp() + variances / 2).sum() if self.uncertainty else losses.sum()

    def validation_step(self, batch, _):
        self.losses(batch, "val")


def main(manifest, uncertainty=False, epochs=(3, 10), backbone="resnet18", weights="pretrained", size=224, **trainer):
    data = tk.ImageData(manifest, size, reader=RowReader(classes=("kind",), numbers=("weight",)))
    kinds, units = data.index.targets.classes["kind"], data.index.targets.units["weight"]
    model = KindAndWeight(backbone, len(kinds) + 1, "kind-and-weight", weights=weights, image_size=size)
    model.uncertainty, (model.mean, model.scale) = uncertainty, units
    phases = [tk.Phase("heads", epochs[0], train="head", lr=1e-2), tk.Phase("all", epochs[1], lr=1e-3)]
    (fit := L.Trainer(max_epochs=-1, callbacks=[tk.PhaseSchedule(phases)], **trainer)).fit(model, data)
    return model, fit.callback_metrics


if __name__ == "__main__":
    print(main(sys.argv[1], uncertainty="--uncertainty" in sys.argv)[1])
