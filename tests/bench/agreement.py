"""One model, one answer: training, evaluate, predict, ONNX and serve give the same label for every validation picture.

    python tests/bench/agreement.py RUN DATA

RUN is a run directory trained on DATA; DATA must still lie where it was. All goes through the verbs: `evaluate` and
`predict` write tables, `export` a model that onnxruntime runs here, `serve` answers over loopback.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transferkit.cli.main import main
from transferkit.core.csv import read_csv
from transferkit.results.predict.predictor import load


def verb(*words: str) -> None:
    """Run a verb; its failure is ours."""
    status = main([*words, "--quiet"])
    if status:
        raise SystemExit(status)


def of_onnx(run: Path, paths: list[str], folder: Path) -> list[str]:
    """Labels of the exported model, run by onnxruntime on pictures as `predict` decodes them."""
    import numpy as np
    import onnxruntime

    verb("export", str(run), "--format", "onnx", "--out", str(folder / "model.onnx"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    predictor = load(run)
    config = predictor.info.preprocessing
    mean, std = (np.array(values, dtype=np.float32) for values in (config.mean, config.std))
    labels = []
    for path in paths:
        pixels = (predictor.decode(path).astype(np.float32) / 255 - mean) / std
        outputs = session.run(["probabilities"], {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})
        labels.append(predictor.class_names[int(outputs[0].argmax())])
    return labels


def of_server(run: Path, paths: list[str]) -> list[str]:
    """Labels that the server gives."""
    command = [sys.executable, "-m", "transferkit", "serve", str(run), "--port", "0", "--neighbours", "0", "--quiet"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    try:
        assert server.stdout is not None
        port = next(int(found[1]) for line in server.stdout if (found := re.search(r"http://[^:/]+:(\d+)", line)))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        labels = []
        for path in paths:
            connection.request("POST", "/predict", Path(path).read_bytes(), {"Content-Type": "image/jpeg"})
            labels.append(json.loads(connection.getresponse().read())["label"])
        return labels
    finally:
        server.terminate()
        server.wait(30)


def run() -> None:
    """Print a line per way: pictures on which it says what the run itself said after training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data")
    options = parser.parse_args()
    rows = [row for row in read_csv(options.run / "predictions.csv") if row["split"] == "val"]
    paths, trained = [row["path"] for row in rows], [row["predicted"] for row in rows]
    accuracy = json.loads((options.run / "metrics.json").read_text(encoding="utf-8"))["val"]["acc"]
    print(f"{len(paths)} validation pictures; accuracy at the end of training {accuracy:.6f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = {}
        verb(
            "evaluate", str(options.run), options.data, "--split", "val", "--out", str(folder / "e"), "--report", "off"
        )
        told = {row["path"]: row["predicted"] for row in read_csv(folder / "e" / "predictions.csv")}
        ways["evaluate"] = [told[path] for path in paths]
        verb("predict", str(options.run), *paths, "--out", str(folder / "p.csv"))
        ways["predict"] = [row["label"] for row in read_csv(folder / "p.csv")]
        started = time.perf_counter()
        ways["onnx"] = of_onnx(options.run, paths, folder)
        ways["serve"] = of_server(options.run, paths)
        for way, labels in ways.items():
            same = sum(ours == theirs for ours, theirs in zip(labels, trained, strict=True))
            right = sum(ours == row["label"] for ours, row in zip(labels, rows, strict=True)) / len(rows)
            print(f"{way:<9}{same} of {len(paths)} labels the same, accuracy {right:.6f}")
        print(f"({time.perf_counter() - started:.0f} s for onnx and serve, one picture at a time)")


if __name__ == "__main__":
    run()
