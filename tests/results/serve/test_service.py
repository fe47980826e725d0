import base64
import binascii
import hashlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("uvicorn", reason="the serve extra is not installed")

from live_server import CLASSES, LIMITS, FakeNeighbours, ask, form, make_run, png, serving, until

import transferkit.results.serve.serve as serve_module
from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.data.images.decode import UnreadableImage
from transferkit.options.results import ServeConfig
from transferkit.results.predict.predictor import load
from transferkit.results.serve.answering import Answerer
from transferkit.results.serve.guards import Limits, allowed_hosts, is_loopback
from transferkit.results.serve.serve import open_port, serve


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "shapes-7")


@pytest.fixture(scope="module")
def predictor(run):
    return load(run)


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "near.png"
    path.write_bytes(png(99, (64, 64)))
    return FakeNeighbours(str(path))


def answering(predictor, neighbours):
    return Answerer(
        predictor, name="shapes-7", batch_size=8, wait_s=0.005, threads=2, neighbours=neighbours, count=2
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(predictor, neighbours):
    """The port of a server for all tests that leave it as it is."""
    with serving(answering(predictor, neighbours)) as number:
        yield number


@pytest.fixture
def answerer(predictor, neighbours):
    return answering(predictor, neighbours)


@pytest.fixture
def port(answerer):
    with serving(answerer) as number:
        yield number


@pytest.fixture
def held(answerer, monkeypatch):
    """Hold the model back until the event is set; `held.began` tells that a batch waits at it."""
    forward, gate = answerer._forward, threading.Event()
    gate.began = threading.Event()

    def held_back(pictures):
        gate.began.set()
        assert gate.wait(20)
        return forward(pictures)

    monkeypatch.setattr(answerer.logits, "_run", held_back)
    yield gate
    gate.set()


# ---- answers ----------------------------------------------------------------------------------------------------


def test_concurrent_answers_are_those_of_predict(port, predictor, answerer, held):
    pictures = [png(seed, kind=("PNG", "JPEG", "BMP")[seed % 3]) for seed in range(24)]
    bad = {5: b"no picture at all", 11: png(11)[:-40], 17: b""}
    sent = [bad.get(number, data) for number, data in enumerate(pictures)]
    with ThreadPoolExecutor(24) as pool:
        calls = [pool.submit(ask, port, "/predict?top_k=3", data) for data in sent]
        until(lambda: held.began.is_set() and len(answerer.logits._waiting) >= 12)
        held.set()
        answers = [call.result() for call in calls]
    for number, (status, _, answer) in enumerate(answers):
        if number in bad:
            assert status in (415, 422)
            assert list(answer) == ["error"]
            continue
        (expected,) = predictor.predict(pictures[number], top_k=3)  # each by itself
        assert status == 200
        assert answer["label"] == expected.label
        assert answer["model"] == "shapes-7"
        assert [guess["label"] for guess in answer["top"]] == [label for label, _ in expected.top]
        shares = [guess["probability"] for guess in answer["top"]]
        assert shares == pytest.approx([share for _, share in expected.top], abs=1e-5)
    assert len({answer["probability"] for status, _, answer in answers if status == 200}) == 21  # all told apart
    assert answerer.logits.items == 21
    assert answerer.logits.batches < 10


def test_a_form_and_a_bare_body_are_the_same(site):
    data = png(3)
    body, kind = form(data, filename="../../../etc/passwd")
    bare, formed = ask(site, data=data)[2], ask(site, data=body, kind=kind)[2]
    assert bare.pop("ms") > 0
    assert formed.pop("ms") > 0
    assert bare == formed
    assert set(bare) == {"label", "probability", "top", "model"}
    assert len(ask(site, "/predict?top_k=1", data)[2]["top"]) == 1


def test_coverage_gives_the_set_that_predict_gives(site, predictor):
    for seed in range(6):
        data = png(seed)
        answer = ask(site, "/predict?coverage=0.8", data)[2]
        (expected,) = predictor.predict(data, abstain=0.8)
        assert tuple(answer["set"]) == expected.classes
        assert answer["abstained"] == expected.abstained
        assert answer["label"] == expected.top[0][0]


def test_coverage_of_a_model_that_is_not_calibrated(tmp_path):
    bare = load(make_run(tmp_path / "bare", calibrated=False))
    with serving(Answerer(bare, name="bare", batch_size=1, wait_s=0.0, threads=1)) as port:
        status, _, answer = ask(port, "/predict?coverage=0.9", png())
        assert (status, answer) == (
            422,
            {"error": "coverage is for models that are calibrated, on enough pictures for it, and this one is not"},
        )
        assert 'data-coverage=""' in ask(port, "/")[2]


def test_explanations_are_pictures_not_paths(site, neighbours):
    status, _, answer = ask(site, "/predict?explain=true", png(1))
    assert status == 200
    heat = decoded(answer["heatmap"], "png")
    assert heat.size == (448, 448)
    assert answer["neighbours"][0]["similarity"] == 0.75
    assert [near["label"] for near in answer["neighbours"]] == [CLASSES[2], "square"]
    assert neighbours.hashes[-1] == hashlib.sha256(png(1)).hexdigest()  # so that it is not its own neighbour
    thumbnail = decoded(answer["neighbours"][0]["thumbnail"], "jpeg")
    assert max(thumbnail.size) <= 224
    assert "thumbnail" not in answer["neighbours"][1]  # the file is gone
    assert "notes" not in answer
    text = json.dumps(answer)
    assert neighbours.path not in text
    assert "secret" not in text


def decoded(address, kind):
    head, _, data = address.partition(",")
    assert head == f"data:image/{kind};base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return image


def test_what_cannot_be_explained_is_still_answered(port, answerer, monkeypatch, caplog):
    def broken(*_):
        raise DataError("no store in /home/secret")

    monkeypatch.setattr(answerer._near, "_run", broken)
    monkeypatch.setattr(answerer._heat, "_run", lambda items: 1 / 0)
    status, _, answer = ask(port, "/predict?explain=true", png(1))
    assert status == 200
    assert answer["label"] in CLASSES
    assert answer["notes"] == ["There is no heat map for this model.", "Its training pictures cannot be compared."]
    assert "heatmap" not in answer
    assert "neighbours" not in answer
    assert "secret" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_decoder_that_speaks_of_our_memory_is_not_quoted(port, answerer, monkeypatch):
    async def broken(*_, **__):
        raise UnreadableImage("", reason="cannot identify <_io.BytesIO object at 0x7f1122334455> (at 0x7f1122334455)")

    monkeypatch.setattr(answerer, "answer", broken)
    assert ask(port, data=png())[2] == {"error": "cannot read the picture: cannot identify ... (at ...)"}


def test_a_model_that_returns_nan_is_no_answer(port, answerer, monkeypatch):
    monkeypatch.setattr(answerer._engine, "rows", lambda images: (torch.full((len(images), 3), torch.nan),))
    status, _, answer = ask(port, data=png())
    assert (status, answer) == (422, {"error": "cannot read the picture: the model returns NaN or infinity for it"})


def test_health_and_schema(site):
    ask(site, data=png())
    status, _, answer = ask(site, "/health")
    assert status == 200
    assert answer.pop("pictures") >= answer.pop("batches") >= 1
    assert answer | {"version": "x"} == {
        "ready": True, "model": "shapes-7", "classes": list(CLASSES), "device": "cpu", "version": "x",
    }  # fmt: skip
    schema = ask(site, "/openapi.json")[2]
    assert set(schema["paths"]) == {"/predict", "/health"}
    call = schema["paths"]["/predict"]["post"]
    assert set(call["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert {each["name"] for each in call["parameters"]} == {"top_k", "coverage", "unknown", "explain", "target"}
    assert {"200", "413", "415", "422", "503"} <= set(call["responses"])
    assert {"label", "probability", "top", "model", "ms"} <= set(schema["components"]["schemas"]["Answer"]["required"])


# ---- what is refused --------------------------------------------------------------------------------------------


def header_of_a_bomb(width=30_000, height=30_000):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", binascii.crc32(name + data))

    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b"\0" * 1000),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())


@pytest.mark.parametrize(
    ("data", "kind", "status", "says"),
    [
        (b"#!/bin/sh\n" * 20, "image/png", 415, "not a picture of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415, "not a picture of a known format"),
        (b"", "image/png", 415, "the file is empty"),
        (png()[:-60], "image/png", 422, "truncated"),
        (header_of_a_bomb(), "image/png", 422, "more than the limit of 100,000,000 pixels"),
        (png(), "text/plain", 415, "expected multipart/form-data"),
        (b"image=hello", "application/x-www-form-urlencoded", 415, "expected multipart/form-data"),
        (*form(png(), field="picture"), 422, "no file in its field 'image'"),
        (form(png())[0], "multipart/form-data", 400, "boundary"),
        (form(png())[0][:-300], "multipart/form-data; boundary=other", 400, "multipart"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_one_line(site, run, data, kind, status, says):
    code, _, answer = ask(site, data=data, kind=kind)
    assert (code, list(answer)) == (status, ["error"])
    assert says in answer["error"]
    for leak in ("Traceback", "site-packages", str(run), "0x", "BytesIO", "--skip-bad", "\n"):
        assert leak not in answer["error"]
    assert ask(site, data=png())[0] == 200


@pytest.mark.parametrize("query", ["top_k=0", "top_k=x", "coverage=0", "coverage=1", "coverage=nan", "explain=perhaps"])
def test_parameters_out_of_range(site, query):
    status, _, answer = ask(site, f"/predict?{query}", png())
    assert status == 422
    assert answer["error"].startswith(f"{query.partition('=')[0]}: ")


def test_size_is_limited_while_it_arrives(site):
    exact = png() + b"\0" * (LIMITS.picture_bytes - len(png()))  # bytes after its end do not make a PNG unreadable
    assert ask(site, data=exact)[0] == 200
    for data in (exact + b"\0", exact * 4):
        assert ask(site, data=data)[2] == {"error": "the picture is larger than the limit of 0.3 MB"}
        body, kind = form(data)
        assert ask(site, data=body, kind=kind)[0] == 413
    assert ask(site, data=iter([exact]))[0] == 200
    assert ask(site, data=iter([exact] * 4))[0] == 413  # chunked: no Content-Length


def test_a_body_without_length_is_not_read_to_its_end(site):
    with socket.create_connection(("127.0.0.1", site), timeout=20) as connection:
        connection.sendall(head_of("POST", "Transfer-Encoding: chunked"))
        connection.sendall(b"%x\r\n%s\r\n" % (500_000, b"\0" * 500_000))  # and never the last chunk
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_length_that_is_too_large_is_refused_before_the_body(site):
    with socket.create_connection(("127.0.0.1", site), timeout=20) as connection:
        connection.sendall(head_of("POST", "Content-Length: 1000000000000"))
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def head_of(method, *headers):
    lines = (f"{method} /predict HTTP/1.1", "Host: localhost", "Content-Type: image/png", *headers)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def test_names_that_are_not_ours_are_refused(site):
    good = (f"127.0.0.1:{site}", f"localhost:{site}", "LOCALHOST", f"[::1]:{site}")
    bad = ("evil.example", f"evil.example:{site}", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1",
           "10.0.0.1")  # fmt: skip
    for path, data in (("/", None), ("/health", None), ("/docs", None), ("/predict", png())):
        assert {ask(site, path, data, headers={"Host": name})[0] for name in good} == {200}
        assert {ask(site, path, data, headers={"Host": name})[0] for name in bad} == {400}
    with socket.create_connection(("127.0.0.1", site), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")  # none at all
        assert b" 400 " in connection.recv(100)


def test_which_addresses_are_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost")] == [True] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.4", "box.local")] == [False] * 4
    assert allowed_hosts("0.0.0.0") is None
    assert "127.0.0.9" in allowed_hosts("127.0.0.9")


def test_pages_of_other_origins_may_not_ask(site):
    ours = ({"Origin": f"http://127.0.0.1:{site}"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {})
    foreign = (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{site + 1}"},
        {"Origin": "http://127.0.0.1"}, {"Origin": f"http://evil@127.0.0.1:{site}"}, {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    )  # fmt: skip
    assert [ask(site, data=png(), headers=headers)[0] for headers in ours] == [200] * 4
    assert [ask(site, data=png(), headers=headers)[0] for headers in foreign] == [403] * 8
    status, headers, _ = ask(site, method="OPTIONS", headers={"Origin": "http://evil.example"})
    assert status == 403
    assert "Access-Control-Allow-Origin" not in headers


def test_more_requests_than_may_be_under_way(answerer, held):
    limits = Limits(picture_bytes=300_000, requests=2)
    with serving(answerer, limits=limits) as port, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, port, data=png(seed)) for seed in range(2)]
        until(lambda: answerer.logits.items + len(answerer.logits._waiting) == 2)
        status, headers, answer = ask(port, data=png())
        assert status == 503
        assert headers["Retry-After"] == "1"
        assert answer == {"error": "2 requests are under way, try again in a second"}
        assert ask(port, "/health")[0] == 200  # looking costs nothing
        held.set()
        assert [call.result()[0] for call in calls] == [200, 200]
        assert ask(port, data=png())[0] == 200


def test_a_slow_body_is_given_up(answerer):
    with serving(answerer, limits=Limits(picture_bytes=10_000, requests=1, body_s=0.2)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(head_of("POST", "Content-Length: 1000") + b"\x89PNG")
            text = connection.recv(2000)
            assert text.startswith(b"HTTP/1.1 408 ")
        assert ask(port, data=png())[0] == 200  # its place is free again


def test_an_answer_that_takes_too_long(answerer, held):
    with serving(answerer, limits=Limits(picture_bytes=10_000, requests=1, answer_s=0.3)) as port:
        assert ask(port, data=png())[0] == 504
        held.set()
        assert ask(port, data=png())[0] == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: local", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
def test_silent_connections_are_closed(answerer, monkeypatch, sent):
    monkeypatch.setattr(serve_module, "SILENT_S", 0.2)
    with serving(answerer) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        while connection.recv(65_536):  # ends when the server closes; a timeout would raise
            pass


def test_a_slow_answer_is_not_a_silent_connection(answerer, held, monkeypatch):
    monkeypatch.setattr(serve_module, "SILENT_S", 0.05)
    with serving(answerer) as port, ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, port, data=png())
        time.sleep(0.3)
        held.set()
        assert call.result()[0] == 200


def test_an_unforeseen_error_says_nothing_but_its_id(port, answerer, monkeypatch, caplog):
    async def broken(*_, **__):
        raise RuntimeError("the password is in /etc/shadow")

    monkeypatch.setattr(answerer, "answer", broken)
    status, headers, answer = ask(port, data=png())
    assert status == 500
    assert set(answer) == {"error", "id"}
    assert "shadow" not in answer["error"]
    assert answer["id"] in caplog.text
    assert "/etc/shadow" in caplog.text
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_a_client_that_leaves_takes_nobody_along(port, answerer, held):
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(ask, port, data=png(seed)) for seed in range(3)]
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(head_of("POST", f"Content-Length: {len(png())}") + png())
            until(lambda: answerer.logits.items + len(answerer.logits._waiting) == 4)
        held.set()
        assert [call.result()[0] for call in calls] == [200] * 3


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=cut"])
def test_a_client_that_leaves_while_it_sends_is_no_error_of_ours(answerer, kind, caplog):
    lines = []
    with serving(answerer, log=lines.append) as port:
        with socket.create_connection(("127.0.0.1", port)) as gone:
            head = head_of("POST", "Content-Length: 9000").replace(b"image/png", kind.encode())
            gone.sendall(head + form(png())[0][:200])
            time.sleep(0.1)
        until(lambda: lines)
    assert re.fullmatch(r"POST /predict 499 \d+ ms", lines[0])
    assert not caplog.records


# ---- pages ------------------------------------------------------------------------------------------------------


def test_every_response_has_the_security_headers(site):
    wrong = {"Host": "evil.example"}
    answers = [ask(site, path) for path in ("/", "/docs", "/health", "/nothing")]
    answers += [ask(site, data=png()), ask(site, data=b"x"), ask(site, "/", headers=wrong), ask(site, method="DELETE")]
    for _, headers, _ in answers:
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "Server" not in headers


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_nothing_from_elsewhere(site, path):
    status, headers, page = ask(site, path)
    assert status == 200
    assert headers.get_content_type() == "text/html"
    outside = re.findall(r"""\s(?:src|href)=["']?([^"'\s>]+)""", page)
    assert outside
    assert all(re.fullmatch(r"/[\w.]*|#\w+|data:,", address) for address in outside)
    assert "innerHTML" not in page
    assert "@import" not in page
    assert "url(" not in page


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_can_be_read_in_light_and_dark(site, scheme):
    block = ask(site, "/")[2].split(":root {")[1 + scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    pairs = "text/page text/card soft/page soft/card soft/track accent/page accent/card on-accent/accent bad/bad-page"
    for pair in pairs.split():
        # WCAG 2.2, success criterion 1.4.3
        assert contrast(*(colours[name] for name in pair.split("/"))) >= 4.5, pair


def contrast(*colours):
    def luminance(colour):
        shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_docs_show_the_whole_schema(site):
    page = ask(site, "/docs")[2]
    assert "<script" not in page
    for word in [
        "/predict",
        "/health",
        "multipart/form-data",
        "top_k",
        "coverage",
        "explain",
        "heatmap",
        "Retry-After",
    ]:
        assert word in page
    assert f"http://127.0.0.1:{site}/predict" in page


@pytest.mark.parametrize(
    "path", ["/redoc", "/docs/oauth2-redirect", "/../../etc/passwd", "/%2e%2e/model.json", "/static/"]
)
def test_nothing_else_is_served(site, path):
    assert ask(site, path)[::2] == (404, {"error": "Not Found"})


# ---- the verb ---------------------------------------------------------------------------------------------------


def serve_until(config, number, capsys, visit):
    """Run the verb in this thread, visit it from another, then end it by a signal; gives what it printed."""
    printed = []

    def address():
        printed.append(capsys.readouterr().out)
        return re.search(r"serving +\S+ at http://[\d.]+:(\d+)", "".join(printed))

    def visitor():
        try:
            until(address)
            visit(int(address()[1]))
        finally:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with ThreadPoolExecutor(1) as pool:
        visited = pool.submit(visitor)
        serve(config)
        visited.result()
    assert signal.getsignal(number) is before
    return "".join(printed) + capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_the_normal_end(run, capsys, number):
    def visit(port):
        assert ask(port, data=png())[2]["model"] == "shapes-7"

    config = ServeConfig(run=str(run), port=0, neighbours=0, accelerator="cpu", quiet=True)
    text = serve_until(config, number, capsys, visit)
    assert "serving  shapes-7 at http://127.0.0.1:" in text
    assert text.endswith("stopped\n")


@pytest.fixture
def numeric(monkeypatch):
    """Let addresses through that the suite would not have resolved; nothing is connected to."""
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]
    )


def test_a_server_open_to_the_network_says_so(run, capsys, numeric):
    def visit(port):
        assert ask(port, data=png(), headers={"Host": "box.example"})[0] == 200  # it has whatever names it has

    config = ServeConfig(run=str(run), port=0, host="0.0.0.0", neighbours=0, accelerator="cpu", quiet=True)
    with pytest.warns(TransferkitWarning, match="--host 0.0.0.0 is open to the network"):
        serve_until(config, signal.SIGINT, capsys, visit)


def test_a_run_that_does_not_know_its_training_pictures_is_served_without(run, capsys):
    def visit(port):
        assert "neighbours" not in ask(port, "/predict?explain=true", png())[2]

    with pytest.warns(TransferkitWarning, match=r"no nearest training pictures: .*has no pictures\.csv"):
        serve_until(ServeConfig(run=str(run), port=0, accelerator="cpu", quiet=True), signal.SIGINT, capsys, visit)


def test_there_is_a_line_for_every_request(answerer):
    lines = []
    with serving(answerer, log=lines.append) as port:
        ask(port, data=png())
        ask(port, "/%1b]0;title%07")
    assert re.fullmatch(r"POST /predict 200 \d+ ms", lines[0])
    assert lines[1].startswith(r"GET /\x1b]0;title\x07 404 ")  # a terminal obeys nobody's path


def test_a_taken_port_is_named(run):
    with open_port("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} of 127.0.0.1: Address already in use - choose another"):
            serve(ServeConfig(run=str(run), port=port))


def test_an_address_that_is_not_ours(numeric):
    with pytest.raises(ConfigError, match="--host 192.0.2.7 is no address of this machine"):
        open_port("192.0.2.7", 0)


def test_without_the_extra(run, monkeypatch):
    monkeypatch.setattr(serve_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"serve needs fastapi, .* - pip install 'transferkit\[serve\]'"):
        serve(ServeConfig(run=str(run)))


def test_a_stopping_server_answers_what_it_has(answerer, held):
    with ThreadPoolExecutor(3) as pool:
        with serving(answerer) as port:
            calls = [pool.submit(ask, port, data=png(seed)) for seed in range(3)]
            until(lambda: answerer.logits.items + len(answerer.logits._waiting) == 3)
            threading.Timer(0.3, held.set).start()
        assert [call.result()[0] for call in calls] == [200] * 3


@pytest.mark.slow
def test_the_command_serves_a_trained_run(probed_run, tmp_path, folder):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [
        sys.executable,
        "-m",
        "transferkit",
        "serve",
        str(probed_run),
        "--port",
        "0",
        "--accelerator",
        "cpu",
        "--quiet",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment
    ) as server:
        try:
            line = server.stdout.readline()
            port = int(re.search(r"serving  probed at http://127.0.0.1:(\d+)", line)[1])
            predictor = load(probed_run)
            for path in sorted((folder / "val").rglob("*.png")):
                answer = ask(port, "/predict?explain=true", path.read_bytes())[2]
                (expected,) = predictor.predict(path)
                assert answer["label"] == expected.label
                assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
                assert len(answer["neighbours"]) == 3
                assert all(decoded(near["thumbnail"], "jpeg") for near in answer["neighbours"])
                assert str(folder) not in json.dumps(answer)
            trained = next((folder / "train").rglob("*.png"))
            near = ask(port, "/predict?explain=true", trained.read_bytes())[2]["neighbours"]
            assert near[0]["similarity"] < 1.0  # not itself
        finally:
            server.send_signal(signal.SIGINT)
        out, errors = server.communicate(timeout=60)
    assert (server.returncode, out, errors) == (0, "stopped\n", "")
