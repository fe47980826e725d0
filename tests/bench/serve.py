"""The server under load on loopback: requests per second over pictures per second of `Predictor.predict`.

    python tests/bench/serve.py RUN [--data clothing/val] [--clients 16] [--requests 512] [--rounds 3]

Both take the same files and take turns in one run. The server is a process of its own, as a user starts it; the clients
are threads of this one, each with one connection and one request under way. Every answer is compared with what
`predict` says of the file.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it

from harness import compare, print_table

from transferkit.results.predict.predictor import load

SERVER = """
import sys
from transferkit.options.results import ServeConfig
from transferkit.results.serve.serve import serve
run, wait, accelerator = sys.argv[1:]
serve(ServeConfig(run=run, port=0, neighbours=0, wait_ms=float(wait), accelerator=accelerator, quiet=True))
"""


def main() -> None:
    """Print the figures; end with 1 when an answer is not the one of `predict`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, help="folder of pictures; default: the run's validation pictures")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=512, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wait-ms", type=float, default=5.0)
    parser.add_argument("--accelerator", default="cpu")
    args = parser.parse_args()

    known = pictures(args)
    files = [known[number % len(known)] for number in range(args.requests)]
    predictor = load(args.run, accelerator=args.accelerator)
    expected = {item.path: item for item in predictor.predict([str(path) for path in known])}
    bodies = {path: path.read_bytes() for path in known}

    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(args.run), str(args.wait_ms), args.accelerator],
        stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    try:
        assert server.stdout is not None
        found = re.search(r"http://[\d.]+:(\d+)", server.stdout.readline())
        assert found is not None, "the server did not start"
        port = int(found[1])
        latencies: dict[int, list[float]] = {args.clients: [], 1: []}
        wrong: list[str] = []

        def served(clients: int) -> float:
            seconds, answers = load_test(port, clients, files, bodies)
            latencies[clients] += [latency for _, latency, _ in answers]
            for path, _, answer in answers:
                item = expected[str(path)]
                if answer.get("label") != item.label or abs(answer["probability"] - (item.probability or 0)) > 1e-4:
                    wrong.append(f"{path.name}: served {answer}, predicted {item.label} {item.probability}")
            return len(files) / seconds

        def predicted() -> float:
            started = time.perf_counter()
            predictor.predict([str(path) for path in files])
            return len(files) / (time.perf_counter() - started)

        before = health(port)
        figures = compare({"predict": predicted, f"serve, {args.clients} clients": lambda: served(args.clients)},
                          rounds=args.rounds)  # fmt: skip
        after = health(port)
        single = compare({"serve, 1 client": lambda: served(1)}, rounds=1)
    finally:
        server.send_signal(signal.SIGINT)
        status = server.wait(30)
    print_table(f"{args.run.name}, {len(files)} requests", figures | single, base="predict", unit="pictures/s")
    for clients, values in latencies.items():
        values.sort()
        at = [values[min(len(values) - 1, int(share * len(values)))] * 1e3 for share in (0.5, 0.95)]
        print(f"  {clients:>3} clients: latency p50 {at[0]:.1f} ms, p95 {at[1]:.1f} ms")
    size = (after["pictures"] - before["pictures"]) / (after["batches"] - before["batches"])
    print(f"  mean batch {size:.1f} pictures; the server ended with status {status}")
    total = sum(map(len, latencies.values()))
    print(f"  {total - len(wrong)} of {total} answers are those of predict")
    print("\n".join(wrong[:10]))
    sys.exit(1 if wrong or status else 0)


def pictures(args: argparse.Namespace) -> list[Path]:
    """Return the readable files to send."""
    if args.data is not None:
        return sorted(path for path in args.data.rglob("*") if path.is_file())
    with (args.run / "pictures.csv").open(newline="", encoding="utf-8") as stream:
        return [Path(row["path"]) for row in csv.DictReader(stream) if row["split"] == "val"]


def load_test(
    port: int, clients: int, files: list[Path], bodies: dict[Path, bytes]
) -> tuple[float, list[tuple[Path, float, dict]]]:
    """Send every file once, from so many clients; seconds in all, and latency and answer of each."""
    answers: list[tuple[Path, float, dict]] = []
    failures: list[Exception] = []
    turn = count()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while (number := next(turn)) < len(files):
                path, started = files[number], time.perf_counter()
                connection.request("POST", "/predict?top_k=1", bodies[path], {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                answer = json.loads(response.read())
                assert response.status == 200, answer
                answers.append((path, time.perf_counter() - started, answer))
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - started, answers


def health(port: int) -> dict:
    """Return what the server says of itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    answer: dict = json.loads(connection.getresponse().read())
    connection.close()
    return answer


if __name__ == "__main__":
    main()
