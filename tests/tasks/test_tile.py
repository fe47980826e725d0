"""Masks of pictures that are seen in windows, through the verbs; the reference tiles with plain numpy."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_runs import MASK_CLASSES, make_mask_run, picture
from PIL import Image
from torch import nn
from torch.nn import functional

import transferkit as tk
from transferkit.cli.main import main
from transferkit.core.csv import read_csv
from transferkit.core.errors import ConfigError
from transferkit.data.augment.normalise import normalise
from transferkit.models.artifact import load_model, save_model
from transferkit.models.module import TransferModule
from transferkit.options.features import CheckConfig
from transferkit.options.results import CalibrateConfig, EvaluateConfig, ExplainConfig, PredictConfig, ReportConfig
from transferkit.options.training import SelftestConfig
from transferkit.results.audit.audit import check
from transferkit.results.evaluate.calibrate import calibrate
from transferkit.results.evaluate.evaluate import evaluate
from transferkit.results.evaluate.outputs import measuring
from transferkit.results.explain.explain import explain
from transferkit.results.predict.predict import predict_files
from transferkit.results.predict.predictor import load
from transferkit.results.report.report import report
from transferkit.runs.truths import truths_of
from transferkit.training.checks.selftest import check_resume

SIDE = 32
SIZES = [(50, 70), (20, 90), (33, 31), (64, 64), (10, 12), (101, 40)]


# ---- a reference that knows nothing of ours ------------------------------------------------------------------------


def spans(length, side):
    """Where windows begin along a side, and which pixels each decides: the one that sees farthest around them."""
    if length <= side:
        return [(-((side - length) // 2), range(length))]
    count = next(n for n in range(2, length) if (length - side) / (n - 1) <= side - 2 * (side // 8))
    starts = [int(at * (length - side) / (count - 1) + 1e-9) for at in range(count)]
    owners = []
    for pixel in range(length):
        around = [min(pixel - start, start + side - 1 - pixel) for start in starts]
        around[0] = side if pixel < side / 2 else around[0]
        around[-1] = side if pixel >= length - side / 2 else around[-1]
        owners.append(max(range(count), key=lambda at: (around[at], at)))
    return [(start, [p for p in range(length) if owners[p] == at]) for at, start in enumerate(starts)]


def by_hand(image, module, side=SIDE, flip=False):
    """Return the probabilities ``(C, H, W)`` of a picture, window by window."""
    config = module.data_config
    height, width = image.shape[:2]
    ground = np.array([round(255 * level) for level in config.mean])
    padded = np.broadcast_to(ground, (height + 2 * side, width + 2 * side, 3)).astype(np.uint8).copy()
    padded[side:-side, side:-side] = image
    places = [(top, rows, left, columns) for top, rows in spans(height, side) for left, columns in spans(width, side)]
    shown = np.stack([padded[side + top :, side + left :][:side, :side] for top, _, left, _ in places])
    with torch.no_grad():
        probs = module(normalise(torch.from_numpy(shown), config)).softmax(1).numpy()
        if flip:
            mirrored = normalise(torch.from_numpy(shown[:, :, ::-1].copy()), config)
            probs = (probs + module(mirrored).softmax(1).numpy()[..., ::-1]) / 2
    result = np.full((probs.shape[1], height, width), np.nan, dtype=np.float32)
    for (top, rows, left, columns), mean in zip(places, probs, strict=True):
        for row in rows:
            for column in columns:
                assert np.isnan(result[0, row, column])
                result[:, row, column] = mean[:, row - top, column - left]
    assert not np.isnan(result).any()
    return result


class Near(nn.Module):
    """A head whose class of a pixel is a function of pixels up to `reach` away: sums, in one order."""

    takes_pyramid = True

    def __init__(self, reach):
        super().__init__()
        self.reach = reach
        self.level = nn.Parameter(torch.tensor(0.11))

    def forward(self, inputs):
        grey, reach = inputs[0][:, :1], self.reach
        around = functional.pad(grey, (reach,) * 4)
        height, width = grey.shape[2:]
        total = grey - self.level
        for down, right in ((0, 0), (0, 2 * reach), (2 * reach, 0), (2 * reach, 2 * reach), (reach, 2 * reach)):
            total = total + around[:, :, down : down + height, right : right + width]
        return torch.cat((total, -total, total * 0 - 3.0), dim=1)


def near_run(directory, reach, side=SIDE):
    module = TransferModule("test_resnet", 3, Near(reach), weights="random", image_size=side, task="segmentation",
                            class_names=MASK_CLASSES)  # fmt: skip
    config = tk_config(module.data_config)
    module.backbone.data_config = config
    directory.mkdir(parents=True)
    save_model(directory, module, preprocessing=config)
    return module


def tk_config(config):
    return type(config).from_dict({**config.to_dict(), "crop_mode": "tile", "crop_pct": 1.0})


@pytest.mark.parametrize("reach", [1, 4])
def test_what_lies_within_the_margin_is_as_if_the_picture_were_seen_whole(tmp_path, reach):
    """The mask is a function of the pixels; a window looks 4 of them beyond what it decides."""
    head = Near(reach)
    module = near_run(tmp_path / "run", reach)
    predictor = load(tmp_path / "run", head=head)
    rng = np.random.default_rng(reach)
    for size in SIZES:
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        with torch.no_grad():
            whole = normalise(torch.from_numpy(image)[None], module.data_config)
            ground = module.head((functional.pad(whole, (0,) * 4),))[0].argmax(0).numpy()
        (said,) = predictor.predict(image)
        inner = np.s_[:, :] if min(size) > SIDE else np.s_[reach:-reach, reach:-reach]  # 0 is not quite the mean colour
        assert said.mask.shape == size
        assert np.array_equal(said.mask[inner], ground[inner]), size


def test_what_lies_beyond_the_margin_can_differ(tmp_path):  # the guard above can fail
    module = near_run(tmp_path / "run", 9)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        ground = module.head((normalise(torch.from_numpy(image)[None], module.data_config),))[0].argmax(0).numpy()
    (said,) = load(tmp_path / "run", head=Near(9)).predict(image)
    assert 0 < (said.mask != ground).mean() < 0.5


# ---- against the reference -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """A model that was never trained; its masks have all three classes."""
    return make_mask_run(tmp_path_factory.mktemp("fixed") / "run", side=SIDE, crop_mode="tile")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    turned = Image.Exif()
    turned[0x0112] = 6
    paths = [picture(root / f"{at}.png", size[::-1], seed=at) for at, size in enumerate(SIZES)]
    return [*paths, picture(root / "large.jpg", (180, 133), seed=7),
            picture(root / "turned.jpg", (90, 47), seed=8, exif=turned)]  # fmt: skip


def upright(path):
    from PIL import ImageOps

    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize(("tta", "workers", "batch"), [("none", 0, None), ("flip", 0, 6), ("none", 1, 3)])
def test_masks_are_those_of_the_reference(fixed, pictures, tta, workers, batch):  # fault 189
    predictor = load(fixed)
    module, _ = load_model(fixed)
    made = predictor.predict(pictures, tta=tta, workers=workers, batch_size=batch)
    classes = set()
    for path, said in zip(pictures, made, strict=True):
        expected = by_hand(upright(path), module, flip=tta == "flip")
        first, second = np.sort(expected, axis=0)[::-1][:2]
        clear = first - second > 1e-4  # batches of other sizes round otherwise
        assert said.mask.shape == expected.shape[1:], path
        assert clear.mean() > 0.99 and np.array_equal(said.mask[clear], expected.argmax(0)[clear]), path
        classes |= set(np.unique(said.mask).tolist())
        assert sum(said.shares.values()) == pytest.approx(1)
    assert classes == {0, 1, 2}


def test_arrays_files_and_bytes_are_one_picture_and_bad_ones_stay_in_place(fixed, pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    sources = [pictures[0], str(tmp_path / "bad.png"), upright(pictures[0]), Path(pictures[0]).read_bytes(),
               str(tmp_path / "none.png"), Image.open(pictures[3])]  # fmt: skip
    made = load(fixed).predict(sources, batch_size=5)
    assert [one.error is None for one in made] == [True, False, True, True, False, True]
    assert np.array_equal(made[0].mask, made[2].mask) and np.array_equal(made[0].mask, made[3].mask)
    assert made[5].mask.shape == (64, 64)


def test_one_window_without_finite_logits_fails_its_picture_alone(fixed, pictures):  # fault 190
    predictor = load(fixed)
    seen = predictor._rows

    def poisoned(images, batch, left):
        logits, *others = seen(images, batch, left)
        logits = logits.clone()
        logits[4, 0, 0, 0] = float("nan")  # a window of the first picture, of six
        return (logits, *others)

    predictor._rows = poisoned
    made = predictor.predict(pictures[:2], batch_size=64)
    assert made[0].error == "the model returns NaN or infinity for it" and made[0].mask is None
    assert made[1].error is None


# ---- trained runs --------------------------------------------------------------------------------------------------


def draw(folder, counts, seed=0):
    """Write pictures of red rectangles on grey noise, some smaller than a window, each with its mask."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for name in ("images", "masks"):
            (folder / split / name).mkdir(parents=True)
        for at in range(count):
            height, width = (25, 28) if at % 5 == 4 else (int(rng.integers(40, 90)), int(rng.integers(40, 90)))
            image = rng.integers(80, 120, (height, width, 3)).astype(np.uint8)
            mask = np.zeros((height, width), dtype=np.uint8)
            top, left = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
            mask[top : top + 20, left : left + 20] = 1
            image[mask == 1] = (220, 30, 40)
            if at == 1:
                mask[:, :5] = 255
            Image.fromarray(image).save(folder / split / "images" / f"{at:02}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{at:02}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rectangles")
    draw(folder, {"train": 12, "val": 12, "test": 5})
    return folder


