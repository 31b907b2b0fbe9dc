# SPDX-License-Identifier: Apache-2.0
"""Packed data behind an address: a server of S3 on this machine, and one that fails on purpose."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from typing import ClassVar

import pytest

import muntin
from muntin.data.archives import read_bytes
from muntin.data.listing import list_classify
from muntin.data.remote_files import ShardCache
from muntin.data.shard_index import Place, Shard
from muntin.errors import ConfigError, DataError, ShardError
from muntin.synthetic.datasets import write_classify
from tests.small import MODEL, SETTINGS, train_small

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the clients
]
SECRET = "hidden-secret"


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on, and fails those for shards as `faults` says, in turn."""

    protocol_version = "HTTP/1.1"
    faults = iter(())
    upstream = 0
    requests: ClassVar[list[str]] = []

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        reply = upstream.getresponse()
        data = reply.read()
        upstream.close()
        is_shard = self.command == "GET" and ".tar" in self.path
        fault = next(type(self).faults, "") if is_shard else ""
        type(self).requests += [self.path] if is_shard else []
        if fault == "503":
            reply.status, data = 503, b"<Error><Code>SlowDown</Code><Message>no</Message></Error>"
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        short = data[: len(data) // 2]
        told = short if fault == "truncated" else data
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        if fault == "changed":
            told = bytes([told[0] ^ 255]) + told[1:]
        if self.command != "HEAD":
            self.wfile.write(short if fault == "cut" else told)
        self.close_connection = fault == "cut"

    do_GET = do_HEAD = do_PUT = do_POST = answer  # noqa: N815

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The folder of a packed data set, its original, and the port of a proxy before S3."""
    root = tmp_path_factory.mktemp("packed")
    write_classify(root / "data", num_train_per_class=2, num_val_per_class=1, size=(24, 24))
    muntin.pack("classify", root / "data", root / "out", shard_size="8k")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    Proxy.upstream = server.get_host_and_port()[1]
    with serving(Proxy) as port, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        system = s3fs.S3FileSystem()
        system.mkdir("bucket")
        system.put(str(root / "out"), "bucket/set", recursive=True)
        yield root, port
    server.stop()


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("MUNTIN_SHARD_CACHE", str(tmp_path / "cache"))
    s3fs.S3FileSystem.clear_instance_cache()
    Proxy.faults, Proxy.requests = iter(()), []


def contents(sets):
    return {
        (part, entry.path): read_bytes(one.source, entry.path)
        for part, one in sets.parts.items()
        for entry in one.entries
    }


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("503", "truncated", "changed")]


@pytest.mark.parametrize("fault", ["cut", *SLOW])
def test_every_image_comes_once_and_whole_over_failures(bucket, fault):
    root, _ = bucket
    Proxy.faults = itertools.cycle([fault, "", "", ""])
    packed, original = list_classify("s3://bucket/set"), list_classify(root / "data")
    assert [(e.path, e.class_ids) for e in packed.train.entries] == [
        (e.path, e.class_ids) for e in original.train.entries
    ]
    assert contents(packed) == contents(original)
    count = len(Proxy.requests)
    assert count > sum(map(len, packed.parts.values()))
    assert contents(list_classify("s3://bucket/set")) == contents(original)
    assert len(Proxy.requests) == count  # from the cache


@pytest.mark.parametrize("fault", ["503", *SLOW[1:]])
def test_the_last_try_names_shard_and_image(bucket, fault):
    listing = list_classify("s3://bucket/set").train
    Proxy.faults = itertools.repeat(fault)
    path = listing.entries[0].path
    with pytest.raises(ShardError, match=rf"{path}.*train-000000\.tar.*s3://bucket/set") as caught:
        read_bytes(listing.source, path)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(bucket, tmp_path):
    for address in ("s3://bucket/nowhere", "s3://nowhere/set", "memory://nowhere", "file:///no"):
        with pytest.raises((ShardError, DataError), match=address.rpartition("/")[2]):
            list_classify(address)
    system = s3fs.S3FileSystem()
    system.cp("bucket/set", "bucket/less", recursive=True)
    system.rm("bucket/less/train-000000.tar")
    listing = list_classify("s3://bucket/less").train
    with pytest.raises(ShardError, match=r"train-000000\.tar.*not there"):
        read_bytes(listing.source, listing.entries[0].path)


def test_missing_credentials_are_named(bucket, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_") and "ENDPOINT" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ShardError, match="AWS_ACCESS_KEY_ID") as caught:
        list_classify("s3://bucket/set")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("address", [f"https://me:{SECRET}@127.0.0.1/a", f"s3://b/a?key={SECRET}"])
def test_passwords_in_addresses_are_refused_and_not_shown(address):
    with pytest.raises(DataError, match=r"\*\*\*") as caught:
        list_classify(address)
    assert SECRET not in str(caught.value)


@pytest.mark.slow
def test_shards_of_others_are_streamed(bucket, tmp_path):
    root, _ = bucket
    system = s3fs.S3FileSystem()
    for path in (root / "out").glob("train-*.tar"):
        system.put(str(path), f"bucket/plain/{path.name}")
    count = len([*(root / "out").glob("train-*.tar")])
    places = ["s3://bucket/plain", f"s3://bucket/plain/train-{{000000..{count - 1:06}}}.tar"]
    original = list_classify(root / "data").train
    wanted = [read_bytes(original.source, entry.path) for entry in original.entries]
    for place in places:
        listing = list_classify(place).train
        assert [read_bytes(listing.source, entry.path) for entry in listing.entries] == wanted
        assert [e.class_ids for e in listing.entries] == [e.class_ids for e in original.entries]


def test_other_addresses_are_read(bucket):
    root, _ = bucket
    import fsspec

    fsspec.filesystem("memory").put(str(root / "out"), "/set", recursive=True)
    original = contents(list_classify(root / "data"))
    for address in ("memory://set", f"file://{root / 'out'}", str(root / "out" / "index.json")):
        assert contents(list_classify(address)) == original


class Ranges(BaseHTTPRequestHandler):
    """A folder over HTTP; without `ranges` always whole files."""

    root, ranges = "", True

    def do_GET(self):
        try:
            with open(f"{self.root}{self.path}", "rb") as file:
                data = file.read()
        except OSError:
            self.send_error(404)
            return
        asked = self.headers.get("Range") if self.ranges else None
        if asked:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            data = data[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_must_answer_ranges(bucket, monkeypatch, ranges):
    root, _ = bucket
    monkeypatch.setattr(Ranges, "root", str(root / "out"))
    monkeypatch.setattr(Ranges, "ranges", True)
    with serving(Ranges) as port:
        sets = list_classify(f"http://127.0.0.1:{port}")
        Ranges.ranges = ranges
        if ranges:
            assert contents(sets) == contents(list_classify(root / "data"))
        else:
            with pytest.raises(ShardError, match="ranges"):
                contents(sets)


def weights_of(run):
    return (run.path / "weights.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["s3", "http"])
def test_a_run_on_an_address_is_that_on_the_folder(bucket, monkeypatch, tmp_path, protocol):
    root, _ = bucket
    monkeypatch.setattr(Ranges, "root", str(root / "out"))
    run = train_small(root / "data", tmp_path / "a", epochs=2)
    with serving(Ranges) as port:
        address = {"s3": "s3://bucket/set", "http": f"http://127.0.0.1:{port}/index.json"}[protocol]
        there = train_small(address, tmp_path / "b", epochs=2, settings={"machine.workers": 2})
        assert weights_of(there) == weights_of(run)
        # A run on the folder goes on with the packed set.
        train_small(root / "data", tmp_path / "c", epochs=2, stop_after=2)
        assert weights_of(train_small(address, tmp_path / "c", resume=True)) == weights_of(run)
        predictor = muntin.load(run.path)
        results = predictor([address])
        original = list_classify(root / "data")
        paths = sorted(entry.path for one in original.parts.values() for entry in one.entries)
        expected = predictor([root / "data" / path for path in paths])
        assert [one.path.endswith(path) for one, path in zip(results, paths, strict=True)]
        assert [one.scores.tolist() for one in results] == [one.scores.tolist() for one in expected]


@pytest.mark.slow
def test_pretraining_on_a_packed_set_is_that_on_the_folder(bucket, tmp_path):
    root, _ = bucket
    settings = {**SETTINGS, "head.dim": 16, "head.depth": 1, "head.num_heads": 2}
    runs = [
        muntin.pretrain(
            root / place, out=tmp_path / place, objective="simmim", model=MODEL, img_size=16,
            settings=settings, epochs=1, batch_size=5, precision="fp32", device="cpu", quiet=True,
            pictures=False,
        )
        for place in ("data", "out")
    ]  # fmt: skip
    assert weights_of(runs[0]) == weights_of(runs[1])


def _read_all(address, queue):
    queue.put(len(contents(list_classify(address))))


@pytest.mark.slow
def test_forked_processes_read_at_the_same_time(bucket):
    listing = list_classify("s3://bucket/set")  # opens connections that a fork must not use
    context = get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_read_all, args=("s3://bucket/set", queue)) for _ in "ab"]
    for worker in workers:
        worker.start()
    counts = [queue.get(timeout=200) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert counts == [len(contents(listing))] * 2


def place_of(number, size=4096):
    import zlib

    data = bytes([number]) * size
    shard = Shard(name=f"{number}.tar", size=size, digest=f"digest{number}")
    return Place(shard=shard, offset=512, size=size, crc=zlib.crc32(data)), data


def test_the_cache_is_bounded_and_heals(tmp_path):
    cache = ShardCache(tmp_path / "cache", 64 * 1024)
    for number in range(100):
        cache.keep(*place_of(number))
        os.utime(tmp_path / "cache" / f"digest{number}", (number, number))
    used = sum(512 * path.stat().st_blocks for path in (tmp_path / "cache").iterdir())
    assert 16 * 1024 <= used <= 64 * 1024 + 8192
    assert cache.read(place_of(99)[0]) == place_of(99)[1]
    assert cache.read(place_of(0)[0]) is None
    torn = tmp_path / "cache" / "digest99"
    torn.write_bytes(torn.read_bytes()[:-9] + bytes(9))
    assert cache.read(place_of(99)[0]) is None
    cache.keep(*place_of(99))
    assert cache.read(place_of(99)[0]) == place_of(99)[1]


def test_a_cache_of_no_bytes_keeps_nothing(bucket, monkeypatch, tmp_path):
    root, _ = bucket
    monkeypatch.setenv("MUNTIN_SHARD_CACHE_SIZE", "0")
    listing = list_classify("s3://bucket/set").train
    path = listing.entries[0].path
    for _ in range(2):
        assert read_bytes(listing.source, path) == read_bytes(str(root / "data"), path)
    assert len(Proxy.requests) == 2
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("MUNTIN_SHARD_CACHE_SIZE", "much")
    with pytest.raises(ConfigError, match="MUNTIN_SHARD_CACHE_SIZE"):
        list_classify("s3://bucket/set")
