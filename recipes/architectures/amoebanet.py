"""AmoebaNet-A (Real, Aggarwal, Huang and Le 2019, *Regularized Evolution for Image Classifier Architecture Search*).

As in the paper: the normal and the reduction cell of figure 5, in the skeleton of NASNet for CIFAR-10: a convolution,
three stacks of N normal cells with a reduction cell that doubles the width between them; each cell sees the two
before it. A separable convolution is applied twice, each with ReLU before and batch norm behind.

What differs: the auxiliary classifier and the scheduled drop-path of training are left out; and where the two inputs
of a cell differ in size, the larger one is halved as in NASNet, by two paths of which one is shifted by a pixel. The
paper gives 2.6 M parameters for N = 6 and F = 32, and 3.2 M for F = 36.
"""

import torch
from torch import nn
from torch.nn import functional

import transferkit as tk
from transferkit.core.records import DataConfig

CIFAR = DataConfig(image_size=(32, 32), mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262), crop_pct=1.0)

# Figure 5: for each new state the operation and source of its two halves. State 0 is the cell before the last, 1 the
# last one; new ones are numbered from 2. What no other state uses is the cell's output.
NORMAL = (
    (("avg", 0), ("max", 1)),
    (("sep3", 0), ("sep5", 2)),
    (("sep3", 0), ("avg", 3)),
    (("sep3", 1), ("none", 1)),
    (("none", 0), ("avg", 1)),
)
REDUCTION = (
    (("avg", 0), ("sep3", 1)),
    (("max", 0), ("sep7", 2)),
    (("sep7", 0), ("avg", 1)),
    (("max", 0), ("max", 1)),
    (("conv7", 0), ("sep3", 5)),
)


def unit(*layers, width):
    return nn.Sequential(nn.ReLU(), *layers, nn.BatchNorm2d(width))


def separable(width, side, stride):
    return [
        nn.Conv2d(width, width, side, stride, side // 2, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
    ]


def operation(name, width, stride):
    if name == "none":
        return nn.Identity()
    if name == "avg":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name == "max":
        return nn.MaxPool2d(3, stride, 1)
    if name == "conv7":
        across = nn.Conv2d(width, width, (1, 7), (1, stride), (0, 3), bias=False)
        return unit(across, nn.Conv2d(width, width, (7, 1), (stride, 1), (3, 0), bias=False), width=width)
    side = int(name.removeprefix("sep"))
    return nn.Sequential(
        unit(*separable(width, side, stride), width=width), unit(*separable(width, side, 1), width=width)
    )


class Halved(nn.Module):
    """Half of the size, by two paths of half the width that see every second pixel, one shifted by one."""

    def __init__(self, before, width):
        super().__init__()
        self.even = nn.Conv2d(before, width // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(before, width - width // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, maps):
        maps = torch.relu(maps)
        shifted = functional.pad(maps, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(torch.cat((self.even(maps), self.odd(shifted)), dim=1))


class Cell(nn.Module):
    """A cell of figure 5: five new states, of which those that no other uses are put side by side."""

    def __init__(self, plan, widths, width, *, reduces, halves):
        super().__init__()
        older, last = widths
        self.older = Halved(older, width) if halves else unit(nn.Conv2d(older, width, 1, bias=False), width=width)
        self.last = unit(nn.Conv2d(last, width, 1, bias=False), width=width)
        self.plan = plan
        self.steps = nn.ModuleList(
            nn.ModuleList(operation(name, width, 2 if reduces and source < 2 else 1) for name, source in pair)
            for pair in plan
        )
        used = {source for pair in plan for _, source in pair}
        self.ends = [state for state in range(2, len(plan) + 2) if state not in used]
        self.width = width * len(self.ends)

    def forward(self, older, last):
        states = [self.older(older), self.last(last)]
        for pair, layers in zip(self.plan, self.steps, strict=True):
            halves = [layer(states[source]) for layer, (_, source) in zip(layers, pair, strict=True)]
            states.append(halves[0] + halves[1])
        return torch.cat([states[end] for end in self.ends], dim=1)


class Stack(nn.Module):
    """Cells in a row; takes and gives the maps of the last two cells."""

    def __init__(self, cells):
        super().__init__()
        self.cells = nn.ModuleList(cells)

    def forward(self, pair):
        for cell in self.cells:
            pair = (pair[1], cell(*pair))
        return pair


@tk.register_backbone("amoebanet_a", data_config=CIFAR)
class AmoebaNetA(nn.Module):
    """Pictures ``(B, 3, H, W)`` to a map ``(B, C, H / 4, W / 4)``: `normal` cells a stack, `width` filters at first."""

    def __init__(self, normal=6, width=36):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * width, 3, padding=1, bias=False), nn.BatchNorm2d(3 * width))
        widths, halves = (3 * width, 3 * width), False
        for stack in range(3):
            cells = []
            for number in range(normal + (stack > 0)):
                reduces = stack > 0 and number == 0
                cell = Cell(REDUCTION if reduces else NORMAL, widths, width * 2**stack, reduces=reduces, halves=halves)
                cells.append(cell)
                widths, halves = (widths[1], cell.width), reduces
            self.add_module(f"stack{stack + 1}", Stack(cells))

    def forward(self, images):
        maps = self.stem(images)
        return torch.relu(self.stack3(self.stack2(self.stack1((maps, maps))))[1])
