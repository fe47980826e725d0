"""What the tests of the engine share: small networks, the plain reference, and an extraction in another process."""

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch
from torch import nn

from transferkit.core.records import DataConfig
from transferkit.data.augment.transform import eval_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.decode import decode_image, decode_with_info
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.models.backbones.facts import BackboneFacts
from transferkit.models.backbones.registered import RegisteredBackbone
from transferkit.models.backbones.registry import create_backbone


def lively(module, seed=0):
    """Give batch norms statistics and scales of their own: with those of a fresh network any folding looks right."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
                if part.affine:
                    part.weight.uniform_(0.5, 1.5, generator=generator)
                    part.bias.normal_(0, 0.2, generator=generator)
    return module


def build(name="test_resnet", size=32, seed=0):
    """A random backbone with lively batch norms, the same at every call."""
    torch.manual_seed(seed)
    return lively(create_backbone(name, weights="random", image_size=size), seed).eval().requires_grad_(False)


def own(model, size=16, name="own"):
    """A backbone around a hand-made network."""
    config = DataConfig(image_size=(size, size))
    return RegisteredBackbone(lively(model), BackboneFacts(name, config)).eval().requires_grad_(False)


def small_net(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2))


CLOSE = 1e-5


def views_of(backbone, count=0, augment="standard", seed=0):
    return make_views(backbone.data_config, count, augment, seed)


def extract(some, backbone, store, *, layer="pooled", pool=None, views=0, progress=None, **options):
    """Extract pictures with `views` augmented ones each (a number or `Views`), in small eager batches of fp32."""
    views = views if isinstance(views, Views) else views_of(backbone, views)
    compute = Compute(**{"precision": "32", "compiling": "off", "batch_size": 8, **options})
    taps = find_taps(backbone, layer, pool)
    return extract_pictures(some, FrozenBackbone(backbone), taps, views, store, compute, progress=progress)


def only(extraction):
    """Rows (1 + K, N, D) of the one layer."""
    (rows,) = extraction.rows.values()
    return rows


def random_images(backbone, count=4, seed=0):
    """Noise as the engine takes it, (count, H, W, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *backbone.data_config.image_size, 3), dtype=torch.uint8, generator=generator)


def pictures_of(folder):
    """The pictures of a folder in the order of their paths."""
    paths = sorted(path for path in Path(folder).rglob("*.png"))
    return [Picture(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def inputs(backbone, images):
    """Pictures (B, H, W, 3) uint8 as the backbone takes them, by the definition."""
    mean, std = torch.tensor(backbone.data_config.mean), torch.tensor(backbone.data_config.std)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def prepared(backbone, name):
    """One file as pixels (1, H, W, 3) uint8 of the network's size."""
    config = backbone.data_config
    return torch.from_numpy(eval_transform(config)(decode_image(name, min_side=config.decode_side), 0))[None]


def plain_rows(backbone, names):
    """The reference: one file after the other through the backbone, in fp32 and eval mode."""
    with torch.no_grad():
        return torch.cat([backbone(inputs(backbone, prepared(backbone, name))) for name in names]).numpy()


def error(ours, exact):
    """Largest difference, over the largest value."""
    ours, exact = torch.as_tensor(ours), torch.as_tensor(exact)
    assert ours.shape == exact.shape
    assert ours.isfinite().all()
    return float((ours - exact).abs().max() / exact.abs().max())


def extract_in_a_process(options, report, chunk, meet=None, pause=0.0, die_at=None):
    """Extract a folder; wait for the other process at the first picture, be slow, or be killed, as told."""
    from transferkit.data.batches import dataset
    from transferkit.features.engine import compute
    from transferkit.features.extract import extract
    from transferkit.options.features import FeaturesConfig
    from transferkit.options.fields import make_config

    compute.CPU_CHUNK = chunk
    counted, decoded = threading.Lock(), []

    def counting(*args, **more):
        with counted:
            decoded.append(more["name"])
            number = len(decoded)
            if number == 1 and meet is not None:
                (meet / str(os.getpid())).touch()
                until = time.monotonic() + 120
                while len(list(meet.iterdir())) < 2:
                    assert time.monotonic() < until, "the other process did not come"
                    time.sleep(0.01)
        time.sleep(pause)
        if number == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_with_info(*args, **more)

    dataset.decode_with_info = counting
    table = extract.extract_table(make_config(FeaturesConfig, {**options, "accelerator": "cpu", "workers": 0}))
    facts = {"computed": table.facts["computed"], "decoded": len(decoded), "rows": table.X.tolist()}
    report.write_text(json.dumps(facts), encoding="utf-8")
