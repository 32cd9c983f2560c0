"""Downloads from a hub on this machine: they resume, are checked, and serve without a network."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class Hub(ThreadingHTTPServer):
    """`files` maps "owner/name/file" to contents; `stall_after` holds the first transfer of a large file
    there until `go_on` is set."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], large: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.large = files, large
        self.spoiled: set[str] = set()
        self.ranges: list[str | None] = []  # of every transfer of a large file
        self.stall_after: int | None = None
        self.go_on = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        parts = self.path.lstrip("/").split("/")  # owner, name, "resolve", revision, file
        key = "/".join([*parts[:2], *parts[4:]])
        if parts[3] not in ("main", COMMIT):
            self._head(404, {"X-Error-Code": "RevisionNotFound"})
        elif key not in self.server.files:
            self._head(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif key in self.server.large:  # they lie on another host, as those of real hubs
            content = self.server.files[key]
            headers = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"http://localhost:{self.server.server_port}/large/{key}",
            }
            self._head(302, headers)
        else:
            content = self.server.files[key]
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._head(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}, len(content))

    def do_GET(self) -> None:
        parts = self.path.lstrip("/").split("/")
        if parts[0] == "api":
            return self._list("/".join(parts[2:4]) + "/")
        is_large = parts[0] == "large"
        key = "/".join(parts[1:] if is_large else [*parts[:2], *parts[4:]])
        content = self.server.files[key]
        if key in self.server.spoiled:
            content = b"?" + content[1:]
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        self._head(206 if asked else 200, headers, len(content) - start)
        if is_large:
            self.server.ranges.append(asked)
            if self.server.stall_after is not None and self.server.stall_after < len(content):
                stop, self.server.stall_after = self.server.stall_after, None
                self.wfile.write(content[start:stop])
                self.server.go_on.wait(60)
                start = stop
        self.wfile.write(content[start:])

    def _list(self, repo: str) -> None:
        names = [key.removeprefix(repo) for key in self.server.files if key.startswith(repo)]
        said = {"id": repo[:-1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        body = json.dumps(said).encode()
        self._head(200, {"Content-Type": "application/json"}, len(body))
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int = 0) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


REPO, LLM = "ASLP-lab/OSUM-EChat", "Qwen/Qwen2.5-3B-Instruct"
WEIGHTS, TAR = f"{REPO}/language_think_final.pt", f"{REPO}/CosyVoice-300M-25Hz.tar"
STALL = 21 << 20  # the client writes pieces of 10 MiB


@pytest.fixture
def hub() -> Iterator[Hub]:
    block = bytes(range(256)) * 4096  # 1 MiB
    files = {WEIGHTS: block * 24, TAR: block[::-1]}
    files |= {
        f"{LLM}/{name}": name.encode() for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    }
    server = Hub(files, {WEIGHTS, TAR})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.go_on.set()
    server.shutdown()


def start(cache: Path, url: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """`echat download osum-echat` in a process of its own: the hub library reads its settings once."""
    settings = {
        "HF_HOME": str(cache),
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", "from echat.cli import main; main()", "download", "osum-echat", *options],
        env=os.environ | settings | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(cache: Path, url: str, *options: str, **environment: str) -> tuple[int, str, str]:
    process = start(cache, url, *options, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def refused(result: tuple[int, str, str], *says: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, result
    assert all(part in err for part in says), err


def parts(cache: Path) -> list[Path]:
    return sorted(cache.rglob("blobs/*.part"))


@pytest.mark.slow
def test_a_killed_download_goes_on_and_serves_offline(hub: Hub, tmp_path: Path) -> None:
    hub.stall_after = STALL
    process = start(tmp_path, hub.url)
    begun = f"{hashlib.sha256(hub.files[WEIGHTS]).hexdigest()}.part"
    while process.poll() is None and not any(p.name == begun and p.stat().st_size for p in parts(tmp_path)):
        time.sleep(0.05)
    process.kill()
    process.communicate()
    (part,) = parts(tmp_path)
    got = part.stat().st_size
    assert 0 < got < len(hub.files[WEIGHTS])

    code, out, err = run(tmp_path, hub.url, "--json")
    assert code == 0, err
    assert hub.ranges == [None, None, f"bytes={got}-"]  # the tar, the start of the weights, their rest
    paths = json.loads(out)
    assert Path(paths["weights"]).read_bytes() == hub.files[WEIGHTS]
    assert Path(paths["token2wav"]).read_bytes() == hub.files[TAR]
    assert (Path(paths["llm"]) / "tokenizer.json").read_bytes() == b"tokenizer.json"
    assert paths["commit"] == COMMIT and parts(tmp_path) == []

    code, out, err = run(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert code == 0, err
    assert (
        f"language_think_final.pt: {len(hub.files[WEIGHTS]):,} bytes, sha256, {REPO} at {COMMIT[:12]}" in out
    )
    assert "config.json: 11 bytes, git-sha1" in out and "\necho" not in out
    assert f"echat convert {paths['weights']} osum-echat-language --llm {paths['llm']} " in out
    assert len(hub.ranges) == 3

    Path(paths["weights"]).resolve().write_bytes(b"spoiled on the disk")
    refused(run(tmp_path, hub.url), "language_think_final.pt: expected sha256", "run the command again")


def test_a_wrong_hash_is_refused_and_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.spoiled.add(TAR)
    refused(run(tmp_path, hub.url), "CosyVoice-300M-25Hz.tar: expected sha256", "found ")
    assert parts(tmp_path) == [] and not list(tmp_path.rglob("*.tar"))


@pytest.mark.slow
def test_what_is_not_there_is_said_in_one_line(hub: Hub, tmp_path: Path) -> None:
    refused(run(tmp_path, hub.url, "--revision", "v9"), f"of {REPO}, found no 'v9'; leave --revision out")
    refused(run(tmp_path, hub.url, "--think", "label"), "tag_think_final.pt: expected it in ASLP-lab")
    refused(
        run(tmp_path / "new", hub.url, HF_HUB_OFFLINE="1"),
        "config.json: expected it in the cache",
        "OFFLINE set",
    )
    assert hub.ranges == [None]
