"""Downloads against a server on 127.0.0.1, and archives that try to write elsewhere."""

import hashlib
import io
import json
import os
import signal
import socketserver
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler

import archive_files as made_of
import numpy as np
import pytest

from passionsr.data import archives, dataset_registry, fetch
from passionsr.data.fetch import FETCHED, Archive, Source, download, fetch_source, unpack
from passionsr.utils import network
from passionsr.utils.files import UserError

BODY = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers["Range"]))
        if self.path not in server.files:
            self.send_error(404)
            return
        body, start = server.files[self.path], 0
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        asked = self.headers["Range"]
        if asked and server.ranges and self.headers["If-Range"] == etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", etag)
        self.end_headers()
        end = len(body)
        if server.cut_after:
            end = min(end, start + server.cut_after.pop(0))
        for at in range(start, end, 50_000):
            try:
                self.wfile.write(body[at : min(at + 50_000, end)])
            except OSError:
                return
            time.sleep(server.pause)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as made:
        made.files, made.requests = {"/a.bin": BODY}, []
        made.ranges, made.cut_after, made.pause = True, [], 0.0
        made.url = f"http://127.0.0.1:{made.server_address[1]}"
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


def archive(server, name="a.bin", **changes):
    return Archive(name, (f"{server.url}/{name}",), **changes)


def test_whole_file(server, tmp_path):
    target = tmp_path / "x" / "a.bin"
    assert download(archive(server, size=len(BODY)), target, SHA) == SHA
    assert target.read_bytes() == BODY
    assert [p.name for p in target.parent.iterdir()] == ["a.bin"]
    assert download(archive(server), target, SHA) == SHA
    assert len(server.requests) == 1  # what is there is only checked


def test_a_broken_transfer_is_resumed_at_once(server, tmp_path):
    server.cut_after = [1_000_000, 700_000]
    assert download(archive(server), tmp_path / "a.bin", SHA) == SHA
    assert [r for _, r in server.requests] == [None, "bytes=1000000-", "bytes=1700000-"]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_killed_process_is_resumed(server, tmp_path):
    """SIGKILL in the middle: the next call asks for the rest only."""
    server.pause = 0.05
    code = (
        "import sys; from pathlib import Path; from passionsr.data.fetch import Archive, download;"
        "download(Archive('a.bin', (sys.argv[1],)), Path(sys.argv[2]), None)"
    )
    target = tmp_path / "a.bin"
    process = subprocess.Popen([sys.executable, "-c", code, f"{server.url}/a.bin", str(target)])
    part = tmp_path / "a.bin.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size > 500_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not target.exists()
    received = part.stat().st_size
    assert 0 < received < len(BODY)
    server.pause = 0.0
    assert download(archive(server), target, SHA) == SHA
    assert server.requests[-1][1] == f"bytes={received}-"
    assert target.read_bytes() == BODY


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cut_after = False, [1_000_000]
    assert download(archive(server), tmp_path / "a.bin", SHA) == SHA
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_file_changed_on_the_server_is_not_glued_to_the_old_part(server, tmp_path):
    server.cut_after = [1_000_000] * 3
    with pytest.raises(UserError):
        download(archive(server), tmp_path / "a.bin", None, attempts=1)
    server.cut_after, server.files["/a.bin"] = [], BODY[::-1]
    download(archive(server), tmp_path / "a.bin", None)
    assert (tmp_path / "a.bin").read_bytes() == BODY[::-1]


def test_a_part_that_was_already_complete(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    (tmp_path / "a.bin.part.etag").write_text(f'"{hashlib.md5(BODY).hexdigest()}"')
    assert download(archive(server), tmp_path / "a.bin", SHA) == SHA
    assert server.requests == [("/a.bin", f"bytes={len(BODY)}-")]


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"size": 5}, "size is 3000000, expected 5"),
        ({"md5": "0" * 32}, "md5 is .*, expected 0000"),
        ({"sha256": "0" * 64}, "sha256 is .*, expected 0000"),
    ],
    ids=["size", "md5", "sha256"],
)
def test_a_wrong_file_is_refused_and_deleted(server, tmp_path, expected, message):
    wanted = archive(server, **expected)
    with pytest.raises(UserError, match=message):
        download(wanted, tmp_path / "a.bin", wanted.sha256)
    assert list(tmp_path.iterdir()) == []


def test_every_address_is_tried_and_named(server, tmp_path):
    second = Archive("a.bin", (f"{server.url}/none", f"{server.url}/a.bin"))
    assert download(second, tmp_path / "a.bin", SHA) == SHA
    lost = Archive("b.bin", (f"{server.url}/none", "http://127.0.0.1:1/b.bin"))
    with pytest.raises(UserError, match=r"/none: Not Found.*:1/b\.bin: .*refused.*local folder"):
        download(lost, tmp_path / "b.bin", None)


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as stream:
        for name, data in files.items():
            stream.writestr(name, data)
    return buffer.getvalue()


