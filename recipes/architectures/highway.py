"""Highway networks (Srivastava, Greff and Schmidhuber 2015, *Training Very Deep Networks*), the convolutional ones.

As in the paper: a layer gives H(x) T(x) + x (1 - T(x)); both H and the gate T are convolutions of 3 x 3 that keep the
size, T with a sigmoid and a bias that begins below zero, so that at first the layer hands its input on. Nine layers
of convolution, the first one plain, as its input is of another width.

Parameters with a linear head of ten classes agree with the paper's table for MNIST: 39 K at width 16, 151 K at 32.
The paper does not say where it pools, nor how the last map reaches the softmax: three times 2 x 2 (28 to 14 to 7 to 3
pixels) and the whole map of 3 x 3 are what gives those counts. What else differs: the three channels of a picture are
averaged.
"""

import torch
from torch import nn

import transferkit as tk
from transferkit.core.records import DataConfig

DIGITS = DataConfig(image_size=(28, 28), mean=(0.131,) * 3, std=(0.308,) * 3, crop_pct=1.0)


class Highway(nn.Module):
    """H(x) T(x) + x (1 - T(x))."""

    def __init__(self, width, bias):
        super().__init__()
        self.transform = nn.Conv2d(width, width, 3, padding=1)
        self.gate = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.transform.weight, nonlinearity="relu")
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, maps):
        share = torch.sigmoid(self.gate(maps))
        return torch.relu(self.transform(maps)) * share + maps * (1 - share)


@tk.register_backbone("highway", data_config=DIGITS)
class HighwayNetwork(nn.Module):
    """Pictures ``(B, 3, 28, 28)`` to features ``(B, 9 * width)``."""

    def __init__(self, width=16, bias=-1.0):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        for number, layers in enumerate((3, 3, 2)):
            layer = [Highway(width, bias) for _ in range(layers)]
            self.add_module(f"part{number + 1}", nn.Sequential(*layer, nn.MaxPool2d(2)))

    def forward(self, images):
        maps = self.first(images.mean(dim=1, keepdim=True))
        return self.part3(self.part2(self.part1(maps))).flatten(1)
