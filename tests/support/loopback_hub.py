"""A model hub on 127.0.0.1: what `huggingface_hub` asks for, plain addresses, and the ways a server can fail.

    with LoopbackHub() as hub:
        hub.add_timm_repo("timm/tiny", "test_resnet", model.state_dict())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)      # also inherited by subprocesses
        ...
        assert hub.paths("GET") == ["/timm/tiny/resolve/main/model.safetensors"]

Answers ``HEAD`` and ``GET`` of ``/REPO/resolve/REVISION/FILE`` with the headers the real hub sends: ``X-Repo-Commit``,
``ETag`` and ``X-Linked-Etag`` (the sha256 of large files, the git hash of small ones), ``X-Linked-Size``,
``X-Error-Code``. Ranges are served, so that a broken download can go on. Xet is not offered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from safetensors.torch import save

__all__ = ["LoopbackHub", "Request"]


@dataclass(frozen=True)
class Request:
    """A request that came in; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    """How the server fails: on which methods, how often (`None`: always), and in which way."""

    methods: tuple[str, ...]
    times: int | None
    status: int | None = None
    error_code: str | None = None
    cut_at: int | None = None
    corrupt: bool = False


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name in sorted(self.files):
            digest.update(name.encode() + b"\0" + hashlib.sha1(self.files[name]).digest())
        return digest.hexdigest()


class LoopbackHub:
    """The server; a context manager that listens while it is open."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.repos: dict[str, Repo] = {}
        self.plain: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.gate = threading.Event()  # cleared by `hold`: bodies stop half-way until `release`
        self.gate.set()
        self.reached_gate = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub._answer(self, "HEAD")

            def do_GET(self):
                hub._answer(self, "GET")

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> LoopbackHub:
        self.thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    # --- what it serves ---

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def add_file(self, repo_id: str, filename: str, content: bytes) -> None:
        """Put a file into a repository; its commit changes with its content."""
        self.repos.setdefault(repo_id, Repo()).files[filename] = content

    def add_timm_repo(self, repo_id, architecture, state_dict, pretrained_cfg=None, num_classes=1000) -> None:
        """Add a repository laid out like timm's: ``config.json`` and ``model.safetensors``."""
        config = {"architecture": architecture, "num_classes": num_classes, "pretrained_cfg": pretrained_cfg or {}}
        self.add_file(repo_id, "config.json", json.dumps(config).encode())
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state_dict.items()}
        self.add_file(repo_id, "model.safetensors", save(tensors, metadata={"format": "pt"}))

    def add_plain(self, path: str, content: bytes) -> str:
        """Serve `content` at a plain path and return its address."""
        path = "/" + path.lstrip("/")
        self.plain[path] = content
        return self.url + path

    # --- how it fails ---

    def fail(self, status: int, *, methods=("HEAD", "GET"), error_code=None, times=None) -> None:
        """Answer with an error status."""
        self.faults.append(Fault(methods, times, status=status, error_code=error_code))

    def cut(self, at: int, *, times=None) -> None:
        """Close the connection when byte number `at` of the file was sent, although more was announced."""
        self.faults.append(Fault(("GET",), times, cut_at=at))

    def corrupt(self, *, times=None) -> None:
        """Send other bytes, of the same number."""
        self.faults.append(Fault(("GET",), times, corrupt=True))

    def hold(self) -> None:
        """Stop every body half-way, and headers of HEAD not at all, until `release`."""
        self.reached_gate.clear()
        self.gate.clear()

    def release(self) -> None:
        self.gate.set()

    def heal(self) -> None:
        self.faults.clear()
        self.release()

    # --- what it saw ---

    def paths(self, method: str) -> list[str]:
        """The paths requested with `method`, in order."""
        return [request.path for request in list(self.requests) if request.method == method]

    # --- answering ---

    def _answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        path = handler.path.partition("?")[0]
        with self.lock:
            self.requests.append(Request(method, path, {k.lower(): v for k, v in handler.headers.items()}))
            fault = next((f for f in self.faults if method in f.methods and f.times != 0), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
        handler.close_connection = True
        with contextlib.suppress(ConnectionError):
            if fault is not None and fault.status is not None:
                self._error(handler, fault.status, fault.error_code)
            elif path in self.plain:
                self._send(handler, method, self.plain[path], {}, fault)
            else:
                self._resolve(handler, method, path, fault)

    def _resolve(self, handler, method: str, path: str, fault: Fault | None) -> None:
        repo_id, _, rest = path.strip("/").partition("/resolve/")
        revision, _, filename = rest.partition("/")
        repo = self.repos.get(repo_id)
        if repo is None:
            self._error(handler, 401, "RepoNotFound")  # the hub does not tell strangers what exists
        elif revision not in ("main", repo.commit):
            self._error(handler, 404, "RevisionNotFound")
        elif filename not in repo.files:
            self._error(handler, 404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
        else:
            content = repo.files[filename]
            headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
            if filename.endswith(".json"):
                headers["ETag"] = f'"{hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()}"'
            else:
                sha256 = hashlib.sha256(content).hexdigest()
                headers |= {"ETag": '"of-the-storage"', "X-Linked-Etag": f'"{sha256}"'}
                headers["X-Linked-Size"] = str(len(content))
            self._send(handler, method, content, headers, fault)

    def _send(self, handler, method: str, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        start = 0
        range_ = handler.headers.get("Range")
        if range_:
            start = int(range_.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.send_response(206 if range_ else 200)
        for name, value in {**headers, "Content-Length": str(len(content) - start), "Connection": "close"}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if method == "HEAD":
            return
        body = content[start:]
        if fault is not None and fault.corrupt:
            body = bytes(byte ^ 0xFF for byte in body)
        if fault is not None and fault.cut_at is not None:
            handler.wfile.write(body[: max(0, fault.cut_at - start)])
            return
        half = len(body) // 2
        handler.wfile.write(body[:half])
        handler.wfile.flush()
        if not self.gate.is_set():
            self.reached_gate.set()
            self.gate.wait(60)
        handler.wfile.write(body[half:])

    def _error(self, handler, status: int, error_code: str | None, headers: dict[str, str] | None = None) -> None:
        handler.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": "0", "Connection": "close"}.items():
            handler.send_header(name, value)
        if error_code:
            handler.send_header("X-Error-Code", error_code)
        handler.end_headers()
