"""A detector of one's own: centres of objects on a feature map (Zhou et al. 2019, *Objects as Points*).

    python recipes/own_detector.py FOLDER

FOLDER holds pictures with boxes: COCO, Pascal VOC or YOLO. All that the head needs is two methods: what it finds, and
what it learns from. Freezing, phases, schedules, figures, reports, prediction and the rest are those of every head.
"""

import sys

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

import transferkit as tk


@tk.register_head("centres")
class Centres(nn.Module):
    takes_pyramid = finds_objects = True

    def __init__(self, levels, num_classes):
        super().__init__()
        self.at = max(number for number, level in enumerate(levels) if level.stride <= 8)
        self.stride, self.classes = levels[self.at].stride, num_classes
        self.body = nn.Sequential(nn.Conv2d(levels[self.at].channels, 64, 3, padding=1), nn.ReLU())
        self.answer = nn.Conv2d(64, num_classes + 4, 1)
        nn.init.constant_(self.answer.bias, -3.0)  # at first nothing is an object

    def answers(self, inputs):
        maps = inputs[1 + self.at]  # before the maps stand the pictures
        answers = self.answer(self.body(maps)).permute(0, 2, 3, 1)  # (B, h, w, C + 4)
        return answers[..., : self.classes], functional.softplus(answers[..., self.classes :] + 3)

    def forward(self, inputs):
        """Return (B, K, 6): box, score, class; a class's peaks among their neighbours, the most confident ones."""
        logits, edges = self.answers(inputs)
        scores = logits.sigmoid().permute(0, 3, 1, 2)
        scores = scores * (scores == functional.max_pool2d(scores, 3, 1, 1))
        best, places = scores.flatten(1).topk(min(100, scores[0].numel()))
        label, place = places // scores[0, 0].numel(), places % scores[0, 0].numel()
        centres = torch.stack((place % scores.shape[3], place // scores.shape[3]), dim=2) + 0.5
        far = edges.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, 4))
        boxes = torch.cat((centres - far[..., :2], centres + far[..., 2:]), dim=2) * self.stride
        rows = torch.cat((boxes, best[..., None], label[..., None].float()), dim=2)
        return rows * (best >= 0.05)[..., None]

    def losses(self, inputs, targets):
        """Return losses by name; targets hold for each picture boxes (n, 4) and classes (n,)."""
        logits, edges = self.answers(inputs)
        wanted, size = torch.zeros_like(logits), edges.sum() * 0
        for picture, one in enumerate(targets):
            boxes = one.boxes[~one.crowd] / self.stride
            columns, rows = ((boxes[:, :2] + boxes[:, 2:]) / 2).long().unbind(1)
            wanted[picture, rows, columns, one.classes[~one.crowd]] = 1
            centres = torch.stack((columns, rows), dim=1) + 0.5
            true = torch.cat((centres - boxes[:, :2], boxes[:, 2:] - centres), dim=1)
            size = size + functional.l1_loss(edges[picture, rows, columns], true, reduction="sum") / 4
        count = wanted.sum().clamp_min(1)
        focal = sigmoid_focal_loss(logits, wanted, alpha=0.9, reduction="sum") / count
        return {"centres": focal, "size": size / count}


if __name__ == "__main__":
    tk.finetune(data=sys.argv[1], backbone="resnet18", head="centres", lr=1e-3, skip_bad=True)