def test_first_download_is_recorded_and_binding(server, tmp_path):
    """Trust on first use: the hash goes to the lock file; later another file is refused."""
    server.files["/s.zip"] = zipped(**{"s/1.png": b"1", "s/2.png": b"2", "other/3.png": b"3"})
    source = Source("S", (archive(server, "s.zip"),), ("s/*",))
    data, locks = tmp_path / "data", tmp_path / "locks"
    folder = fetch_source(source, data, locks)
    assert sorted(p.name for p in folder.rglob("*.png")) == ["1.png", "2.png"]
    digest = hashlib.sha256(server.files["/s.zip"]).hexdigest()
    assert json.loads((locks / "S.json").read_text())["s.zip"]["sha256"] == digest
    made = json.loads((folder / FETCHED).read_text())
    assert made == {
        "archives": {"s.zip": {"sha256": digest, "size": len(server.files["/s.zip"])}},
        "files": {"s.zip": 2},
    }
    assert fetch_source(source, data, locks) == folder
    assert len(server.requests) == 1
    server.files["/s.zip"] = zipped(**{"s/1.png": b"changed"})
    with pytest.raises(UserError, match="sha256 is"):
        fetch_source(source, tmp_path / "elsewhere", locks)
    assert not (tmp_path / "elsewhere" / "S").exists()


def test_a_pinned_hash_needs_no_lock(server, tmp_path):
    body = server.files["/s.zip"] = zipped(**{"1.png": b"1"})
    pinned = archive(server, "s.zip", sha256=hashlib.sha256(body).hexdigest())
    fetch_source(Source("S", (pinned,)), tmp_path / "data", tmp_path / "locks")
    assert not (tmp_path / "locks").exists()


def test_a_folder_of_the_users_own_is_not_touched(server, tmp_path):
    (tmp_path / "S").mkdir()
    with pytest.raises(UserError, match="was not made by passionsr fetch"):
        fetch_source(Source("S", (archive(server),)), tmp_path, tmp_path / "locks")
    assert server.requests == []


def zip_with(name, mode=None):
    def make(path):
        with zipfile.ZipFile(path, "w") as stream:
            stream.writestr("good.png", b"good")
            info = zipfile.ZipInfo(name)
            if mode:
                info.create_system = 3
                info.external_attr = mode << 16
            stream.writestr(info, b"../../evil")

    return make


