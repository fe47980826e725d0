"""A run that teaches another: the answers are those of the teacher to the views that the student is shown."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import SMALL_RUN, draw_folder
from small_runs import SignalAt
from torch.nn import functional

import transferkit as tk
from transferkit.cli.job import distill
from transferkit.cli.main import main
from transferkit.core.errors import CheckpointError, ConfigError, Interrupted, TransferkitWarning
from transferkit.core.records import DataConfig
from transferkit.data.augment.normalise import normalise
from transferkit.data.augment.views import REPEAT
from transferkit.data.batches.dataset import ImageDataset, Job
from transferkit.features.engine.compute import Compute
from transferkit.features.extract.extract import make_views
from transferkit.models.answers.regression import Units
from transferkit.models.answers.teaching import ClassTeaching, LabelTeaching, NumberTeaching, SoftenedLoss
from transferkit.models.artifact import load_model, save_model
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.setup import prepare
from transferkit.training.teaching import ask_teacher, teach

TINY = {"backbone": "test_resnet", "weights": "random", "image_size": 32, "precision": "32", "accelerator": "cpu",
        "workers": 0, "probe_views": 0, "report": "off", "quiet": True, "calibrate": "none"}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("pictures") / "shapes", per_class=14)


@pytest.fixture(scope="module")
def teacher(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    return tk.finetune(data=str(pictures), phases="probe", seed=3, out=str(out), **TINY).path


def config_of(pictures, teacher, **options):
    values = {"data": str(pictures), "teacher": str(teacher), "seed": 3, "batch_size": 4, **TINY, **options}
    return make_config(FinetuneConfig, values)


# ---- what is learnt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_loss_against_mixed_answers_is_that_of_both(share):
    generator = torch.Generator().manual_seed(0)
    said, mine = torch.randn(2, 5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    classes, labels = torch.tensor([0, 2, 1, 1, 0]), torch.randint(0, 2, (5, 3), generator=generator).float()
    answers = ClassTeaching().answers(said, 2.0)
    both = share * functional.cross_entropy(mine, (said[1] / 2).softmax(1)) + (1 - share) * functional.cross_entropy(
        mine, classes
    )
    mixed = ClassTeaching().mixed(answers, classes, share)
    torch.testing.assert_close(functional.cross_entropy(mine, mixed[1]), both)
    bce = functional.binary_cross_entropy_with_logits
    both = share * bce(mine, (said[1] / 2).sigmoid()) + (1 - share) * bce(mine, labels)
    mixed = LabelTeaching().mixed(LabelTeaching().answers(said, 2.0), labels, share)
    torch.testing.assert_close(bce(mine, mixed[1]), both)


def test_numbers_are_in_their_own_units_and_a_missing_one_is_the_teachers():
    teaching = NumberTeaching(Units((10.0,), (2.0,), ("a",)))
    answers = teaching.answers(torch.tensor([[[1.0], [0.0]]]), 5.0)
    assert answers.flatten().tolist() == [12.0, 10.0]
    mixed = teaching.mixed(answers, torch.tensor([[14.0], [math.nan]]), 0.5)
    assert mixed.flatten().tolist() == [13.0, 10.0]


def test_gradients_of_softened_outputs_keep_their_size():
    """Hinton et al. 2015, eq. 4: for a high temperature they are those of half the squared difference of logits."""
    generator = torch.Generator().manual_seed(0)
    theirs, mine = torch.randn(8, 4, generator=generator), torch.randn(8, 4, generator=generator)
    theirs, mine = (one - one.mean(dim=1, keepdim=True) for one in (theirs, mine))
    mine.requires_grad_()
    loss = SoftenedLoss(torch.nn.CrossEntropyLoss(), 100.0)
    loss(mine, ClassTeaching().answers(theirs, 100.0)).backward()
    expected = (mine.detach() - theirs) / 4 / len(mine)
    torch.testing.assert_close(mine.grad, expected, rtol=0.05, atol=2e-4)
    assert "temperature=100.0" in repr(loss)


# ---- views ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_epochs_take_the_views_that_the_teacher_answered_for(pictures, teacher, augment_on, tmp_path):
    """By hand: the network alone on each view that the loader gives, in every epoch, for teacher and student alike."""
    config = config_of(pictures, teacher, teacher_views=3, teacher_temperature=1.0, augment_on=augment_on,
                       store=str(tmp_path / "store"))  # fmt: skip
    training = teach(prepare(config, quiet=True))
    network, _ = load_model(teacher)
    loader, seen = training.data.train_loader(0, 1), {}
    for epoch in range(5):
        loader.sampler.set_epoch(epoch)
        for images, targets in loader:
            shown = normalise(images, training.data.data_config)
            with torch.inference_mode():
                expected = network(shown).softmax(1)
            torch.testing.assert_close(targets, expected, atol=2e-3 if augment_on == "device" else 1e-5, rtol=0)
            for image, answer in zip(shown, targets, strict=True):
                seen.setdefault(epoch % 3, []).append((round(float(image.double().sum()), 2), answer))
    views = [{total for total, _ in seen[number]} for number in range(3)]
    assert len(views[0]) == training.data.rows("train")  # the fourth epoch shows the views of the first again
    assert not views[0] & views[1]


def test_pictures_that_come_again_and_epochs_as_evaluated_have_their_answers(pictures, teacher, tmp_path):
    config = config_of(pictures, teacher, teacher_views=2, sampler="balanced", teacher_temperature=1.0,
                       store=str(tmp_path / "store"))  # fmt: skip
    data = teach(prepare(config, quiet=True)).data
    data.show_as_evaluated({1})
    dataset, (network, _) = data.dataset("train", train=True), load_model(teacher)
    for view, row in ((0, 1), (1, 0), (2, 1), (3, 2), (REPEAT, 2), (2 * REPEAT, 1), (1 + REPEAT, 0)):
        assert dataset.views.row(view) == row
        loaded = dataset.batch([Job(place, (view,)) for place in range(4)])
        with torch.inference_mode():
            expected = network(normalise(loaded.images, data.data_config)).softmax(1)
        torch.testing.assert_close(loaded.targets, expected, atol=1e-5, rtol=0)


def test_sizes_by_epoch_show_the_same_draws(pictures, teacher, tmp_path):
    config = config_of(pictures, teacher, teacher_views=2, train_size="24,32", epochs=2, phases="finetune",
                       store=str(tmp_path / "store"))  # fmt: skip
    data = teach(prepare(config, quiet=True)).data
    alone = prepare(config_of(pictures, teacher, train_size=24), quiet=True).data
    data.train_sizes = type(data.train_sizes)((24, 32), (24, 32))
    small, large = (data.dataset("train", train=True).batch([Job(3, (epoch,))]) for epoch in (0, 1))
    assert small.images.shape[1:3] == (24, 24)
    assert large.images.shape[1:3] == (32, 32)
    assert small.images.equal(alone.dataset("train", train=True).batch([Job(3, (1,))]).images)  # view 1 of all


def test_a_larger_teacher_sees_the_same_part_of_a_picture():
    """A picture whose colours say where they are: its view at 32 pixels is that at 64, made smaller."""
    ramp = np.zeros((200, 300, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 255, 300), np.linspace(0, 255, 200)[:, None]
    for number in range(1, 6):
        small, large = (
            make_views(DataConfig(image_size=(side, side)), 5, "light", 0).render(ramp, "a" * 64, [number])[0]
            for side in (32, 64)
        )
        halved = large.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - small).max() < 4


def test_a_teacher_is_shown_pictures_in_its_own_way(pictures, tmp_path):
    """Another size, mean and deviation than the student's: each picture by hand, through the teacher alone."""
    own = {**TINY, "backbone": "transferkit/mini", "weights": "bundled", "image_size": 40}
    run = tk.finetune(data=str(pictures), phases="probe", seed=3, out=str(tmp_path / "run"), **own).path
    network, info = load_model(run)
    config = config_of(pictures, run, teacher_views=2, teacher_temperature=1.0, store=str(tmp_path / "store"))
    data = prepare(config, quiet=True).data
    assert data.data_config.mean != info.preprocessing.mean
    answers = ask_teacher(config, data, Compute()).answers
    views = make_views(info.preprocessing, 2, data.augment, data.seed)
    for place, record in enumerate(data.index.split("train")[:5]):
        with Image.open(record.path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        shown = np.stack(views.render(pixels, record.sha256, [0, 1, 2]))
        with torch.inference_mode():
            expected = network(normalise(torch.from_numpy(shown), info.preprocessing)).softmax(1)
        torch.testing.assert_close(answers[:, place], expected, atol=1e-4, rtol=0)


def test_pictures_that_are_shown_whole_are_so_to_the_teacher(tmp_path):
    """Crops of wide pictures are as wide and squashed: the loader's views, by hand through the teacher alone."""
    folder = draw_folder(tmp_path / "wide", per_class=8)
    for path in folder.rglob("*.*"):
        with Image.open(path) as picture:
            picture.convert("RGB").resize((96, 32)).save(path)
    run = tk.finetune(data=str(folder), phases="probe", seed=3, fit="squash", out=str(tmp_path / "run"), **TINY).path
    config = config_of(folder, run, teacher_views=2, teacher_temperature=1.0, fit="squash",
                       store=str(tmp_path / "store"))  # fmt: skip
    training, (network, _) = teach(prepare(config, quiet=True)), load_model(run)
    loader = training.data.train_loader(0, 1)
    loader.sampler.set_epoch(1)
    for images, targets in loader:
        with torch.inference_mode():
            expected = network(normalise(images, training.data.data_config)).softmax(1)
        torch.testing.assert_close(targets, expected, atol=1e-5, rtol=0)


def test_without_augmentation_there_is_one_answer(pictures, teacher, tmp_path):
    lessons = ask_teacher(
        config_of(pictures, teacher, augment="none", store=str(tmp_path / "store")),
        prepare(config_of(pictures, teacher, augment="none"), quiet=True).data,
        Compute(),
    )  # fmt: skip
    assert len(lessons.answers) == 1
    assert " pictures" in lessons.sentence
    assert "augmented" not in lessons.sentence


def test_it_is_asked_once(pictures, teacher, tmp_path):
    config = config_of(pictures, teacher, store=str(tmp_path / "store"))
    data = prepare(config, quiet=True).data
    first, second = (ask_teacher(config, data, Compute()) for _ in range(2))
    assert first.computed == data.rows("train")
    assert second.computed == 0
    assert f"{data.rows('train')} of them from the store" in second.sentence
    assert first.answers.equal(second.answers)


def test_classes_go_by_their_names(pictures, teacher, tmp_path):
    """The same teacher, its classes in another order."""
    network, info = load_model(teacher)
    turned = tmp_path / "turned"
    turned.mkdir()
    order = [2, 0, 1]
    for tensor in network.head.state_dict().values():
        tensor.copy_(tensor[order].clone())
    network.class_names = tuple(info.class_names[at] for at in order)
    network.target_spec = type(network.target_spec)(network.class_names)
    save_model(turned, network)
    data = prepare(config_of(pictures, teacher), quiet=True).data
    one, other = (
        ask_teacher(config_of(pictures, run, store=str(tmp_path / run.name)), data, Compute())
        for run in (teacher, turned)
    )
    torch.testing.assert_close(one.answers, other.answers, atol=1e-5, rtol=0)


def test_answers_to_views_need_a_row_each(pictures):
    data = tk.ImageData(pictures, image_size=32)
    views = make_views(data.data_config, 0, "light", 0)
    with pytest.raises(ValueError, match="a row for each"):
        ImageDataset([], views, taught=torch.zeros(3, 0, 2))


# ---- the verb ---------------------------------------------------------------------------------------------------


def test_distill_writes_a_run_that_agrees_with_its_teacher(pictures, teacher, tmp_path, capsys):
    out = tmp_path / "student"
    words = ["distill", str(teacher), *SMALL_RUN, "--epochs", "6", "--phases", "finetune", "--lr", "0.01",
             "--calibrate", "none", "--batch-size", "4", "--report", "off", "--teacher-temperature", "1",
             "--out", str(out)]  # fmt: skip
    assert main(words) == 0
    assert "answers for 4 augmented views of" in capsys.readouterr().out
    facts = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["teacher"]
    assert facts["run"] == str(teacher)
    assert (facts["views"], facts["share"], facts["temperature"]) == (4, 1.0, 1.0)
    assert facts["model_sha256"] == json.loads((teacher / "model.json").read_text(encoding="utf-8"))["sha256"]
    digests = [json.loads((run / "data.json").read_text(encoding="utf-8"))["digest"] for run in (out, teacher)]
    assert digests[0] == digests[1]  # the seed of the student is another one
    paths = sorted(pictures.rglob("*.png"))
    said, learnt = ([one.label for one in tk.load(run).predict(paths)] for run in (teacher, out))
    assert np.mean([a == b for a, b in zip(said, learnt, strict=True)]) > 0.6
    again = tmp_path / "again"
    assert main(["finetune", "--config", str(out / "config.yaml"), "--out", str(again), "--quiet"]) == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_resume_goes_on_with_the_same_answers(pictures, teacher, tmp_path):
    options = {"teacher": str(teacher), "data": str(pictures), "seed": 3, "epochs": 3, "phases": "finetune",
               "batch_size": 4, "teacher_views": 2, **TINY}  # fmt: skip
    whole = tk.finetune(out=str(tmp_path / "whole"), **options)
    with pytest.raises(Interrupted):
        tk.finetune(out=str(tmp_path / "part"), callbacks=[SignalAt(12)], **options)
    resumed = distill(teacher, out=str(tmp_path / "part"), resume=True, quiet=True)
    for one, other in zip(whole.path.glob("model.safetensors"), resumed.path.glob("model.safetensors"), strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_labels_and_numbers_are_taught_too(kind, tmp_path):
    rows = []
    for number in np.random.default_rng(0).permutation(30).tolist():
        level = 20 + 7 * number
        Image.fromarray(np.full((32, 32, 3), level, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        split = "train" if len(rows) < 20 else "val"
        labels = "|".join(name for name, least in (("light", 120), ("visible", 60)) if level > least)
        rows.append((f"{number}.png", split, labels if kind == "labels" else float(level)))
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "split", "labels" if kind == "labels" else "target"), *rows])
    options = {**TINY, "augment": "none"}
    first = tk.finetune(data=str(tmp_path / "list.csv"), phases="probe", out=str(tmp_path / "first"), **options)
    student = distill(first.path, phases="finetune", epochs=1, out=str(tmp_path / "student"), **options)
    assert student.metrics["teacher"]["run"] == str(first.path)
    config = make_config(FinetuneConfig, {"data": str(tmp_path / "list.csv"), "teacher": str(first.path), **options})
    training = teach(prepare(config, quiet=True))
    images, targets = next(iter(training.data.train_loader(0, 1)))
    network, info = load_model(first.path)
    with torch.inference_mode():
        outputs = network(normalise(images, training.data.data_config))
    softened = kind == "labels"
    assert isinstance(training.module.loss, SoftenedLoss) is softened
    expected = (outputs / 2).sigmoid() if softened else Units.of(info.target_spec).in_own_units(outputs)
    torch.testing.assert_close(targets, expected, atol=1e-3, rtol=1e-4)


# ---- mistakes ---------------------------------------------------------------------------------------------------


def test_a_teacher_of_other_classes_is_refused(pictures, teacher, tmp_path):  # fault 219
    other = draw_folder(tmp_path / "other", classes=("circle", "square", "waves"), per_class=14, seed=9)
    with pytest.raises(ConfigError, match="does not know 'waves' and knows 'stripes' besides"):
        distill(teacher, data=str(other), seed=3, val_split=0.3, out=str(tmp_path / "out"), **TINY)
    assert not (tmp_path / "out").exists()


def test_what_means_nothing_is_refused_at_once(pictures, teacher):
    with pytest.raises(ConfigError) as caught:
        tk.finetune(data=str(pictures), teacher_views=3, teacher_share=0.0, **TINY)
    assert "--teacher-views, --teacher-share would mean nothing" in str(caught.value)
    assert "(0, 1]" in str(caught.value)
    with pytest.raises(ConfigError, match="the teacher never saw"):
        distill(teacher, mixup=0.2, **TINY)
    with pytest.raises(ConfigError, match="at least 1"):
        distill(teacher, teacher_temperature=0.5, **TINY)


def test_no_run_is_no_teacher(pictures, tmp_path):
    with pytest.raises(CheckpointError, match="no config.yaml, expected one of a run"):
        distill(tmp_path, **TINY)
    with pytest.raises(CheckpointError, match="missing"):
        distill(tmp_path, data=str(pictures), out=str(tmp_path / "out"), **TINY)


def test_the_verb_needs_a_teacher(capsys):
    assert main(["distill"]) == 2
    assert "TEACHER is missing, expected a run directory" in capsys.readouterr().err


def test_a_teacher_that_met_the_held_out_pictures_is_told_of(pictures, teacher, tmp_path):  # fault 220
    with pytest.warns(TransferkitWarning, match="was trained on"):
        distill(teacher, data=str(pictures), seed=8, phases="probe", out=str(tmp_path / "out"), **TINY)


def test_masks_have_no_teacher(teacher, tmp_path):
    """Told before a picture is read: these are none."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="distill has no teaching for segmentation"):
        distill(teacher, data=str(tmp_path), **TINY)


def test_a_teacher_answers_the_question_of_the_pictures(teacher, tmp_path):
    (tmp_path / "list.csv").write_text("path,target\na.png,1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="answers classification, and these pictures are of regression"):
        distill(teacher, data=str(tmp_path / "list.csv"), **TINY)
