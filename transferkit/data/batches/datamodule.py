"""`ImageData`: a folder as a LightningDataModule."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any, Literal, Self

import torch
from torch import Tensor

from transferkit.core.errors import ConfigError, DataError, did_you_mean, gather
from transferkit.core.records import DataConfig
from transferkit.data.augment.normalise import normalise
from transferkit.data.augment.packed import Packed
from transferkit.data.augment.place import PLACES, Place, Where, choose_place
from transferkit.data.augment.transform import check_carried, eval_transform, named, train_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import ImageDataset, Picture
from transferkit.data.batches.loader import ImageLoader
from transferkit.data.batches.samplers import EpochSampler, EvaluationSampler, even_batch_size
from transferkit.data.batches.sizes import TrainSizes, size_problems
from transferkit.data.batches.statistics import ranged
from transferkit.data.batches.threads import choose_makers
from transferkit.data.batches.windows import Rows, WindowAnnotations, WindowPictures
from transferkit.data.index.index import CLASSES, ImageIndex, index_images, warn_of
from transferkit.data.index.targets import TargetReader, framed
from transferkit.data.masks.annotation import Annotations
from transferkit.data.pixels.store import PixelStore, open_pixels
from transferkit.machine.cores import available_cores, free_memory
from transferkit.machine.lightning_import import L
from transferkit.options.data import PIXEL_STORE, DataOptions, disk_bytes, fit_problems, pixel_store_problems
from transferkit.options.sizes import ImageSize, TrainSize, image_size_of, image_size_problem, train_sizes

__all__ = ["ImageData"]

SAMPLERS = ("shuffle", "balanced")


class ImageData(L.LightningDataModule):
    """Pictures of a folder, a manifest or the bundled sample set, split, augmented and batched.

    Loaders give pictures as ``(B, H, W, C) uint8``, which is four times less to move than floats; on the device
    `on_after_batch_transfer` makes them ``(B, 3, H, W) float32, normalised``, in channels-last memory format. A Trainer
    calls it by itself; elsewhere use `normalise`. With `augment_on` the device, training pictures come as `Packed`, and
    are augmented there, too.

    Args:
        data: Folder, CSV or Parquet manifest (``path,label[,split][,group]``), or ``"sample"``.
        image_size: Model's input in pixels: a side, ``(224, 320)`` or ``"224x320"``. Default: that of `data_config`.
        fit: How a picture fills it: ``"crop"``, ``"squash"`` or ``"pad"``. Default: as `data_config` says.
        train_size: Side (of a rectangle the longer one) of training pictures in pixels; that of the model's input when
            ``None``. Of several, such as ``[128, 160, 224]``, a `PhaseSchedule` says which epoch has which.
        tile: See pictures at their own resolution, in windows of `image_size`, each a row of a data set.
        batch_size: Pictures per batch and process.
        augment: ``"none"``, ``"light"``, ``"standard"``, ``"heavy"``, or own steps: see `train_transform`.
        augment_on: ``"cpu"``, ``"device"`` (`light` and `standard` of whole pictures) or ``"auto"``: a Trainer's GPU.
        flip: Whether augmentation mirrors pictures.
        sampler: ``"shuffle"``, or ``"balanced"``: every class is drawn equally often, pictures with replacement.
        mixup: Alpha of mixup (Zhang et al. 2018), 0 for none. With it or `cutmix` targets are ``(B, C) float32``.
        cutmix: Alpha of CutMix (Yun et al. 2019), 0 for none.
        data_config: How pictures are prepared. ``None``: mean, std, interpolation and crop of the model that a
            Trainer fits (if it states them), else ImageNet's.
        val_split: Share of a folder without splits, in [0, 1).
        test_split: Share of a folder without splits, in [0, 1).
        group_by: What keeps pictures in one split: ``"folder"``, or a pattern of the path.
        group_near: Keep near copies in one split, too, as equal pictures are.
        seed: Of splits, order and augmentation.
        split_seed: Of the splits alone, where they are to have one of their own.
        workers: Decoding processes; 0 decodes in this process, on all of its threads; ``None``, for a Trainer's GPU, as
            measured.
        keep_bytes: Memory for decoded pictures, in bytes; ``None`` for a quarter of what is free.
        pixel_store: Disk in the user's cache for those that do not fit there, such as ``"20GB"``, or ``"off"``.
        skip_bad: Drop unreadable pictures instead of raising.
        rescan: Read every file, instead of trusting what is known of files that are as they were.
        allow_empty_classes: Keep classes without pictures.
        allow_leaks: Go on although a picture is in two splits.
        max_pixels: The largest picture that is decoded, in pixels.
        ground: The colour that shows through transparent pixels: ``"white"``, ``"black"`` or ``"#rrggbb"``.
        grey_bits: Bits that the values of 16-bit grey pictures use, 8 to 16.
        value_range: Instead: what is black and what is white, ``[low, high]``; or ``"auto"``, the set's own range.
        channels: Of a picture. Of all five ``None`` leaves it as `data_config` has it, or a Trainer's model.
        reader: Says what labels mean: the ``targets`` of a task; names of classes by default.
        targets: Columns of a manifest that hold the answers, a list or separated by commas: 0/1 for labels, or numbers.
        path_column: Column of a manifest with the paths.
        label_column: Column of a manifest with the answer; ``None``: ``label``, ``labels``, ``target`` or ``mask``.
        label_separator: What stands between the labels of a picture in a column of several.
        root: Folder that a manifest's paths are relative to; its own when ``None``.
        mask_values: ``"classes"``, ``"binary"`` (all above 0 is one class) or ``"instances"`` (a number per object).
        palette: File that names the classes of masks; ``classes.txt`` or ``palette.csv`` beside the data when ``None``.
        progress: Called with pictures read and pictures in all, while the folder is indexed.

    Raises:
        ConfigError: An argument is out of range.
        DataError: On first use, with everything that is wrong with the pictures.
    """

    def __init__(
        self,
        data: str | os.PathLike[str],
        image_size: ImageSize = None,
        *,
        fit: Literal["crop", "squash", "pad"] | None = None,
        batch_size: int = 32,
        train_size: TrainSize = None,
        tile: bool = False,
        augment: Any = "light",
        augment_on: Where = "auto",
        flip: bool = True,
        sampler: str = "shuffle",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        data_config: DataConfig | None = None,
        val_split: float = 0.15,
        test_split: float = 0.15,
        group_by: str | None = None,
        group_near: bool = False,
        seed: int = 0,
        split_seed: int | None = None,
        workers: int | None = 0,
        keep_bytes: int | None = None,
        pixel_store: str = PIXEL_STORE,
        skip_bad: bool = False,
        rescan: bool = False,
        allow_empty_classes: bool = False,
        allow_leaks: bool = False,
        max_pixels: int | None = None,
        ground: str | None = None,
        grey_bits: int | None = None,
        value_range: str | list[float] | None = None,
        channels: int | None = None,
        reader: TargetReader = CLASSES,
        targets: str | list[str] | None = None,
        path_column: str = "path",
        label_column: str | None = None,
        label_separator: str = "|",
        root: str | None = None,
        mask_values: Literal["classes", "binary", "instances"] = "classes",
        palette: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        config = data_config or DataConfig()
        problems = image_size_problem(image_size, "image_size")
        size = None if problems else image_size_of(image_size)
        if size is not None:
            config = dataclasses.replace(config, image_size=size)
        self._options = DataOptions(
            data=os.fspath(data), val_split=val_split, test_split=test_split, group_by=group_by, group_near=group_near,
            skip_bad=skip_bad, rescan=rescan, allow_empty_classes=allow_empty_classes, allow_leaks=allow_leaks,
            max_pixels=max_pixels, ground=ground, grey_bits=grey_bits, value_range=value_range, channels=channels,
            fit=fit, seed=seed, split_seed=split_seed, targets=targets, path_column=path_column, palette=palette,
            label_column=label_column, label_separator=label_separator, root=root, mask_values=mask_values,
        )  # fmt: skip
        problems += [*self._options.problems(), *pixel_store_problems(pixel_store)]
        problems += [*size_problems(train_size, config, tile=tile), *fit_problems(fit, tile=tile)]
        problems += [f"{name} is {value}, expected a whole number of at least {low}"
                     for name, value, low in (("batch_size", batch_size, 1), ("workers", workers or 0, 0))
                     if value < low]  # fmt: skip
        if sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            problems.append(f"unknown sampler {sampler!r}.{did_you_mean(sampler, SAMPLERS)} Known: {known}")
        if augment_on not in PLACES:
            problems.append(f"augment_on is {augment_on!r}, expected one of {', '.join(PLACES)}")
        if problems:
            raise ConfigError(gather(problems))
        if tile and not reader.tiles:
            raise ConfigError("tile cuts pictures into windows with the answers on their pixels, which these have not")
        self._options = ranged(self._options, reader)
        config = self._options.prepared(config.in_windows() if tile else config)
        config = framed(reader, config, fit)
        augment = named(augment)
        train_transform(augment, config)  # an unknown name is an error now, not at the first batch
        self.batch_size = batch_size
        self.augment, self.flip, self.augment_on = augment, flip, augment_on
        self.data_config, self.whole = config, self._options.keeps_whole
        self.adopts_config = data_config is None
        self.seed = seed
        self._sampler = sampler
        self._mixing = (mixup, cutmix)
        self.train_sizes = TrainSizes(train_sizes(train_size))
        self._plain_epochs: frozenset[int] = frozenset()
        self._taught: Tensor | None = None
        self._workers = workers
        self._keep_bytes = free_memory() // 4 if keep_bytes is None else keep_bytes
        self._disk_bytes = disk_bytes(pixel_store)
        self._reader = reader
        self._progress = progress

    @cached_property
    def index(self) -> ImageIndex:
        """The pictures, their labels and splits; read on first use, with warnings. Raises `DataError`."""
        return warn_of(index_images(
            self._options,
            reader=self._reader,
            min_side=self.data_config.decode_side,
            decoding=self.data_config.decoding,
            pixels=self.pixels,
            workers=available_cores(),
            progress=self._progress,
        ))  # fmt: skip

    @cached_property
    def pixels(self) -> PixelStore:
        """Where decoded pictures are kept; filled as they are read for the index, or else when they are shown."""
        return open_pixels(self.data_config, memory=self._keep_bytes, disk=self._disk_bytes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.index.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.index.class_names)

    def setup(self, stage: str) -> None:
        """Adopt the data config of the Trainer's model, unless the data have one of their own."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        theirs = getattr(module, "data_config", None)
        if isinstance(theirs, DataConfig):
            self._adopt(theirs)

    def detached(self, config: DataConfig) -> Self:
        """Return the same pictures as a model of this `config` would get them, without a Trainer: a copy."""
        self.index  # noqa: B018  # read once, for both
        own = copy.copy(self)
        own.trainer = None
        own._adopt(config)
        if "pixels" not in own.__dict__:
            own._keep_bytes = self.pixels.room  # what those that are decoded otherwise have left
        return own

    def _adopt(self, config: DataConfig) -> None:
        """Prepare pictures as a model would have them, but for what was asked for here."""
        if not self.adopts_config:
            return
        own = dataclasses.replace(self._options.prepared(config), image_size=self.data_config.image_size)
        own = own.in_windows() if self.data_config.tiled else own
        self.data_config = framed(self._reader, own, self._options.fit)
        if "pixels" in self.__dict__ and not self.pixels.serves(self.data_config):
            del self.pixels  # they were decoded otherwise

    def dataset(self, split: str, *, train: bool = False) -> ImageDataset:
        """Return the pictures of a split, augmented for training or as they are for evaluation.

        Raises:
            DataError: The split is empty.
        """
        records = self.index.split(split)
        if not records:
            raise DataError(f"the data have no {split} pictures - add a {split} folder, or a --{split}-split above 0")
        taught = self._taught if train else None
        plain = Views(
            eval_transform(self.data_config), seed=self.seed, plain=self._plain_epochs,
            hands_over=train and self.place().on_device, cycle=0 if taught is None else len(taught) - 1,
        )  # fmt: skip
        annotations = self.annotations(split)
        whole = self.whole and annotations is None
        augmented = partial(train_transform, self.augment, flip=self.flip, whole=whole)
        views = self.train_sizes.views(plain, augmented) if train else plain
        if train and annotations is not None:
            check_carried(self.augment, self.train_sizes.last(self.data_config), boxes=not self._reader.tiles)
        pictures: Sequence[Picture] = [Picture(one.path, one.sha256) for one in records]
        if (rows := self.windows(split)) is not None and annotations is not None:
            pictures, annotations = WindowPictures(pictures, rows), WindowAnnotations(annotations, rows)
        return ImageDataset(
            pictures, views, targets=self.targets(split) if annotations is None else None, taught=taught,
            annotations=annotations, pixels=self.pixels, threads=available_cores(),
        )  # fmt: skip

    def place(self, device: str | None = None) -> Place:
        """Return where training pictures are augmented, with torch's name of a `device`, or the Trainer's.

        Raises:
            ConfigError: On the device, by `augment_on`, and it cannot be done there.
        """
        answers = self.annotations("train") is not None
        return choose_place(self.augment_on, self.augment, device or self._device(), self.data_config, answers=answers)

    def windows(self, split: str) -> Rows | None:
        """Return the windows of a split's pictures; ``None`` where pictures are not seen in windows."""
        sizes, records = self.index.sizes, self.index.split(split)
        return Rows([sizes[one.sha256] for one in records], self.data_config) if self.data_config.tiled else None

    def rows(self, split: str) -> int:
        """Return how many rows the data set of a split has: its pictures, or their windows."""
        return len(self.windows(split) or self.index.split(split))

    def targets(self, split: str) -> Tensor:
        """Return what the labels of a split's pictures mean, in index order: of classification ``(N,) int64``."""
        return torch.from_numpy(self.index.targets.encode(record.label for record in self.index.split(split)))

    def annotations(self, split: str) -> Annotations | None:
        """Return the answers on pixels of a split's pictures, in index order; ``None`` where `targets` says all."""
        records = self.index.split(split)
        return self.index.targets.annotate([one.label for one in records], [one.path for one in records])

    def show_as_evaluated(self, epochs: Iterable[int]) -> None:
        """Leave augmentation, and the size of training, out in these epochs, from 0; of loaders made from now on."""
        self._plain_epochs = frozenset(epochs)

    def teach(self, answers: Tensor) -> None:
        """Let training go by answers ``(1 + K, N, ...)`` to the evaluation view and to K that epochs take in turn."""
        self._taught = answers.share_memory_()  # type: ignore[no-untyped-call]

    def in_batches_of(self, size: int) -> ImageData:
        """Return the same data in batches of `size` pictures per process; the pictures are shared."""
        self.index  # noqa: B018  # read once, for both
        other = copy.copy(self)
        other.batch_size = size
        return other

    def _loader(
        self, dataset: ImageDataset, sampler: EpochSampler | EvaluationSampler | None = None, size: int | None = None
    ) -> ImageLoader:
        workers, threads = choose_makers(dataset, self._workers, self._device())
        return ImageLoader(
            dataset, size or self.batch_size, sampler=sampler, workers=workers, threads=threads,
            pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def _device(self) -> str:
        """Torch's name of the Trainer's device."""
        return "cpu" if self.trainer is None else self.trainer.strategy.root_device.type

    def _place(self) -> tuple[int, int]:
        """The Trainer's rank and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> ImageLoader:
        """Return the training loader; its order follows from seed and epoch."""
        return self.train_loader(*self._place())

    def train_loader(self, rank: int, world_size: int) -> ImageLoader:
        """Return the training loader of one of several processes, with or without a Trainer."""
        dataset = self.dataset("train", train=True)
        sampler = EpochSampler(
            len(dataset),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            balance=self._strata() if self._sampler == "balanced" else None,
        )
        return self._loader(dataset, sampler)

    def _strata(self) -> list[int]:
        strata = self.index.targets.strata(record.label for record in self.index.split("train"))
        windows = self.windows("train")
        return list(map(int, strata if windows is None else strata.repeat(windows.counts)))

    def val_dataloader(self) -> ImageLoader | list[ImageLoader]:
        """Return the validation loader, or an empty list where there is no validation split.

        Under a Trainer of several processes each measures its part of the pictures, all of them together every picture
        once; where they are too few to be dealt out in equally many batches, every process measures all of them. Either
        way the figures are those of one process.
        """
        return self._part("val") if self.index.split("val") else []

    def test_dataloader(self) -> ImageLoader:
        """Return the test loader; under a Trainer of several processes as `val_dataloader`."""
        return self._part("test")

    def _part(self, split: str) -> ImageLoader:
        rank, world_size = self._place()
        if world_size == 1:
            return self.evaluation_loader(split)
        dataset = self.dataset(split)
        batch_size = even_batch_size(len(dataset), self.batch_size, world_size)
        if batch_size is None:
            rank, world_size = 0, 1
        sampler = EvaluationSampler(len(dataset), rank=rank, world_size=world_size)
        return self._loader(dataset, sampler, batch_size)

    def evaluation_loader(self, split: str) -> ImageLoader:
        """Return a loader of a split's pictures in index order, without augmentation. Raises `DataError` when empty."""
        return self._loader(self.dataset(split))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise a batch's pictures on the device they are on."""
        return self.prepare(batch, train=self.trainer is not None and self.trainer.training)

    def prepare(self, batch: tuple[Tensor | Packed, Tensor], *, train: bool) -> tuple[Tensor, Tensor]:
        """Return a batch augmented, where that was left to the device, normalised and, for training, mixed."""
        images, targets = batch
        images = normalise(images, self.data_config)
        return self._mixer(images, targets) if train and self._mixer is not None else (images, targets)

    @cached_property
    def _mixer(self) -> Callable[..., Any] | None:
        return self._reader.mixer(self.index.targets.spec, *self._mixing) if any(self._mixing) else None