@pytest.fixture(scope="module")
def options(data, tmp_path_factory):
    return {
        "data": str(data), "backbone": "transferkit/mini", "weights": "bundled", "image_size": SIDE, "batch_size": 16,
        "workers": 0, "accelerator": "cpu", "precision": "32", "tile": True, "head": "hypercolumns",
        "store": str(tmp_path_factory.mktemp("store")), "quiet": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    """The solved head, then an epoch of all of it."""
    return tk.finetune(**options, epochs=1, lr=1e-4, out=str(tmp_path_factory.mktemp("runs") / "run"))


def tables(module, data, split):
    """Return the pixels of true and predicted classes, ``(2, 2)``, and the mean log loss, by hand."""
    table, losses = np.zeros((2, 2)), []
    for path in sorted((data / split / "images").iterdir()):
        truth = np.asarray(Image.open(data / split / "masks" / path.name))
        probs = by_hand(np.asarray(Image.open(path)), module)
        counts = truth != 255
        np.add.at(table, (truth[counts], probs.argmax(0)[counts]), 1)
        losses.append(-np.log(np.take_along_axis(probs, np.minimum(truth, 1)[None].astype(int), 0)[0][counts]).mean())
    return table, float(np.mean(losses))


def test_a_run_is_measured_pixel_by_pixel_and_remembers_its_windows(run, data):
    facts = json.loads((run.path / "model.json").read_text(encoding="utf-8"))["preprocessing"]
    assert facts["crop_mode"] == "tile" and facts["image_size"] == [SIDE, SIDE]
    module, _ = load_model(run.path)
    for split in ("val", "test"):
        values = run.metrics[split]
        table, loss = tables(module, data, split)
        assert np.abs(np.array(values["confusion"]) - table).sum() <= 4  # of ten thousands, where probabilities tie
        assert values["pixels"] == table.sum() and values["n"] == (12 if split == "val" else 5)
        right, union = table.diagonal(), table.sum(axis=0) + table.sum(axis=1) - table.diagonal()
        assert values["miou"] == pytest.approx((right / union).mean(), abs=1e-3)
        assert values["uncalibrated"]["loss"] == pytest.approx(loss, rel=0.15, abs=0.01)  # of sampled pixels
    assert run.metrics["test"]["miou"] > 0.8
    solved, tuned = run.metrics["phases"]
    assert "windows of training pictures" in solved["fitted_on"] and tuned["epochs"] == 1
    assert len(read_csv(run.path / "predictions.csv")) == 17


def test_the_figures_of_an_epoch_are_the_final_ones(run, options, data):
    """Nothing is left out and nothing counted twice on the way: a running figure is that of the pictures themselves."""
    module, _ = load_model(run.path)
    metric = module.task.objective.metrics(["miou"], 2)["miou"]
    images = tk.ImageData(str(data), SIDE, tile=True, batch_size=7, data_config=module.data_config,
                          reader=module.task.targets)  # fmt: skip
    with torch.no_grad():
        for batch, targets in images.evaluation_loader("val"):
            metric.update(module(normalise(batch, module.data_config)), targets)
    assert float(metric.compute()) == pytest.approx(run.metrics["val"]["miou"], abs=1e-4)


def test_evaluate_predict_and_calibrate_need_no_flag(run, data, tmp_path):
    out = evaluate(EvaluateConfig(run=str(run.path), data=str(data), split="test", out=str(tmp_path / "out"), workers=0,
                                  accelerator="cpu", against=str(run.path), quiet=True))  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["confusion"] == run.metrics["test"]["confusion"]
    assert metrics["test"]["loss"] == pytest.approx(run.metrics["test"]["loss"], abs=1e-5)
    assert metrics["against"]["test"]["n"] == 5
    assert "its true mask" in (out / "report.html").read_text(encoding="utf-8")
    flipped = evaluate(EvaluateConfig(run=str(run.path), data=str(data), split="test", out=str(tmp_path / "flip"),
                                      tta="flip", workers=0, accelerator="cpu", report="off", quiet=True))  # fmt: skip
    both = json.loads((flipped / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert both["pixels"] == metrics["test"]["pixels"] and both["miou"] > 0.8
    predict_files(PredictConfig(run=str(run.path), paths=[str(data / "test" / "images")], out=str(tmp_path / "p.csv"),
                                workers=0, accelerator="cpu", quiet=True))  # fmt: skip
    table = np.zeros((2, 2), dtype=np.int64)
    for row in read_csv(tmp_path / "p.csv"):
        truth = np.asarray(Image.open(data / "test" / "masks" / Path(row["path"]).name))
        counts = truth != 255
        np.add.at(table, (truth[counts], np.asarray(Image.open(row["mask"]))[counts]), 1)
    assert table.tolist() == metrics["test"]["confusion"]  # what is measured is what is written
    before = (run.path / "model.json").read_text(encoding="utf-8")
    fitted = calibrate(CalibrateConfig(run=str(run.path), data=str(data), split="val", workers=0, accelerator="cpu",
                                       quiet=True))  # fmt: skip
    (run.path / "model.json").write_text(before, encoding="utf-8")
    assert fitted.temperature == pytest.approx(run.metrics["calibration"]["temperature"], rel=1e-3)


def test_pixels_are_sampled_from_the_picture_and_not_from_its_windows(fixed, pictures, tmp_path):
    """The same ones whatever the windows: two models of other windows are compared at the same pixels."""
    predictor = load(fixed)
    extent = predictor.module.task.extent
    mask = np.random.default_rng(0).integers(0, 3, (101, 40), dtype=np.uint8)
    truths = []
    for run in (fixed, make_mask_run(tmp_path / "pad", side=SIDE)):
        other = load(run)
        Image.fromarray(mask).save(tmp_path / "mask.png")
        targets = other.info.targets.__class__(
            other.info.target_spec.with_facts({"values": [0, 1, 2], "mask_values": "classes"})
        )
        truth = truths_of(targets, [str(tmp_path / "mask.png")], [pictures[5]], other.info.preprocessing).of(
            pictures[5]
        )
        outputs = list(other.outputs([pictures[5]]))
        gathered = measuring(other, outputs[0], truth)
        for output in outputs:
            gathered.add(output)
        truths.append(gathered.done())
    assert extent.windows is not None and len(truths[0].truths) == 256
    assert np.array_equal(truths[0].truths, truths[1].truths)
    assert np.array_equal(truths[0].confusion.sum(axis=1), truths[1].confusion.sum(axis=1))
    assert truths[0].confusion.sum() == mask.size


def test_explain_shows_the_picture_and_one_map_for_all_its_windows(fixed, pictures, tmp_path):
    out = explain(ExplainConfig(run=str(fixed), paths=[pictures[5], pictures[6]], out=str(tmp_path / "why"),
                                neighbours=0, workers=0, accelerator="cpu", quiet=True))  # fmt: skip
    rows = read_csv(out / "explain.csv")
    assert len(rows) == 2 and all((out / row["png"]).stat().st_size > 10_000 for row in rows)


def test_a_report_of_a_run_is_written(run, tmp_path):
    report(ReportConfig(runs=[str(run.path)], out=str(tmp_path / "page.html"), quiet=True))
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text(encoding="utf-8")


# ---- before training -----------------------------------------------------------------------------------------------


def test_check_says_how_many_windows_there_are(data, tmp_path, capsys):  # fault 188
    check(CheckConfig(data=str(data), tile=True, image_size=SIDE, quick=True, out=str(tmp_path / "c"), quiet=True))
    counts = {split: tk.ImageData(str(data), SIDE, tile=True, reader=load_task().targets).rows(split)
              for split in ("train", "val", "test")}  # fmt: skip
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    assert f"{sum(counts.values())} windows of 32 x 32 pixels: {listed}" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ConfigError, match="--tile needs the side of windows"):
        check(CheckConfig(data=str(data), tile=True, quick=True, out=str(tmp_path / "d"), quiet=True))
    with pytest.raises(ConfigError, match="answers of classification are none"):
        check(CheckConfig(data="sample", tile=True, image_size=SIDE, quick=True, out=str(tmp_path / "e"), quiet=True))


def load_task():
    from transferkit.tasks.segmentation import TASK

    return TASK


def test_other_tasks_are_refused_with_all_else_that_is_wrong(tmp_path, capsys):  # fault 187
    with pytest.raises(ConfigError, match=r"--tile cuts pictures.*classification.*") as refused:
        tk.finetune(data="sample", backbone="transferkit/mini", tile=True, loss="tversky", quiet=True)
    assert "--loss is 'tversky'" in str(refused.value)
    assert main(["plan", "--data", "sample", "--tile", "--loss", "tversky", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "--tile cuts pictures" in said and "--loss is 'tversky'" in said


def test_the_plan_counts_windows(options, tmp_path, capsys):
    plan = tk.finetune(**{**options, "quiet": False}, phases="finetune", epochs=2, dry_run=True,
                       out=str(tmp_path / "run"))  # fmt: skip
    rows = tk.ImageData(options["data"], SIDE, tile=True, reader=load_task().targets).rows("train")
    assert plan.metrics["rows"] == "windows" and plan.metrics["steps_per_epoch"] == -(-rows // 16)
    said = " ".join(capsys.readouterr().out.split())
    assert f"windows {rows} train /" in said and "batch 16 windows" in said


def test_the_lr_is_looked_for_on_windows(options, tmp_path):
    words = [word for name, value in {**options, "phases": "finetune", "steps": 30, "measure": "val",
                                      "out": tmp_path / "lr"}.items()
             for word in ([f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)]))]  # fmt: skip
    assert main(["lr-find", *words]) == 0
    assert len(read_csv(tmp_path / "lr" / "lr.csv")) > 10


def test_a_plain_trainer_leaves_a_model_that_sees_windows(data, tmp_path):
    import lightning

    images = tk.ImageData(str(data), SIDE, tile=True, batch_size=16, reader=load_task().targets)
    module = tk.TransferModule(
        "transferkit/mini", 2, "linear", weights="bundled", image_size=SIDE, task="segmentation",
        class_names=images.class_names, target_facts=images.index.targets.spec.facts,
    )  # fmt: skip
    trainer = lightning.Trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1, logger=False,
                                accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
                                enable_model_summary=False)  # fmt: skip
    trainer.fit(module, images)
    save_model(tmp_path, module)
    (said,) = load(tmp_path).predict(str(data / "test" / "images" / "00.png"))
    with Image.open(data / "test" / "images" / "00.png") as image:
        assert said.mask.shape == image.size[::-1]
    assert load(tmp_path).info.preprocessing.tiled


# ---- several processes, killed runs, large pictures ----------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_measure_each_window_once(data, tmp_path):
    run = tmp_path / "run"
    words = ["--data", data, "--backbone", "transferkit/mini", "--weights", "bundled", "--head", "linear", "--tile",
             "--image-size", SIDE, "--lr", "1e-3", "--epochs", 1, "--phases", "finetune", "--batch-size", 4,
             "--devices", 2, "--workers", 0, "--accelerator", "cpu", "--precision", "32", "--quiet", "--out", run,
             "--report", "off"]  # fmt: skip
    subprocess.run([sys.executable, "-m", "transferkit", "finetune", *map(str, words)], check=True, timeout=300)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["val"]
    (row,) = read_csv(run / "history.csv")
    assert float(row["val_miou"]) == pytest.approx(metrics["miou"], abs=2e-6)  # all windows, by two; and by one
    table, _ = tables(load_model(run)[0], data, "val")
    assert np.abs(np.array(metrics["confusion"]) - table).sum() <= 4
    out = tmp_path / "p.csv"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "transferkit", "predict",
               str(run), str(data / "val" / "images"), "--out", str(out), "--workers", "0", "--accelerator", "cpu",
               "--quiet"]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    for row, said in zip(read_csv(out), load(run).predict([row["path"] for row in read_csv(out)]), strict=True):
        assert np.array_equal(np.asarray(Image.open(row["mask"])), said.mask)


@pytest.mark.slow
def test_killed_runs_on_windows_resume_to_the_last_bit(data):
    kills = check_resume(SelftestConfig(
        resume=True, data=str(data), backbone="test_resnet", weights="random", tile=True, image_size=SIDE, kills=2,
        quiet=True,
    ))  # fmt: skip
    assert len(kills) == 2


MEASURE = """
import resource, sys
from transferkit.results.predict.predictor import load
predictor = load(sys.argv[1])
predictor.predict(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(said,) = predictor.predict(sys.argv[3])
print(*said.mask.shape, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(set(said.mask[::9, ::9].flat)))
"""


@pytest.mark.slow
def test_memory_goes_with_the_mask_and_not_with_its_logits(tmp_path):
    """24 megapixels: while decoding 92 MiB in Pillow and 69 as an array, 69 as a batch of one; 23 MiB of mask.

    402 MiB were measured in all. Logits of all three classes would be 275 MiB more, and again as probabilities. The
    whole process stays within 2 GiB.
    """
    run = make_mask_run(tmp_path / "run", side=256, crop_mode="tile")
    small, large = picture(tmp_path / "small.jpg", (600, 400)), picture(tmp_path / "large.jpg", (6000, 4000), seed=1)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(run), small, large], check=True, timeout=500,
                          capture_output=True, encoding="utf-8")  # fmt: skip
    height, width, before, after, classes = map(int, done.stdout.split())
    assert (height, width) == (4000, 6000) and classes > 1
    print(f"{before / 1024:.0f} MiB before, {after / 1024:.0f} MiB after")
    assert after < 2 * 1024**2
    assert after - before < 500 * 1024


def test_a_picture_whose_mask_is_empty_and_one_of_a_pixel(fixed, tmp_path):
    """Sides below the margin, and answers of which nothing counts."""
    image = np.zeros((1, 1, 3), dtype=np.uint8)
    (said,) = load(fixed).predict(image)
    assert said.mask.shape == (1, 1)
