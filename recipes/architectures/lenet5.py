"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998, *Gradient-Based Learning Applied to Document Recognition*, II.B).

As in the paper: 32 x 32 grey pictures, ink up to 1.175 on a ground of -0.1; C3 connected to S2 by table I;
subsampling that sums 2 x 2 values and learns a factor and a shift per map; the squashing function 1.7159 tanh(2/3 a)
after every layer; weights drawn evenly from -2.4 to 2.4 over the number of inputs. 60,000 parameters, as the paper
counts them.

What differs: the output layer of Euclidean radial basis functions on drawn characters is left out, and a head of
transferkit stands in its place: the backbone ends with the 84 values of F6. The three channels of a picture are
averaged to one; and it is trained by gradient descent with momentum or Adam instead of a stochastic Levenberg-
Marquardt.
"""

import torch
from torch import nn
from torch.nn import functional

import transferkit as tk
from transferkit.core.records import DataConfig

# Table I: the maps of S2 that each of the 16 maps of C3 sees.
CONNECTIONS = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
# White ink on black in [0, 1] becomes -0.1 to 1.175.
INK = DataConfig(image_size=(32, 32), mean=(0.1 / 1.275,) * 3, std=(1 / 1.275,) * 3, crop_pct=1.0)


def squash(values):
    return 1.7159 * torch.tanh(2 / 3 * values)


class Subsampling(nn.Module):
    """The sum of 2 x 2 values, times a factor, plus a shift, for each map."""

    def __init__(self, maps):
        super().__init__()
        self.factor = nn.Parameter(torch.empty(maps, 1, 1).uniform_(-2.4 / 4, 2.4 / 4))
        self.shift = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, maps):
        return squash(4 * functional.avg_pool2d(maps, 2) * self.factor + self.shift)


class PartlyConnected(nn.Module):
    """A convolution whose maps see some of the maps before them."""

    def __init__(self, connections):
        super().__init__()
        self.connections = connections
        self.maps = nn.ModuleList(nn.Conv2d(len(seen), 1, 5) for seen in connections)

    def forward(self, maps):
        made = [conv(maps[:, list(seen)]) for conv, seen in zip(self.maps, self.connections, strict=True)]
        return torch.cat(made, dim=1)


@tk.register_backbone("lenet5", data_config=INK)
class LeNet5(nn.Module):
    """Pictures ``(B, 3, 32, 32)`` to features ``(B, 84)``."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = PartlyConnected(CONNECTIONS)
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                inputs = layer.weight[0].numel()
                nn.init.uniform_(layer.weight, -2.4 / inputs, 2.4 / inputs)
                nn.init.zeros_(layer.bias)

    def forward(self, images):
        maps = self.s2(squash(self.c1(images.mean(dim=1, keepdim=True))))
        maps = squash(self.c5(self.s4(squash(self.c3(maps)))))
        return squash(self.f6(maps.flatten(1)))
