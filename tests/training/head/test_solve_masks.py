"""Heads of masks that are solved: the live head is the solution, its figures are the network's own answers."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.core.targets import IGNORED
from transferkit.data.augment.normalise import normalise
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import Picture
from transferkit.data.index.masks import MaskReader
from transferkit.features.engine.compute import Compute
from transferkit.features.engine.taps import LAST_CELLS, PYRAMID_CELLS, cell_maps, places
from transferkit.features.linear.softening import START_STD
from transferkit.features.probe.solver import ClassSolver
from transferkit.features.store.store import FeatureStore
from transferkit.models.answers.classification import ClassHeads
from transferkit.models.answers.segmentation import MaskScores
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.dense.kinds import MASK_HEADS
from transferkit.models.dense.objective import MaskObjective
from transferkit.models.heads.solver import ProbeOptions
from transferkit.models.module import TransferModule
from transferkit.models.task import Task
from transferkit.options.training import PlanConfig
from transferkit.training.head import cells
from transferkit.training.head.cells import CellRows
from transferkit.training.head.features import SplitFeatures
from transferkit.training.head.solve import soften_head, solve_probe, views_fitted
from transferkit.training.plan import preview

SIDE, TRAIN, VAL = 128, 8, 4
TAPS = {"linear": LAST_CELLS, "hypercolumns": PYRAMID_CELLS}
COMPUTE = Compute("cpu", "32", "off", threads=1, batch_size=8)


@dataclass(frozen=True)
class Softmax:
    """What a solved head needs of an output."""

    def activate(self, outputs):
        return outputs.softmax(dim=-3)


TASK = Task(
    name="masks", targets=MaskReader(), heads=ClassHeads(), objective=MaskObjective(), output=Softmax(),
    scores=MaskScores(), head_kinds=MASK_HEADS, solver=ClassSolver("L-BFGS on cached cells", "pixel_acc", "pixels"),
)  # fmt: skip


def draw(folder, split, count, *, shape=(SIDE, SIDE), seed=0, ignored=False):
    """Pictures whose one half is red and rough, the other blue and smooth; classes 1 and 0."""
    generator = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / split / name).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros(shape, dtype=np.uint8)
        middle = (shape[0] // 2, shape[1] // 2)
        halves = (np.s_[: middle[0]], np.s_[middle[0] :], np.s_[:, : middle[1]], np.s_[:, middle[1] :])
        mask[halves[number % 4]] = 1
        there = mask[..., None] == 1
        pixels = np.where(there, (190, 60, 50), (40, 70, 180))
        pixels = pixels + generator.normal(0, 1, (*shape, 3)) * np.where(there, 30, 3)
        if ignored:
            mask[: shape[0] // 4] = IGNORED
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / "images" / f"{seed}_{number}.png")
        Image.fromarray(mask).save(folder / split / "masks" / f"{seed}_{number}.png")
    return folder


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    draw(folder, "train", TRAIN)
    return draw(folder, "val", VAL, seed=1)


def build(folder, head="linear", backbone="transferkit/mini", size=SIDE, **options):
    torch.manual_seed(0)
    model = create_backbone(backbone, **({} if "/" in backbone else {"weights": "random"}), image_size=size)
    data = ImageData(folder, batch_size=4, data_config=model.data_config, reader=MaskReader(), **options)
    model.data_config = data.data_config
    names = data.index.targets.spec.names
    return TransferModule(model, len(names), head, class_names=names, task=TASK), data


def solve(module, data, store, **options):
    return solve_probe(module, data, FeatureStore(store), COMPUTE, **options)


def rows_of(module, data, store, head="linear", **options):
    return CellRows(SplitFeatures(module, data, FeatureStore(store), COMPUTE), TAPS[head], **options)


@pytest.mark.parametrize(("head", "least"), [("linear", 0.85), ("hypercolumns", 0.95)])
def test_easy_masks_are_solved(halves, tmp_path, head, least):
    module, data = build(halves, head)
    figures = solve(module, data, tmp_path).figures
    assert figures["val_miou"] > least
    assert figures["train_pixel_acc"] > 0.98
    assert figures["pictures"] == TRAIN + VAL
    assert figures["fitted_on"] == f"{TRAIN * len(places(*grid_of(module, head))):,} cells of 8 training pictures"


def grid_of(module, head):
    with torch.no_grad():
        images = torch.zeros(1, 3, *module.data_config.image_size)
        return cell_maps(module.backbone.eval(), TAPS[head], images)[0].shape[2:]


@pytest.mark.parametrize(("backbone", "head"), [("transferkit/mini", "linear"), ("transferkit/mini", "hypercolumns"),
                                                ("test_vit", "linear"), ("test_convnext", "hypercolumns")])  # fmt: skip
def test_the_live_head_says_of_cells_what_was_solved(halves, tmp_path, backbone, head):
    module, data = build(halves, head, backbone)
    rows = rows_of(module, data, tmp_path, head).rows()
    solution = ClassSolver().fit(rows, ProbeOptions(folds=cells.FOLDS))
    solved = solve(module, data, tmp_path)
    chosen = places(*grid_of(module, head))
    logits = []
    with torch.inference_mode():
        for images, _ in data.evaluation_loader("train"):
            maps = cell_maps(module.backbone.eval(), TAPS[head], normalise(images, module.data_config))
            joined = torch.cat([torch.nn.functional.interpolate(level, maps[0].shape[2:], mode="bilinear")
                                if level.shape != maps[0].shape else level for level in maps], dim=1)  # fmt: skip
            logits.append(module.head.linear(joined).flatten(2)[:, :, chosen].transpose(1, 2))
    live = torch.cat(logits).flatten(0, 1).numpy()
    first = np.flatnonzero(np.any(np.diff(rows.X, axis=0, prepend=np.nan), axis=1))  # of the rows of each cell
    assert len(first) == len(live)
    np.testing.assert_allclose(live, solution.outputs(rows.X[first]), atol=1e-3)
    assert solved.head["linear.weight"].shape == (2, rows.X.shape[1], 1, 1)


def test_val_figures_are_the_networks_own_answers(halves, tmp_path):
    module, data = build(halves)
    module.train()
    figures = solve(module, data, tmp_path).figures
    assert module.training and module.backbone.training
    module.eval()
    confusion, losses, shares = np.zeros((2, 2)), [], []
    with torch.inference_mode():
        for images, masks in data.evaluation_loader("val"):
            logits = module(normalise(images, module.data_config))
            for one, mask in zip(logits, masks, strict=True):
                losses.append(float(torch.nn.functional.cross_entropy(one[None], mask[None].long())))
                shares.append(float((one.argmax(dim=0) == mask).double().mean()))
                for true in (0, 1):
                    for said in (0, 1):
                        confusion[true, said] += int(((mask == true) & (one.argmax(dim=0) == said)).sum())
    right = confusion.diagonal()
    expected = (right / (confusion.sum(axis=0) + confusion.sum(axis=1) - right)).mean()
    assert figures["val_miou"] == pytest.approx(expected, abs=1e-6)
    assert figures["val_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert figures["val_pixel_acc"] == pytest.approx(np.mean(shares), abs=1e-6)


def test_train_figures_are_of_cells(halves, tmp_path):
    module, data = build(halves)
    figures = solve(module, data, tmp_path).figures
    rows = rows_of(module, data, tmp_path).rows()
    weight, bias = module.head.linear.weight.detach().numpy().reshape(2, -1), module.head.linear.bias.detach().numpy()
    logits = rows.X @ weight.T + bias
    own = logits[np.arange(len(rows)), rows.y] - np.log(np.exp(logits).sum(axis=1))
    assert figures["train_loss"] == pytest.approx(-(own * rows.weight).sum() / rows.weight.sum(), abs=1e-5)
    assert rows.weight.sum() == pytest.approx(TRAIN)


def test_a_second_solution_computes_nothing(halves, tmp_path):
    first = solve(*build(halves), tmp_path, views=1).figures
    second = solve(*build(halves), tmp_path, views=1).figures
    assert (first["computed"], second["computed"], first["views"]) == (TRAIN, 0, 1)
    assert {**first, "computed": 0, "time_s": 0} == {**second, "time_s": 0}


def test_what_fine_tuning_starts_from_is_less_sure(halves, tmp_path):
    module, data = build(halves)
    solved = solve(module, data, tmp_path)
    factor = float(solved.start["linear.weight"].norm() / solved.head["linear.weight"].norm())
    assert factor == pytest.approx(START_STD / solved.figures["logit_std"], rel=1e-5)
    soften_head(module.head, solved)
    assert torch.equal(module.head.linear.weight, solved.start["linear.weight"])
    assert module.head.linear.weight.shape == (2, 256, 1, 1)


def test_padding_and_ignored_pixels_are_no_cells(tmp_path):
    """Of a wide picture on a square canvas only the middle rows are cells, and what nobody labelled weighs nothing."""
    folder = draw(tmp_path / "wide", "train", 8, shape=(64, 128), ignored=True)
    draw(folder, "val", 2, shape=(64, 128), seed=1)
    module, data = build(folder)
    rows = rows_of(module, data, tmp_path / "store").rows()
    pixels = np.zeros((8, 16, 2))
    cell = np.arange(SIDE) // 32
    for row, record in enumerate(data.index.split("train")):
        mask = np.full((SIDE, SIDE), IGNORED)
        mask[32:96] = np.asarray(Image.open(record.label))
        for y, x in np.argwhere(mask != IGNORED):
            pixels[row, cell[y] * 4 + cell[x], mask[y, x]] += 1
    assert not pixels[:, :4].any() and not pixels[:, 12:].any() and pixels[:, 4:8].sum() < pixels[:, 8:12].sum()
    expected = pixels / pixels.sum(axis=(1, 2), keepdims=True)
    assert len(rows) == np.count_nonzero(expected)
    np.testing.assert_allclose(rows.weight, expected[expected > 0])
    assert rows.y.tolist() == np.nonzero(expected)[2].tolist()


def test_views_bring_their_masks_along_and_weigh_as_much_as_one_picture(halves, tmp_path):
    module, data = build(halves, augment="standard")
    features = SplitFeatures(module, data, FeatureStore(tmp_path), COMPUTE, seed=3)
    found = CellRows(features, LAST_CELLS, views=2)
    rows = found.rows()
    assert rows.weight.sum() == pytest.approx(TRAIN)
    assert np.bincount(rows.units(), weights=rows.weight) == pytest.approx(1)
    assert rows.X[: len(found.X)].tolist() == found.X.tolist()
    plain = rows_of(module, data, tmp_path)
    assert plain.X.tolist() == found.X.tolist()
    assert plain.rows().weight.sum() == pytest.approx(TRAIN)
    records = data.index.split("train")[:4]
    pictures = (
        [Picture(record.path, record.sha256) for record in records],
        data.index.targets.annotate([record.label for record in records], [record.path for record in records]),
    )
    for record, shown in zip(records, cells._masks(*pictures, features, 2), strict=True):
        pixels = np.asarray(Image.open(record.path).convert("RGB"))
        for view, mask in enumerate(shown):
            (image,) = features.views(2).render(pixels, record.sha256, (view,))
            red = image[..., 0].astype(int) > image[..., 2]
            counts = mask != IGNORED
            assert (red[counts] == mask[counts]).mean() > 0.9, view


def test_no_views_where_nothing_is_augmented(halves, tmp_path):
    module, data = build(halves, augment="none")
    assert rows_of(module, data, tmp_path, views=2).facts["views"] == 0


def test_of_many_pictures_a_part_is_drawn_of_each_stratum(halves, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "MOST_CELLS", 16 * 5)
    module, data = build(halves)
    found = rows_of(module, data, tmp_path, views=2)
    assert found.facts == {
        "pictures": 5 + VAL, "views": 0, "fitted_on": "80 cells of 5 training pictures, drawn of 8",
    }  # fmt: skip
    assert len(np.unique(found.rows().units())) == 5
    again = rows_of(module, data, tmp_path)
    assert again.X.tolist() == found.X.tolist()
    assert views_fitted(module, data, 2) == 5


@pytest.mark.parametrize(("augment", "most", "views"), [("light", 16 * 5, 5), ("light", 16 * 17, 16), ("none", 999, 8)])
def test_a_plan_counts_what_a_solved_head_is_fitted_on(halves, tmp_path, monkeypatch, augment, most, views):
    """As often as the backbone sees a training picture; the time is that of so many, and of the val pictures."""
    monkeypatch.setattr(cells, "MOST_CELLS", most)
    config = PlanConfig(data=str(halves), backbone="transferkit/mini", weights="bundled", image_size=SIDE,
                        head="linear", phases="probe", augment=augment, workers=0, accelerator="cpu", batch_size=4,
                        precision="32", quiet=True)  # fmt: skip
    (phase,) = preview.write_preview(config, quiet=True, out=str(tmp_path / "plan"))[1]["phases"]
    assert phase["time_s"] == pytest.approx(phase["step_s"] * (views + VAL) / 4)


def test_masks_of_one_class_are_refused(halves, tmp_path, monkeypatch):
    module, data = build(halves)
    monkeypatch.setattr(cells, "fit_mask", lambda mask, config, part=None: np.zeros(config.image_size, dtype=np.uint8))
    monkeypatch.setattr(cells, "_warn_of_unseen", lambda features, pixels: None)
    with pytest.raises(DataError, match="the training split holds pixels of one class, expected at least two to fit"):
        solve(module, data, tmp_path)


def test_masks_in_which_nothing_counts_are_refused(halves, tmp_path, monkeypatch):
    module, data = build(halves)
    monkeypatch.setattr(
        cells, "fit_mask", lambda mask, config, part=None: np.full(config.image_size, IGNORED, dtype=np.uint8)
    )
    with pytest.raises(DataError, match="the training masks hold no pixel that counts, all are 255 - give them cla"):
        solve(module, data, tmp_path)


def test_a_class_that_no_cell_shows_is_named(halves, tmp_path, monkeypatch):
    """Else it would be missing in every answer without a word (caffe-segnet issue 66)."""
    module, data = build(halves)
    shown = iter(range(TRAIN))

    def but_one(mask, config, part=None):
        return np.full(config.image_size, IGNORED if next(shown) else 0, dtype=np.uint8)

    monkeypatch.setattr(cells, "fit_mask", but_one)
    monkeypatch.setattr(cells, "in_order", lambda read, rows, workers: map(read, rows))
    with pytest.warns(
        TransferkitWarning, match="no cell that the head is solved on holds a pixel of 'foreground': the"
    ):
        found = rows_of(module, data, tmp_path)
    assert set(found.y.tolist()) == {0}
    assert found.rows().weight.sum() == pytest.approx(1)  # pictures in which nothing counts are none


def test_rows_of_a_head_that_are_taken_over_stay(halves, tmp_path):
    module, data = build(halves)
    torch.nn.init.normal_(module.head.linear.weight)
    before = module.head.linear.weight.detach().clone()
    solve(module, data, tmp_path, taken=(module.class_names[1],))
    assert torch.equal(module.head.linear.weight[1], before[1])
    assert not torch.equal(module.head.linear.weight[0], before[0])


def test_a_decoder_cannot_be_solved(halves, tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    module, data = build(halves, "unet")
    with pytest.raises(
        ConfigError,
        match="a UnetHead cannot be solved, expected a linear head or one of class means - train it instead",
    ):
        solve(module, data, tmp_path)
