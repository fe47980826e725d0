"""The audit: faults of every kind planted among photos: found, missed, false alarms. Goal: no exact one missed.

`python tests/bench/audit.py --data clothing/ --odd cells/JPEGImages nuclei/train/images` copies the photos into a
temporary folder, plants the faults with a seed, runs `transferkit check` on the untouched and on the spoilt copy, and
prints a table. Classes that mirror each other and groups over splits are planted in data sets of their own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from harness import machine
from PIL import Image, ImageDraw, ImageEnhance

Planted = dict[str, list[tuple[str, ...]]]
"""By row of the table: the files of each fault, the original of a copy among them."""

ROWS = {
    "truncated files": "unreadable",
    "files that are no pictures": "unreadable",
    "PNG called .jpg": "wrong-name",
    "pictures called .dat": "wrong-name",
    "grey pictures": "mode",
    "CMYK": "mode",
    "transparent": "mode",
    "animated": "mode",
    "16 bits": "bit-depth",
    "tiny or very long": "size",
    "of one colour": "one-colour",
    "copies, same split and label": "copy",
    "copies in two splits": "leak",
    "copies with two labels": "leak",
    "saved again as PNG, same split and label": "copy",
    "saved again as PNG, in two splits": "leak",
    "saved again as PNG, with two labels": "leak",
    "near copies, same split and label": "near-copy",
    "near copies in two splits": "near-copy",
    "near copies with two labels": "near-copy",
    "wrong labels": "wrong-label",
    "pictures of other things": "outlier",
}
"""What is planted, and the kind of finding that should tell."""

EXACT = list(ROWS)[:17]
"""Those that can be known for sure."""


class Spoiler:
    """A copy of a data set with splits, into which faults are planted; no photo has two.

    Args:
        root: The copy.
        seed: Of all that is drawn.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.planted = root, np.random.default_rng(seed), defaultdict(list)
        photos = sorted(path for path in root.glob("*/*/*") if path.suffix == ".jpg")
        self.photos = [photos[at] for at in self.random.permutation(len(photos))]
        self.labels = sorted({path.parent.name for path in photos})

    def photo(self, split: str | None = None) -> Path:
        """Take a photo that has no fault yet."""
        at = next(at for at, path in enumerate(self.photos) if split in (None, path.parts[-3]))
        return self.photos.pop(at)

    def place(self, split: str, label: str, ending: str) -> Path:
        """Return where another picture may lie."""
        name = f"{self.random.integers(2**62):x}{ending}"
        return self.root / split / label / name

    def note(self, row: str, *paths: Path) -> None:
        """Remember a fault."""
        self.planted[row].append(tuple(str(path) for path in paths))

    def other(self, label: str) -> str:
        """Draw another class."""
        return str(self.random.choice([name for name in self.labels if name != label]))

    # ---- single files -----------------------------------------------------------------------------------------------

    def files(self) -> None:
        """Plant what is wrong with single files."""
        for _ in range(20):
            path = self.photo()
            path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
            self.note("truncated files", path)
        for number in range(10):
            path = self.photo()
            path.write_bytes(b"" if number % 2 else b"<html><title>404</title></html>")
            self.note("files that are no pictures", path)
        for _ in range(15):
            path = self.photo()
            Image.open(path).save(path, "PNG")
            self.note("PNG called .jpg", path)
        for _ in range(10):
            path = self.photo()
            self.note("pictures called .dat", path.rename(path.with_suffix(".dat")))
        for row, change in (
            ("grey pictures", lambda image: image.convert("L")),
            ("CMYK", lambda image: image.convert("CMYK")),
        ):
            for _ in range(10):
                path = self.photo()
                change(Image.open(path)).save(path, quality=90)
                self.note(row, path)
        for _ in range(10):
            path = self.photo()
            image = Image.open(path).convert("RGBA")
            image.putalpha(Image.linear_gradient("L").resize(image.size))
            self.note("transparent", self._instead(path, image, ".png"))
        for _ in range(5):
            path = self.photo()
            frames = [Image.open(path).convert("P"), Image.open(path).rotate(180).convert("P")]
            target = self.place(*path.parts[-3:-1], ".gif")
            frames[0].save(target, save_all=True, append_images=frames[1:])
            path.unlink()
            self.note("animated", target)
        for _ in range(10):
            path = self.photo()
            grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257
            self.note("16 bits", self._instead(path, Image.fromarray(grey), ".png"))
        for number in range(20):
            path = self.photo()
            image = Image.open(path).resize((24, 32)) if number % 2 else Image.open(path).resize((2400, 240))
            image.save(path)
            self.note("tiny or very long", path)
        for _ in range(10):
            path = self.photo()
            Image.new("RGB", Image.open(path).size, tuple(self.random.integers(0, 256, 3).tolist())).save(path)
            self.note("of one colour", path)

    def _instead(self, path: Path, image: Image.Image, ending: str) -> Path:
        target = path.with_suffix(ending)
        image.save(target)
        path.unlink()
        return target

    # ---- copies -----------------------------------------------------------------------------------------------------

    def copies(self) -> None:
        """Plant equal and near copies within and across splits and labels."""

        def equal(path: Path, target: Path) -> None:
            shutil.copy(path, target)

        def again(path: Path, target: Path) -> None:
            Image.open(path).save(target.with_suffix(".png"))

        def near(path: Path, target: Path) -> None:
            self._near(Image.open(path).convert("RGB")).save(target, quality=int(self.random.integers(50, 90)))

        for what, make, ending in (
            ("copies", equal, ".jpg"), ("saved again as PNG", again, ".png"), ("near copies", near, ".jpg"),
        ):  # fmt: skip
            comma = "," if what == "saved again as PNG" else ""
            for row, split, other in (
                (f"{what}, same split and label", "train", False),
                (f"{what}{comma} in two splits", "val", False),
                (f"{what}{comma} with two labels", "train", True),
            ):
                for _ in range(20):
                    path = self.photo("train")
                    target = self.place(split, self.other(path.parent.name) if other else path.parent.name, ending)
                    make(path, target)
                    self.note(row, path, target)

    def _near(self, image: Image.Image) -> Image.Image:
        """Return a picture smaller, brighter or darker, and cut a little."""
        width, height = image.size
        cut = self.random.uniform(0, 0.06)
        left, top = self.random.uniform(0, cut, 2)
        box = (left * width, top * height, (1 - cut + left) * width, (1 - cut + top) * height)
        image = image.crop(tuple(map(round, box)))
        scale = self.random.uniform(0.4, 1.2)
        image = image.resize((round(scale * image.width), round(scale * image.height)))
        return ImageEnhance.Brightness(image).enhance(self.random.uniform(0.8, 1.25))

    # ---- what a network is needed for -------------------------------------------------------------------------------

    def wrong_labels(self, share: float) -> None:
        """Move a share of the training photos to another class."""
        for _ in range(round(share * sum(path.parts[-3] == "train" for path in self.photos))):
            path = self.photo("train")
            target = self.root / "train" / self.other(path.parent.name) / path.name
            self.note("wrong labels", path.rename(target))

    def odd(self, folders: Iterable[Path], each: int = 6) -> None:
        """Add pictures of other things: of some folders, and drawn ones."""
        made: list[Image.Image] = []
        for folder in folders:
            paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
            made += [Image.open(paths[at]).convert("RGB") for at in self.random.permutation(len(paths))[:each].tolist()]
        for _ in range(each):
            made.append(Image.fromarray(self.random.integers(0, 256, (300, 300, 3), dtype=np.uint8)))
            across, down = np.linspace(0, 255, 300)[None, :, None], np.linspace(0, 60, 300)[:, None, None]
            made.append(Image.fromarray(np.clip(across * self.random.random(3) + down, 0, 255).astype(np.uint8)))
            page = Image.new("RGB", (300, 400), "white")
            draw = ImageDraw.Draw(page)
            for line in range(10, 390, 14):
                draw.text((10, line), "".join(self.random.choice(list("abcdefg hijk lmn"), 45)), fill="black")
            made.append(page)
        for image in made:
            target = self.place("train", str(self.random.choice(self.labels)), ".jpg")
            image.save(target, quality=92)
            self.note("pictures of other things", target)