def tar_with(name, kind=tarfile.REGTYPE, link=""):
    def make(path):
        with tarfile.open(path, "w:gz") as stream:
            good = tarfile.TarInfo("good.png")
            good.size = 4
            stream.addfile(good, io.BytesIO(b"good"))
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = 4 if kind == tarfile.REGTYPE else 0
            stream.addfile(info, io.BytesIO(b"evil"))

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (zip_with("../evil.png"), "leads out of its folder"),
        (zip_with("a/../../evil.png"), "leads out of its folder"),
        (zip_with("/tmp/evil.png"), "leads out of its folder"),
        (zip_with("C:/evil.png"), "leads out of its folder"),
        (zip_with("..\\evil.png"), "leads out of its folder"),
        (zip_with("link", stat.S_IFLNK | 0o777), "is a link or a device"),
        (zip_with("good.png"), "stands twice"),
        (tar_with("../evil.png"), "leads out of its folder"),
        (tar_with("/tmp/evil.png"), "leads out of its folder"),
        (tar_with("link", tarfile.SYMTYPE, "/etc"), "is a link or a device"),
        (tar_with("link", tarfile.SYMTYPE, "good.png"), "is a link or a device"),
        (tar_with("hard", tarfile.LNKTYPE, "../../etc/passwd"), "is a link or a device"),
        (tar_with("fifo", tarfile.FIFOTYPE), "is a link or a device"),
        (lambda path: path.write_bytes(b"no archive"), "cannot be unpacked"),
        (lambda path: path.write_bytes(zipped(a=b"1" * 999)[:-30]), "cannot be unpacked"),
    ],
    ids=[
        "zip-up",
        "zip-inner-up",
        "zip-absolute",
        "zip-drive",
        "zip-backslash",
        "zip-symlink",
        "zip-twice",
        "tar-up",
        "tar-absolute",
        "tar-symlink",
        "tar-inner-symlink",
        "tar-hardlink",
        "tar-fifo",
        "garbage",
        "truncated",
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_malicious_archives_write_nothing(make, message, tmp_path):
    path, folder = tmp_path / "in" / "a.zip", tmp_path / "deep" / "out"
    path.parent.mkdir()
    folder.mkdir(parents=True)
    make(path)
    with pytest.raises(UserError, match=message):
        unpack(path, folder)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_good_archives(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    files = {"a/1.png": b"1", "a/b/2.png": b"2"}
    if suffix == "zip":
        path.write_bytes(zipped(**files))
    else:
        with tarfile.open(path, "w:gz") as stream:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                stream.addfile(info, io.BytesIO(data))
    assert unpack(path, tmp_path / "out") == 2
    assert (tmp_path / "out" / "a" / "b" / "2.png").read_bytes() == b"2"
    assert unpack(path, tmp_path / "some", ["a/b/*"]) == 1


def test_command_line_names_the_way_out(server, tmp_path, monkeypatch, capsys):
    """No host in reach.

    One line with the address, the place to put the file, and the local folder option.
    """
    from passionsr.cli import main
    from passionsr.data import dataset_registry

    monkeypatch.setattr(dataset_registry, "DATA", tmp_path / "data")
    monkeypatch.setattr(dataset_registry, "LOCKS", tmp_path / "locks")
    lost = Source("S", (Archive("s.zip", ("http://127.0.0.1:1/s.zip",)),))
    good = Source("G", (archive(server, "g.zip"),))
    server.files["/g.zip"] = zipped(**{"1.png": b"1"})
    monkeypatch.setattr(dataset_registry, "load_sources", lambda: {"S": lost, "G": good})
    assert main(["fetch", "S"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ("127.0.0.1:1/s.zip", str(tmp_path / "data" / ".archives" / "s.zip"), "`folder:`"):
        assert part in error
    assert main(["fetch", "N"]) == 2
    assert "source 'N' is unknown; known: S, G" in capsys.readouterr().err
    assert main(["fetch", "G"]) == 0
    assert (tmp_path / "data" / "G" / "1.png").read_bytes() == b"1"


# -- trust --------------------------------------------------------------------------------------

REGISTRY = """
sources:
  S:
    archives: [{{file: a.zip, urls: [{urls}]}}]
datasets:
  D: {{source: S, lr: LR/*.png, hr: HR/*.png, count: 2}}
"""
WRONG = {
    "quota-page": made_of.QUOTA_PAGE,
    "quota-text": b"Quota exceeded, try again tomorrow",
    "empty": b"",
    "cut": made_of.GOOD[:3000],
    "bad-crc": made_of.corrupted(made_of.GOOD),
    "deflate64": made_of.altered(made_of.DEFLATED, method=9),
    "encrypted": made_of.altered(made_of.GOOD, flags=1),
    "multi-part": made_of.last_of_several(made_of.GOOD),
    "empty-zip": made_of.zipped({}),
    "rar": b"Rar!\x1a\x07\x01\x00" + bytes(99),
    "other-content": made_of.zipped({"readme.txt": b"1"}),
    "one-image-less": made_of.zipped(made_of.pairs("a")),
    "no-partner": made_of.zipped({**made_of.pairs("a", "b"), "HR/c.png": made_of.png()}),
    "cut-image": made_of.zipped({**made_of.pairs("a", "b"), "HR/b.png": made_of.png(32, 1)[:900]}),
    "html-image": made_of.zipped({**made_of.pairs("a", "b"), "HR/b.png": made_of.QUOTA_PAGE}),
}


@pytest.fixture
def registered(server, tmp_path, monkeypatch):
    """A folder with a registry of one source and its dataset; what the server sends is `a.zip`."""
    (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)

    def register(*urls):
        (tmp_path / "config" / "datasets.yaml").write_text(REGISTRY.format(urls=", ".join(urls)))

    register(f"{server.url}/a.zip")
    return register


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


PROVED = [
    "config/datasets.lock/S.json",
    "config/datasets.yaml",
    "data/.archives/a.zip",
    "data/S/HR/a.png",
    "data/S/HR/b.png",
    "data/S/LR/a.png",
    "data/S/LR/b.png",
    "data/S/fetched.json",
]


@pytest.mark.parametrize("wrong", WRONG)
def test_no_hash_before_the_archive_has_proved_itself(server, registered, tmp_path, capsys, wrong):
    """Served with status 200; nothing is left of it, and the right archive works afterwards."""
    from passionsr.cli import main

    server.files["/a.zip"] = WRONG[wrong]
    assert main(["fetch", "S"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert files_below(tmp_path) == ["config/datasets.yaml"]
    server.files["/a.zip"] = made_of.GOOD
    assert main(["fetch", "S"]) == 0
    assert files_below(tmp_path) == PROVED
    lock = json.loads((tmp_path / "config" / "datasets.lock" / "S.json").read_text())
    assert lock["a.zip"]["sha256"] == hashlib.sha256(made_of.GOOD).hexdigest()


@pytest.mark.parametrize("wrong", ["quota-page", "cut", "one-image-less", "cut-image"])
def test_a_users_own_file_is_never_removed(registered, tmp_path, capsys, wrong):
    from passionsr.cli import main

    own = tmp_path / "data" / ".archives" / "a.zip"
    own.parent.mkdir(parents=True)
    own.write_bytes(WRONG[wrong])
    assert main(["fetch", "S"]) == 2
    assert "put the right file at data/.archives/a.zip" in capsys.readouterr().err
    assert own.read_bytes() == WRONG[wrong]
    assert files_below(tmp_path) == ["config/datasets.yaml", "data/.archives/a.zip"]
    own.write_bytes(made_of.GOOD)
    assert main(["fetch", "S"]) == 0
    assert files_below(tmp_path) == PROVED


def test_the_next_address_is_tried_after_a_quota_page(server, registered, tmp_path):
    server.files |= {"/quota": made_of.QUOTA_PAGE, "/a.zip": made_of.GOOD}
    registered(f"{server.url}/quota", f"{server.url}/a.zip")
    dataset_registry.fetch_dataset_source("S")
    assert files_below(tmp_path) == PROVED


def test_a_recorded_page_says_where_its_hash_stands(server, registered, tmp_path):
    """A lock file of an earlier version: how to get out of it."""
    lock = tmp_path / "config" / "datasets.lock" / "S.json"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"a.zip": {"sha256": "0" * 64, "size": 1}}))
    server.files["/a.zip"] = made_of.GOOD
    with pytest.raises(UserError, match=r"recorded in config/datasets\.lock/S\.json at the first"):
        dataset_registry.fetch_dataset_source("S")
    for text in ("[1]", '{"a.zip": 1}', '{"a.zip": {"sha256": "no"}}', "no"):
        lock.write_text(text)
        with pytest.raises(UserError, match=r"S\.json: not "):
            dataset_registry.fetch_dataset_source("S")


def test_a_full_disk_while_unpacking_keeps_what_has_arrived(
    server, registered, tmp_path, monkeypatch
):
    server.files["/a.zip"] = made_of.GOOD

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(archives.shutil, "copyfileobj", full)
        with pytest.raises(UserError, match=r"cannot be written to data \(No space left on device"):
            dataset_registry.fetch_dataset_source("S")
    assert "data/.archives/a.zip.part" in files_below(tmp_path)
    assert not (tmp_path / "config" / "datasets.lock").exists()
    dataset_registry.fetch_dataset_source("S")
    assert files_below(tmp_path) == PROVED
    assert [r for _, r in server.requests] == [None, f"bytes={len(made_of.GOOD)}-"]


def test_a_full_disk_while_downloading_is_no_broken_connection(
    server, registered, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    server.files["/a.zip"] = made_of.GOOD
    monkeypatch.setattr(fetch, "_save", full)
    with pytest.raises(UserError, match=r"S cannot be written to data \(No space left on device"):
        dataset_registry.fetch_dataset_source("S")
    assert len(server.requests) == 1


def test_data_that_is_a_file(registered, tmp_path):
    (tmp_path / "data").write_text("x")
    with pytest.raises(UserError, match="S cannot be written to data"):
        dataset_registry.fetch_dataset_source("S")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (206, {}),
        (206, {"Content-Range": "nonsense"}),
        (416, {}),
        (200, {"Content-Length": "many"}),
        (503, {}),
        (429, {}),
    ],
    ids=str,
)
def test_a_server_that_answers_nonsense(tmp_path, status, headers):
    """One line, and a part of an earlier attempt does not stand in the way of the next."""

    class Nonsense(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    (tmp_path / "a.bin.part").write_bytes(b"1234")
    (tmp_path / "a.bin.part.etag").write_text('"1"')
    with Server(("127.0.0.1", 0), Nonsense) as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{made.server_address[1]}/a.bin"
        with pytest.raises(UserError, match=r"a\.bin could not be downloaded \(http"):
            download(Archive("a.bin", (url,)), tmp_path / "a.bin", SHA)
        made.shutdown()


def test_another_size_is_refused_before_it_is_received(server, tmp_path):
    with pytest.raises(UserError, match="size is 3000000, expected 5"):
        download(archive(server, size=5), tmp_path / "a.bin", None)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_on_the_hub_comes_from_the_users_endpoint(server, registered, monkeypatch):
    server.files["/datasets/o/n/resolve/main/a.zip"] = made_of.GOOD
    registered(f"{network.PUBLIC_HUB}/datasets/o/n/resolve/main/a.zip")
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    dataset_registry.fetch_dataset_source("S")
    assert [path for path, _ in server.requests] == ["/datasets/o/n/resolve/main/a.zip"]
