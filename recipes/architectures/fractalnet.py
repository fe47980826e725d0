"""FractalNet (Larsson, Maire and Shakhnarovich 2017, *FractalNet: Ultra-Deep Neural Networks without Residuals*).

As in the paper: five blocks with 2 x 2 max pooling after each; in a block of C columns the k-th has 2^(k-1) layers of
3 x 3 convolution, batch norm and ReLU, and where columns end together their mean is taken (the expansion rule f(C+1)
= f(C) after f(C), joined with one convolution). Drop-path: for half of the pictures local (each input of a join is
dropped with probability 0.15, and one always stays), for the other half global (one column, the same in all blocks).
Dropout of 0, 0.1, 0.2, 0.3, 0.4 after the blocks.

Parameters agree with the paper's table of ultra-deep networks for CIFAR-100 (widths 16, 32, 64, 128, 128): 0.3, 0.8,
2.1, 4.8, 10.2 and 21.1 M for one to six columns. What differs: drop-path is drawn per picture instead of per batch,
the first layer of a column may stand at any width, and the network takes any multiple of 32 pixels.
"""

import torch
from torch import nn

import transferkit as tk
from transferkit.core.records import DataConfig

CIFAR = DataConfig(image_size=(32, 32), mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262), crop_pct=1.0)


class Paths:
    """The columns that a batch goes through: for each picture one of all blocks (global), or -1 (local)."""

    def __init__(self, pictures, columns, drop_path, device):
        self.drop_path = drop_path
        one = torch.randint(columns, (pictures,), device=device)
        self.column = torch.where(torch.rand(pictures, device=device) < 0.5, one, -1)

    def shares(self, first, last):
        """Return the weights of the columns `first` to `last` in a join, ``(B, columns)``; they sum to 1."""
        pictures, count = len(self.column), last - first + 1
        device = self.column.device
        stays = torch.rand(pictures, count, device=device) >= self.drop_path
        saved = nn.functional.one_hot(torch.randint(count, (pictures,), device=device), count).bool()
        stays = torch.where(stays.any(dim=1, keepdim=True), stays, saved)
        alone = torch.arange(first, last + 1, device=device) == self.column[:, None]
        # A join that the one column does not reach is dropped later on, whatever it gives.
        shares = torch.where(alone.any(dim=1, keepdim=True), alone, stays).float()
        return shares / shares.sum(dim=1, keepdim=True)


class Block(nn.Module):
    """A fractal of columns; the last one is the deepest."""

    def __init__(self, before, width, columns, dropout=0.0):
        super().__init__()
        self.columns = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(width if layer else before, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
                for layer in range(2**column)
            )
            for column in range(columns)
        )
        self.end = nn.Sequential(nn.MaxPool2d(2), nn.Dropout(dropout))

    def forward(self, maps, paths):
        deepest = len(self.columns) - 1
        inputs = [maps] * len(self.columns)
        for row in range(2**deepest):
            # The columns whose layer ends in this row: all from the first on whose layers are short enough.
            first = next(c for c in range(deepest + 1) if (row + 1) % 2 ** (deepest - c) == 0)
            made = [self.columns[c][row // 2 ** (deepest - c)](inputs[c]) for c in range(first, deepest + 1)]
            joined = torch.stack(made)
            if paths is None:
                joined = joined.mean(dim=0)
            else:
                joined = (joined * paths.shares(first, deepest).T[:, :, None, None, None]).sum(dim=0)
            inputs[first:] = [joined] * len(made)
        return self.end(joined)


@tk.register_backbone("fractalnet", data_config=CIFAR)
class FractalNet(nn.Module):
    """Pictures ``(B, 3, H, W)`` to a map ``(B, widths[-1], H / 32, W / 32)``; 20 layers deep with three columns."""

    def __init__(self, columns=3, widths=(64, 128, 256, 512, 512), drop_path=0.15, dropout=0.1):
        super().__init__()
        self.depth, self.drop_path = columns, drop_path
        for number, (before, width) in enumerate(zip((3, *widths), widths, strict=False)):
            self.add_module(f"block{number + 1}", Block(before, width, columns, dropout * number))

    def forward(self, images):
        maps, paths = images, None
        if self.training and self.drop_path > 0:
            paths = Paths(len(images), self.depth, self.drop_path, images.device)
        for block in self.children():
            maps = block(maps, paths if block.training else None)  # a frozen block is the same function as ever
        return maps