# ---- data sets of their own ---------------------------------------------------------------------------------------


def mirrored(root: Path, random: np.random.Generator) -> None:
    """Draw arrows to the left and to the right, and circles that are the same in a mirror."""
    for label in ("circle", "left", "right"):
        (root / label).mkdir(parents=True)
        for number in range(60):
            image = Image.fromarray(random.integers(0, 60, (64, 64, 3), dtype=np.uint8))
            draw, (x, y) = ImageDraw.Draw(image), random.integers(0, 16, 2).tolist()
            colour = tuple(random.integers(150, 255, 3).tolist())
            if label == "circle":
                draw.ellipse((x + 4, y + 4, x + 40, y + 40), fill=colour)
            else:
                draw.polygon([(x + 4, y + 22), (x + 24, y + 4), (x + 24, y + 40)], fill=colour)
                draw.rectangle((x + 24, y + 17, x + 44, y + 27), fill=colour)
            flip = label == "right"
            (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image).save(root / label / f"{number}.png")


def grouped(root: Path, photos: list[Path], name: Callable[[int], str]) -> None:
    """Copy photos of two classes under names that tell of groups of five."""
    for number, path in enumerate(photos):
        folder = root / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name(number))


def check(data: Path, out: Path, *words: str) -> tuple[dict[str, object], float]:
    """Run the verb; return check.json and the seconds of the process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "transferkit", "check", "--data", str(data), "--out", str(out), "--quiet", *words]
    done = subprocess.run(command, check=False, capture_output=True, encoding="utf-8")
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    return json.loads((out / "check.json").read_text(encoding="utf-8")), time.perf_counter() - started


def cases(table: dict[str, object], kind: str) -> list[set[str]]:
    """Return the files of each case of a kind."""
    found = []
    for finding in table["findings"]:
        if finding["kind"] == kind:
            for case in finding["cases"]:
                paths = {picture["path"] for picture in case.get("pictures", ())}
                found.append(paths | ({case["path"]} if "path" in case else set()))
    return found


def print_rows(planted: Planted, table: dict[str, object], before: dict[str, object]) -> None:
    """Print a row for each thing that was planted.

    A case of a kind is a false alarm where nothing was planted in its files, and it was not there before: what is found
    in the photos themselves has a column of its own. Of what is told by measure (near copies, labels, outliers) most of
    that is a false alarm, too.
    """
    print("| planted | finding | number | found | missed | false alarms | in the photos themselves |")
    print("|---|---|---|---|---|---|---|")
    alarms = {}
    anything = {path for files in planted.values() for paths in files for path in paths}
    for kind in dict.fromkeys(ROWS.values()):
        own = [case for case in cases(before, kind) if case]
        others = [case for case in cases(table, kind) if case and not case & anything and case not in own]
        alarms[kind] = (len(others), len(own))
    for row, kind in ROWS.items():
        found = cases(table, kind)
        hits = sum(any(set(paths) <= case for case in found) for paths in planted[row])
        first = kind not in [ROWS[other] for other in list(ROWS)[: list(ROWS).index(row)]]
        more = alarms[kind] if first else ("", "")
        total = len(planted[row])
        print(f"| {row} | `{kind}` | {total} | {hits} | {total - hits} | {more[0]} | {more[1]} |")
        if row in EXACT and hits < total:
            raise SystemExit(f"missed: {row}")


def main() -> None:
    """Plant, check and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder/{train,val}/<class>/*.jpg")
    parser.add_argument("--odd", type=Path, nargs="*", default=[], help="folders of pictures of other things")
    parser.add_argument("--wrong", type=float, default=0.05, help="share of the training labels that is exchanged")
    parser.add_argument("--seed", type=int, default=0)
    options, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder), words)


def run(options: argparse.Namespace, folder: Path, words: list[str]) -> None:
    """Do it, in a folder of its own."""
    words = ["--store", str(folder / "store"), *words]
    data = folder / "photos"
    for split in ("train", "val"):
        shutil.copytree(options.data / split, data / split, copy_function=shutil.copyfile)
    before, cold = check(data, folder / "before", *words)
    _, warm = check(data, folder / "again", *words)
    _, quick = check(data, folder / "quick", "--quick")
    spoiler = Spoiler(data, options.seed)
    spoiler.files()
    spoiler.copies()
    spoiler.wrong_labels(options.wrong)
    spoiler.odd(options.odd)
    table, seconds = check(data, folder / "after", *words)
    print(f"\n{before['pictures']} photos ({machine()}), seed {options.seed}\n")
    print_rows(spoiler.planted, table, before)
    right, spoilt = (f"{one['probe']['acc']:.1%}" for one in (before, table))
    print(f"\nprobe: agrees with {right} of the labels of the photos, {spoilt} of the spoilt ones")
    print(f"seconds: {cold:.1f} cold, {warm:.1f} with features in the store, {quick:.1f} --quick, {seconds:.1f} spoilt")
    random = np.random.default_rng(options.seed)
    mirrored(folder / "mirror", random)
    pairs = [case["text"] for finding in check(folder / "mirror", folder / "m", *words)[0]["findings"]
             if finding["kind"] == "mirror" for case in finding["cases"]]  # fmt: skip
    alarms = len([finding for finding in before["findings"] if finding["kind"] == "mirror"])
    print(f"mirrored classes: {'; '.join(pairs) or 'missed'}; among the photos: {alarms} false alarms")
    photos = sorted(options.data.glob("train/*/*.jpg"))[:300]
    for what, name in (
        ("patient12_3.jpg", lambda number: f"patient{number // 5}_{number % 5}.jpg"),
        ("walk12_0003.jpg", lambda number: f"walk{number // 5}_{number % 5:04d}.jpg"),
    ):
        root = folder / f"groups {what}"
        grouped(root, photos, name)
        found = [finding["message"] for finding in check(root, folder / f"out {what}", "--quick")[0]["findings"]
                 if finding["kind"] == "group"]  # fmt: skip
        print(f"groups named {what}: {found[0].split(' that')[0] if found else 'missed'}")


if __name__ == "__main__":
    main()
