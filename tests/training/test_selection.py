"""What a run says of its choice is what its weights do on the val pictures, recomputed from the checkpoint."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from transferkit.data.augment.normalise import normalise
from transferkit.options.training import FinetuneConfig
from transferkit.results.predict.predictor import load
from transferkit.results.report.report import write_report
from transferkit.runs.summary import print_summary
from transferkit.training.finetune import finetune
from transferkit.training.loop.checkpoints import load_checkpoint


class Watch(Callback):
    """Keeps the logits of every epoch on the val pictures."""

    def __init__(self):
        self.outputs, self.data = [], None

    def on_validation_epoch_end(self, trainer, pl_module):
        self.data = trainer.datamodule
        self.outputs.append(logits(pl_module, self.data))


def logits(module, data):
    module.eval()
    with torch.inference_mode():
        parts = [module(normalise(images, data.data_config)) for images, _ in data.evaluation_loader("val")]
    return torch.cat(parts).double().numpy()


def scaled(outputs, targets):
    """Losses of pictures at the best of many temperatures, by hand."""

    def losses(heat):
        z = outputs / heat
        top = z.max(axis=1, keepdims=True)
        return np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - z[np.arange(len(z)), targets]

    heats = np.exp(np.linspace(np.log(1 / 20), np.log(20), 20001))
    return losses(heats[np.argmin([losses(heat).mean() for heat in heats])])


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("selection")
    watch = Watch()
    made = finetune(
        data=str(folder), backbone="test_resnet", weights="random", image_size=32, epochs=3, precision="32",
        accelerator="cpu", workers=0, quiet=True, phases="probe-finetune", augment="heavy", probe_views=0,
        out=str(out / "run"), store=str(out / "store"), callbacks=[watch],
    )  # fmt: skip
    return made, watch


def test_the_figures_of_the_choice_are_those_of_the_checkpoint(run):
    made, watch = run
    selection = made.metrics["selection"]
    assert selection["monitor"] == "val_loss"
    assert selection["rule"].startswith("the last epoch, unless an earlier one is better by more than 1 standard error")
    targets = watch.data.targets("val").numpy()
    losses = [scaled(outputs, targets) for outputs in watch.outputs]
    kept, clarity = selection["epoch"], selection["clarity"]
    module = load(made.path).module
    module.load_state_dict(load_checkpoint(made.path / "checkpoints" / "best.ckpt")["state_dict"], strict=False)
    own = scaled(logits(module, watch.data), targets)
    if kept is not None:
        assert own == pytest.approx(losses[kept], abs=1e-3)
        assert clarity["over"] == "the solved probe"
    else:
        epoch = int(clarity["over"].removeprefix("epoch ")) - 1
        assert epoch == int(np.argmin([one.mean() for one in losses]))
        gains = losses[epoch] - own
        assert clarity["gain"] == pytest.approx(gains.mean(), abs=1e-3)
        half = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains))
        assert clarity["gain_ci"] == pytest.approx((gains.mean() - half, gains.mean() + half), abs=2e-3)
    assert clarity["pictures"] == len(targets)


def test_the_summary_and_the_plan_say_what_was_chosen(run, capsys):
    made, _ = run
    print_summary(made.path)
    shown = capsys.readouterr().out
    assert f"kept: loss {-made.metrics['selection']['clarity']['gain']:+.3f} against" in shown
    choices = {one["name"]: one for one in json.loads((made.path / "plan.json").read_text(encoding="utf-8"))["choices"]}
    assert choices["batch_size"]["value"] == 8 and choices["batch_norm"]["value"] == "keep"
    assert "steps an epoch" in choices["batch_size"]["reason"]
    assert FinetuneConfig.batch_size is None


def test_the_report_says_it_too(run):
    write_report([run[0].path], pictures=False)
    page = (run[0].path / "report.html").read_text(encoding="utf-8")
    assert "Options that nobody named were chosen for these pictures: --batch-size 8" in page
    assert "The rule by which weights were kept: the last epoch" in page
    assert "against" in page
