"""Drawn shapes that a small network can learn, and the options of a command that does so in a second."""

import numpy as np
from PIL import Image, ImageDraw

SMALL_RUN = (
    "--backbone", "test_resnet", "--weights", "random", "--image-size", "32", "--precision", "32",
    "--accelerator", "cpu", "--workers", "0",
)  # fmt: skip


def draw_folder(root, classes=("circle", "square", "stripes"), per_class=12, size=48, seed=0):
    """Draw a class-per-folder data set that a small network can learn."""
    generator = np.random.default_rng(seed)
    for label in classes:
        folder = root / label
        folder.mkdir(parents=True)
        for number in range(per_class):
            noise = generator.integers(0, 80, (size, size + 8, 3), dtype=np.uint8)
            image = Image.fromarray(noise)
            draw = ImageDraw.Draw(image)
            colour = tuple(int(value) for value in generator.integers(140, 255, 3))
            left, top = (int(value) for value in generator.integers(2, size // 3, 2))
            box = (left, top, left + size // 2, top + size // 2)
            if label == classes[0]:
                draw.ellipse(box, fill=colour)
            elif label == classes[1]:
                draw.rectangle(box, fill=colour)
            else:
                for offset in range(0, size, 6):
                    draw.line((0, offset, size + 8, offset), fill=colour, width=2)
            image.save(folder / f"{number:03d}.png")
    return root
