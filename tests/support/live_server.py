"""A real server on loopback in a thread of the test, and a client without manners."""

import http.client
import io
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from transferkit.models.artifact import save_model
from transferkit.models.calibration.calibration import fit_calibration
from transferkit.models.module import TransferModule
from transferkit.results.serve.guards import Limits, allowed_hosts

CLASSES = ("circle", "square", '<b>"stripes"</b>')
LIMITS = Limits(picture_bytes=300_000, requests=64)


def make_run(directory, *, calibrated=True):
    """Write a model that was never trained: what it says of a picture is arbitrary, and its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TransferModule("test_resnet", 3, weights="random", image_size=32, class_names=CLASSES)
        torch.nn.init.normal_(module.head.linear.weight, std=3.0)
        logits, targets = torch.randn(60, 3), torch.arange(60) % 3
    calibration = None
    if calibrated:
        logits[torch.arange(60), targets] += 1.0
        calibration, _ = fit_calibration(logits, targets)
    directory.mkdir(parents=True)
    save_model(directory, module, head="linear", calibration=calibration)
    return Path(directory)


def png(seed=0, size=(40, 48), *, kind="PNG"):
    """Return the file of a picture like no other seed's."""
    generator = np.random.default_rng(seed)
    low = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


@dataclass
class Near:
    path: str
    label: str
    similarity: float


class FakeNeighbours:
    """Stands in for the training pictures: the first is there, the second is gone."""

    def __init__(self, path):
        self.path = path
        self.hashes = []

    def nearest(self, images, hashes, k):
        self.hashes += hashes
        return [[Near(self.path, CLASSES[2], 0.75), Near("/gone/secret.png", "square", 0.5)][:k] for _ in images]


@contextmanager
def serving(answerer, *, limits=LIMITS, host="127.0.0.1", log=None, **options):
    """Serve until the block ends; gives the port."""
    from transferkit.results.serve.serve import make_server, open_port
    from transferkit.results.serve.service import build_app

    app = build_app(answerer, limits=limits, hosts=allowed_hosts(host), log=log, **options)
    up = threading.Event()
    with open_port(host, 0) as listener:
        server = make_server(app, up.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            assert up.wait(30)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def ask(port, path="/predict", data=None, *, method=None, headers=None, host="127.0.0.1", kind="image/png"):
    """Return status, headers and body; JSON is read."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        sent = {"Content-Type": kind} if data is not None else {}
        connection.request(method or ("GET" if data is None else "POST"), path, data, sent | (headers or {}))
        response = connection.getresponse()
        body = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, response.headers, json.loads(body) if is_json else body.decode()
    finally:
        connection.close()


def form(data, *, field="image", filename="picture.png", kind="image/png"):
    """Return the body of a form with one file, and its content type."""
    about = f'Content-Disposition: form-data; name="{field}"; filename="{filename}"\r\nContent-Type: {kind}'
    return f"--cut\r\n{about}\r\n\r\n".encode() + data + b"\r\n--cut--\r\n", "multipart/form-data; boundary=cut"


def until(condition, seconds=20):
    """Wait for something that happens in another thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
