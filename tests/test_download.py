"""`sana-wm download`: what it lists without a connection, what it refuses, and a real download from a hub on
this machine.
"""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from sana_wm_env import cli
from sana_wm_env.commands import download
from sana_wm_env.model.storage.hub import REPOSITORIES, downloaded

STREAMING = "Efficient-Large-Model/SANA-WM_streaming"
GEMMA = "Efficient-Large-Model/gemma-2-2b-it"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def no_connection(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_dry_run_lists_files_bytes_and_licences_without_a_connection(name, capsys, no_connection):
    assert cli.main(["download", name, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for part in REPOSITORIES[name]:
        if part.optional:
            assert f"left out: {part.what}, {part.nbytes / 1e9:.0f} GB, {part.licence}" in text
        else:
            assert f"{part.what:<22}{part.nbytes / 1e9:>6.1f} GB" in text and part.licence in text
            assert f"files    {', '.join(part.files)} of {part.repository}" in text
    needed = sum(part.nbytes for part in REPOSITORIES[name] if not part.optional)
    assert f"to fetch: {needed / 1e9:.1f} GB" in text


def test_optional_parts_and_parts_by_their_own_name(capsys, no_connection):
    assert cli.main(["download", STREAMING, "--dry-run", "--optional"]) == 0
    assert "left out" not in (text := capsys.readouterr().out) and "refiner_diffusers/*" in text
    assert cli.main(["download", GEMMA, "--dry-run"]) == 0
    assert "Gemma Terms of Use" in (text := capsys.readouterr().out) and "to fetch: 5.2 GB" in text


MEMORY = (
    f"{STREAMING} needs at least 13.0 GB on cpu (offload={{'text': 'release'}}), where 12.0 GB are free; "
    "the nearest world that fits is 'tiny-rooms', with nothing to fetch"
)


@pytest.mark.parametrize(
    "memory, disk, said", [(12, 100, MEMORY), (100, 12, "13.0 GB are to be fetched and 12.0 GB are free in")]
)
def test_what_has_no_room_is_refused_before_a_byte_moves(
    memory, disk, said, monkeypatch, capsys, no_connection
):
    monkeypatch.setattr(download, "free_memory", lambda device: memory * 10**9)
    monkeypatch.setattr(download, "free_disk", lambda: disk * 10**9)
    assert cli.main(["download", STREAMING, "--device", "cpu"]) == 2
    assert f"sana-wm: {said}" in capsys.readouterr().err
    assert cli.main(["download", STREAMING, "--device", "cpu", "--dry-run"]) == 0
    assert f"would be refused: {said}" in capsys.readouterr().out


def test_offline_is_respected(monkeypatch, capsys, no_connection):
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    assert cli.main(["download", GEMMA]) == cli.main(["download", "someone/something", "--dry-run"]) == 2
    assert "HF_HUB_OFFLINE set; unset it to fetch, nothing was asked of the hub" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """Of the hub's API what a download asks for: a revision, the tree of a commit, the head and the body of a
    file.
    """

    def __init__(self, files: dict[str, bytes], *args):
        self.files = files
        super().__init__(*args)

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def log_message(self, *args):
        pass

    def _answer(self, body: bool):
        path = self.path.partition("?")[0]
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": n, "size": len(c), "oid": sha1(c).hexdigest()}
                for n, c in self.files.items()
            ]
            content, headers = json.dumps(entries).encode(), {}
        elif "/resolve/" in path:
            content = self.files[path.partition(f"/resolve/{COMMIT}/")[2]]
            headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        else:
            name = path.removeprefix("/api/models/").partition("/revision/")[0]
            content, headers = json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode(), {}
        self.send_response(200)
        for key, value in {
            **headers,
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def test_a_download_takes_what_the_table_names_and_nothing_else(cache, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    files = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.model": b"words",
        "model.gguf": b"for others",
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, files))
    Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1",
    }
    try:
        result = subprocess.run(
            [sys.executable, "-m", "sana_wm_env.cli", "download", GEMMA],
            capture_output=True,
            text=True,
            env=environment,
            timeout=100,
        )
    finally:
        server.shutdown()
    assert result.returncode == 0, result.stderr
    folder = cache / "models--Efficient-Large-Model--gemma-2-2b-it" / "snapshots" / COMMIT
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        n: c for n, c in files.items() if n != "model.gguf"
    }
    assert "fetching 14 bytes, by the hub's own count" in result.stdout
    assert f"in {folder}\nworld='{GEMMA}@{COMMIT}' opens this very commit" in result.stdout
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert (
        downloaded(GEMMA) == downloaded(f"{GEMMA}@{COMMIT}") == folder
    )  # although the hub has a file that is not here
