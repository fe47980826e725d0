"""Ways to tune, as runs: biases, norms, parts with their own LR, adapters with a resume, heads from cache to export."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_runs import SignalAt, make_data, make_module, make_trainer

from transferkit.cli.main import main
from transferkit.core.errors import ConfigError, Interrupted, TransferkitWarning
from transferkit.models.artifact import load_model
from transferkit.models.backbones.registry import create_backbone
from transferkit.training.finetune import finetune
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.plan.options import resolve_options, resolve_phases
from transferkit.training.plan.phases import Phase

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def options(folder):
    return {
        "data": str(folder), "backbone": "test_resnet", "weights": "random", "image_size": 32, "batch_size": 4,
        "epochs": 1, "precision": "32", "memory_format": "contiguous", "compile": "off", "accelerator": "cpu",
        "workers": 0, "quiet": True, "report": "off", "val_split": 0.2, "monitor": "val_acc",
    }  # fmt: skip


def weights(run):
    return load_file(run.path / "model.safetensors")


def start():
    return {f"backbone.{name}": tensor for name, tensor in
            create_backbone("test_resnet", weights="random", image_size=32).state_dict().items()}  # fmt: skip


@pytest.mark.parametrize(("train", "kind"), [("bias", ".bias"), ("norm", "bn")])
def test_only_what_is_named_learns_besides_the_head(options, tmp_path, train, kind):
    run = finetune(**options, train=train, phases="finetune", batch_norm="keep", out=tmp_path / "run")
    plan = json.loads((run.path / "plan.json").read_text(encoding="utf-8"))
    (phase,) = plan["phases"]
    assert phase["train"] == f"head, {train}"
    before, after = (finetune(**options, phases="finetune", lr=1e-12, batch_norm="keep", out=tmp_path / "still"),
                     weights(run))  # fmt: skip
    moved = {name for name, tensor in weights(before).items() if not torch.allclose(tensor, after[name], atol=1e-9)}
    backbone = {name for name in moved if name.startswith("backbone.")}
    assert backbone
    module, _ = load_model(run.path)
    parameters = dict(module.named_parameters())
    counted = sum(parameters[name].numel() for name in parameters if name.startswith("head."))
    if train == "bias":
        assert all(name.endswith(".bias") for name in backbone)
        counted += sum(p.numel() for name, p in parameters.items() if name.endswith(".bias") and "head" not in name)
        assert phase["trainable_parameters"] == counted
    assert phase["trainable_parameters"] < sum(group["parameters"] for group in plan["groups"]) / 10
    assert sum(phase["trained"].values()) == phase["trainable_parameters"]


@pytest.mark.parametrize("kind", ["lora", pytest.param("dora", marks=SLOW)])
def test_an_adapter_is_merged_into_a_plain_product_and_a_resume_is_exact(options, tmp_path, kind):
    adapted = {**options, "adapter": kind, "adapter_rank": 2, "lr": 0.01, "phases": "probe-finetune", "epochs": 2}
    run = finetune(**adapted, out=tmp_path / "whole")
    facts = run.metrics["adapter"]
    assert facts["kind"] == kind
    assert facts["alpha"] == 4.0  # twice the rank
    assert facts["difference"] < 1e-4
    module, _ = load_model(run.path)
    assert module.adapter is None
    assert not [name for name in weights(run) if "lora" in name or "base_layer" in name]
    with pytest.raises(Interrupted):
        finetune(callbacks=[SignalAt(8)], **adapted, out=tmp_path / "halves")
    again = finetune(resume=True, out=tmp_path / "halves")
    ours, theirs = weights(again), weights(run)
    assert [name for name in theirs if not ours[name].equal(theirs[name])] == []


def test_parts_of_groups_have_an_lr_of_their_own_from_the_first_step(folder, tmp_path):
    phase = Phase("a", 1, lr=1e-3, schedule="constant", group_lrs={"norm": 1e-2, "head": 5e-3})
    data, module, schedule = make_data(folder), make_module(), PhaseSchedule([phase])
    make_trainer(tmp_path, schedule).fit(module, data)
    lrs = {name: lr for group in module.trainer.optimizers[0].param_groups
           for name, lr in [(name, group["lr"]) for name in group["param_names"]]}  # fmt: skip
    norms = {name.rpartition(".")[0] for name, _ in module.named_buffers() if name.endswith("running_mean")}
    assert set(lrs) == {name for name, _ in module.named_parameters()}
    for name, lr in lrs.items():
        norm = name.rpartition(".")[0] in norms
        assert lr == pytest.approx(5e-3 if name.startswith("head.") else 1e-2 if norm else 1e-3), name
    assert schedule.plan.lrs(0)["layer4[norm]"] == 1e-2
    assert schedule.plan.lrs(0)["layer4"] == 1e-3


class Plain(torch.nn.Module):
    """Not of ours."""


def test_an_optimizer_that_holds_groups_whole_is_refused_for_parts_of_them(folder, tmp_path):
    module = make_module()
    module.configure_optimizers = lambda: torch.optim.SGD(
        [{"params": [p for _, p in members], "group": name} for name, members in module.groups()], lr=0.1
    )
    trainer = make_trainer(tmp_path, PhaseSchedule([Phase("a", 1, group_lrs={"norm": 1e-2})]))
    with pytest.raises(ConfigError, match="the optimizer holds each group as one"):
        trainer.fit(module, make_data(folder))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"train": "bias", "phases": "gradual"}, "--train is of --phases finetune, probe-finetune and auto"),
        ({"train": "bias", "phases": [{"name": "a", "epochs": 1}]}, "a list of phases says it itself"),
        ({"adapter_rank": 4}, "--adapter-rank is of --adapter lora and dora"),
        ({"adapter": "lora", "interpolate": True}, "--interpolate works on the weights that --adapter leaves frozen"),
        ({"adapter": "lora", "phases": "gradual"}, "--phases gradual unfreezes whole layer groups"),
        ({"adapter": "lora", "adapter_targets": "a b"}, "have nothing between them"),
        ({"head": "arcface", "teacher": "runs/a"}, "--head arcface learns true classes with a margin"),
        ({"train": "head,,bias"}, "has no name before ','"),
        ({"head": "cosine", "probe": "solve", "task": "multilabel"}, "a picture has no one class in multilabel"),
    ],
)
def test_what_does_not_go_together(extra, message):
    with pytest.raises(ConfigError, match=message):
        resolve_options({"data": "x", **extra})


def test_phases_that_train_what_an_adapter_freezes_or_leave_it_out(options, tmp_path):
    for train, message in (
        ("all", "more weights that --adapter lora leaves frozen"),
        ("head", "--adapter lora learns in none of the phases"),
    ):
        phases = [{"name": "a", "epochs": 1, "train": train}]
        with pytest.raises(ConfigError, match=message):
            finetune(**options, adapter="lora", phases=phases, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_head_that_never_learns_is_warned_of(options, tmp_path):
    phases = [{"name": "a", "epochs": 1, "train": "bias"}]
    with pytest.warns(TransferkitWarning, match="no phase trains the weights of the head"):
        finetune(**options, phases=phases, out=tmp_path / "run")


def test_what_ready_made_phases_tune_is_said_in_full():
    def tuned(**options):
        return resolve_phases(resolve_options({"data": "x", **options}), None)[-1].train

    assert tuned() == "all"
    assert tuned(train="all") == "all"
    assert tuned(train="bias|norm") == "head, bias, norm"
    assert tuned(train="!norm") == "head, all - norm"
    assert tuned(adapter="lora") == "head, adapter"
    assert tuned(adapter="dora", train="adapter, bias") == "head, adapter, bias"


@pytest.mark.parametrize(
    "head", ["prototype", *(pytest.param(name, marks=SLOW) for name in ("arcface", "attention-pool", "avgmax"))]
)
def test_heads_go_all_the_way_from_a_folder_to_onnx(options, tmp_path, folder, head):
    pytest.importorskip("onnxruntime")
    run = finetune(**options, head=head, out=tmp_path / "run")
    assert run.metrics["phases"][0].get("solver") == ("class means of cached features" if head == "prototype" else None)
    assert main(["predict", str(run.path), str(folder / "train"), "--quiet", "--out", str(tmp_path / "p.csv")]) == 0
    assert main(["export", str(run.path), "--format", "onnx", "--out", str(tmp_path / "m.onnx")]) == 0
    assert main(["evaluate", str(run.path), str(folder), "--quiet", "--out", str(tmp_path / "e")]) == 0


@pytest.mark.parametrize("head", ["cosine", "arcface"])
def test_heads_of_directions_begin_as_class_means_where_that_is_asked_for(options, tmp_path, head):
    run = finetune(**options, head=head, probe="solve", phases="probe", out=tmp_path / "run")
    (phase,) = run.metrics["phases"]
    assert phase["solver"] == "class means of cached features"
    assert ("scale" in phase) == (head == "cosine")
