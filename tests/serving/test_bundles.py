# SPDX-License-Identifier: Apache-2.0
"""Bundles for other servers: what is in them, what they answer, and what is refused."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import inspect
import json
import re
import runpy
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from fastapi import Request
from google.protobuf.text_format import ParseError
from PIL import Image

import muntin
from muntin.commands.serve import serve
from muntin.data.batches import fit
from muntin.data.transforms import Preprocessing, to_tensor
from muntin.errors import ConfigError, MuntinError, RunError
from muntin.runs import Run
from muntin.serving.batching import RefusedError
from muntin.serving.bundles import KINDS, write_bundle
from muntin.serving.replica import Replica
from muntin.serving.serve_settings import ServeLimits
from tests.serving.live import DATA, ROOT, RUNS
from tests.serving.server_schemas import (
    INFERENCE_SERVICE,
    check_fields,
    check_openvino,
    parse_triton,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

NUMPY = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int64": "TYPE_INT64"}


def unpack(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(gzip.decompress((RUNS / f"{name}.gz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An exported classifier."""
    return unpack("classify.onnx", tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, file):
    """Give the bundle of a kind, with one model; nobody changes it."""
    made: dict[str, Path] = {}

    def call(kind):
        if kind not in made:
            out = tmp_path_factory.mktemp("bundles") / "out"
            list(write_bundle(kind, [f"cells={file}"], out))
            made[kind] = out
        return made[kind]

    return call


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of several proportions, one turned by its EXIF tag."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(3)
    for number, (high, wide) in enumerate([(90, 140), (140, 90), (32, 32), (61, 40)]):
        small = generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((wide, high), Image.Resampling.BICUBIC)
        tags = Image.Exif()
        tags[0x0112] = 6 if number == 1 else 1
        image.save(folder / f"{number}.png", exif=tags)
    return sorted(folder.glob("*.png"))


def test_triton_reads_its_configuration(bundle, file):
    out = bundle("triton")
    config = parse_triton((out / "cells" / "config.pbtxt").read_text(encoding="utf-8"))
    assert (config.name, config.platform) == ("cells", "onnxruntime_onnx")
    assert config.max_batch_size > 1
    graph = onnx.load(file).graph
    for ours, theirs in ((config.input, graph.input), (config.output, graph.output)):
        assert [one.name for one in ours] == [one.name for one in theirs]
        for one, place in zip(ours, theirs, strict=True):
            kind = place.type.tensor_type
            batch, *sides = kind.shape.dim
            assert batch.dim_param  # free, and left out
            assert list(one.dims) == [side.dim_value for side in sides]
            names = type(one).DESCRIPTOR.fields_by_name["data_type"].enum_type
            found = names.values_by_number[one.data_type].name
            assert found == NUMPY[onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name]
    policy = config.dynamic_batching.default_queue_policy
    assert policy.timeout_action == 0  # REJECT
    assert 0 < policy.max_queue_size < 1000
    assert policy.default_timeout_microseconds >= 1e6
    assert [group.kind for group in config.instance_group] == [2]  # KIND_CPU
    assert (out / "cells" / "1" / "model.onnx").read_bytes() == file.read_bytes()
    names = muntin.load(file).classes.names
    labels = (out / "cells" / config.output[0].label_filename).read_text(encoding="utf-8")
    assert tuple(labels.splitlines()) == names


def test_a_schema_finds_what_is_wrong():
    for text in ("colour: 3", 'name: "a" max_batch_size: "many"', "input { data_type: TYPE_RGB }"):
        with pytest.raises(ParseError):
            parse_triton(text)
    for config in ({}, {"model_config_list": [{"config": {"name": "a"}}]}):
        with pytest.raises(AssertionError):
            check_openvino(config)
    with pytest.raises(AssertionError):
        check_fields({"spec": {"predictor": {"model": {"storageURI": "x"}}}}, INFERENCE_SERVICE)


def test_openvino_model_server(bundle):
    out = bundle("openvino-model-server")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    check_openvino(config)
    (model,) = (entry["config"] for entry in config["model_config_list"])
    # The README lays the bundle at /models.
    at = out / Path(model["base_path"]).relative_to("/models")
    versions = [path.name for path in at.iterdir() if path.is_dir()]
    assert versions == ["1"]
    assert [path.name for path in (at / "1").iterdir()] == ["model.onnx"]
    assert ":/models:ro" in (out / "README.md").read_text(encoding="utf-8")


def test_kserve(bundle, file):
    out = bundle("kserve")
    service, own = (
        yaml.safe_load((out / name).read_text(encoding="utf-8"))
        for name in ("inference-service.yaml", "inference-service-muntin.yaml")
    )
    for found in (service, own):
        check_fields(found, INFERENCE_SERVICE)
        assert found["apiVersion"] == "serving.kserve.io/v1beta1"
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,61}[a-z0-9]", found["metadata"]["name"])
    model = service["spec"]["predictor"]["model"]
    assert (model["modelFormat"]["name"], model["protocolVersion"]) == ("onnx", "v2")
    (container,) = own["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    # What it is started with is what the command line takes, with the files where KServe lays them.
    words = [re.sub(r"=/\w+/models/", f"={out}/models/", one) for one in container["args"]]
    assert words[0] == "serve"
    assert Path(words[1].partition("=")[2]).read_bytes() == file.read_bytes()
    assert options_of(words) <= known_options()
    drain = float(words[words.index("--drain") + 1])
    assert own["spec"]["predictor"]["terminationGracePeriodSeconds"] > drain


def options_of(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


def known_options() -> set[str]:
    """Options of the verb."""
    names = [name.strip("_").replace("_", "-") for name in inspect.signature(serve).parameters]
    return {f"--{name}" for name in names}


def test_ray_files(bundle, file):
    out = bundle("ray")
    compile((out / "muntin_app.py").read_text(encoding="utf-8"), "muntin_app.py", "exec")
    (application,) = yaml.safe_load((out / "serve_config.yaml").read_text())["applications"]
    assert application["import_path"] == "muntin_app:app"
    (deployment,) = application["deployments"]
    assert deployment["num_replicas"] == 2
    assert deployment["max_queued_requests"] > 0
    ServeLimits(**deployment["user_config"]["limits"])
    assert (out / "models" / "cells.onnx").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_each_bundle_says_how_it_is_started_and_what_is_in_it(bundle, kind):
    out = bundle(kind)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "## Start" in text
    assert "$name" not in text
    assert "XX" not in text
    record = json.loads((out / "bundle.json").read_text(encoding="utf-8"))
    assert record["kind"] == kind
    assert [model["name"] for model in record["models"]] == ["cells"]
    assert not [path for path in out.parent.iterdir() if path != out]  # nothing else is left


class Stub(http.server.BaseHTTPRequestHandler):
    """Answers tensors by the Open Inference Protocol, as its text says, with ONNX Runtime."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        size = int(self.headers["Inference-Header-Content-Length"])
        head, rest = json.loads(body[:size]), body[size:]
        feed = {}
        for one in head["inputs"]:
            count = one["parameters"]["binary_data_size"]
            kind = {"UINT8": np.uint8, "INT64": np.int64}[one["datatype"]]
            feed[one["name"]] = np.frombuffer(rest[:count], kind).reshape(one["shape"])
            rest = rest[count:]
        assert self.path == "/v2/models/cells/infer"
        assert not rest
        names = [one.name for one in self.server.engine.get_outputs()]
        arrays = self.server.engine.run(names, feed)
        outputs = [
            {"name": name, "datatype": "FP32", "shape": list(array.shape),
             "parameters": {"binary_data_size": array.nbytes}}
            for name, array in zip(names, arrays, strict=True)
        ]  # fmt: skip
        start = json.dumps({"model_name": "cells", "outputs": outputs}).encode()
        self.send_response(200)
        self.send_header("Inference-Header-Content-Length", str(len(start)))
        self.end_headers()
        self.wfile.write(start + b"".join(array.tobytes() for array in arrays))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def stub(file):
    import onnxruntime

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.engine = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_client_of_a_bundle_answers_as_predict_does(bundle, stub, file, photos, tmp_path):
    alone = shutil.copytree(bundle("triton"), tmp_path / "elsewhere")
    done = subprocess.run(
        [sys.executable, "-I", alone / "client.py", stub, "cells", *photos],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["found"] for line in done.stdout.splitlines()]
    right = muntin.load(file)(photos)
    assert len(found) == len(right) == len(photos)
    for ours, theirs in zip(found, right, strict=True):
        assert ours[0]["class"] == theirs.class_names[0]
        by_name = dict(zip(theirs.class_names, theirs.scores, strict=True))
        for one in ours:  # Pillow and PyTorch round differently when they resize
            assert one["score"] == pytest.approx(by_name[one["class"]], abs=0.02)


class Refusing(http.server.BaseHTTPRequestHandler):
    """Refuses each request, or answers it in another protocol."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400 if "/cells/" in self.path else 200)
        self.end_headers()
        self.wfile.write(b'{"error": "no such input"}')

    def log_message(self, *args: object) -> None:
        pass


def test_the_client_of_a_bundle_says_what_is_wrong(bundle, photos, tmp_path):
    broken, cut = tmp_path / "broken.png", tmp_path / "cut.png"
    broken.write_bytes(b"no image")
    cut.write_bytes(photos[0].read_bytes()[:200])
    alone = shutil.copytree(bundle("triton"), tmp_path / "alone")
    (alone / "other").mkdir()
    model = json.loads((alone / "cells" / "model.json").read_text(encoding="utf-8"))
    (alone / "other" / "model.json").write_text(json.dumps({**model, "name": "other"}))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        up = f"http://127.0.0.1:{server.server_port}"
        cases = [
            (up, "cells", photos[0], "got 400: .*no such input"),
            (up, "other", photos[0], "must speak the Open Inference Protocol"),
            (up, "cells", tmp_path / "none.png", "IMAGE must be a file, got .*none.png"),
            (up, "cells", broken, "IMAGE must be an image .*broken.png"),
            (up, "cells", cut, "IMAGE must be an image .*cut.png"),
            ("http://127.0.0.1:1", "cells", photos[0], "must answer, got: .*refused"),
            ("localhost:8000", "cells", photos[0], "SERVER must be http://HOST:PORT, got"),
        ]
        started = [
            subprocess.Popen(
                [sys.executable, "-I", alone / "client.py", *words], stderr=subprocess.PIPE,
                text=True,
            )
            for *words, _ in cases
        ]  # fmt: skip
        for process, (*_, said) in zip(started, cases, strict=True):
            errors = process.communicate(timeout=60)[1]
            assert process.returncode == 1
            assert re.search(said, errors), errors
            assert "Traceback" not in errors
        server.shutdown()


FITS = [
    {"img_size": (32, 48), "fit": "center_crop"},
    {"img_size": (32, 32), "fit": "center_crop", "crop_fraction": 0.875},
    {"img_size": (40, 40), "fit": "center_crop", "short_side": 52, "crop_rounding": "before"},
    {"img_size": (40, 30), "fit": "center_crop", "resize_to": (50, 50)},
    {"img_size": (32, 32), "fit": "stretch", "crop_fraction": 0.9, "interpolation": "bilinear"},
    {"img_size": (64, 96), "fit": "letterbox"},
    {"img_size": (160, 160), "fit": "sliding_window", "scale": 0.5},
    {"img_size": (160, 160), "fit": "sliding_window", "short_side": 50},
]


@pytest.mark.parametrize("fields", FITS)
def test_the_client_prepares_images_as_predict_does(bundle, photos, fields):
    client = runpy.run_path(str(bundle("triton") / "client.py"))
    pre = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, **fields)
    canvas = (96, 96) if pre.fit == "letterbox" else pre.img_size
    names = Preprocessing.__dataclass_fields__
    model = {"canvas": canvas, "preprocessing": {name: getattr(pre, name) for name in names}}
    for path in photos:
        image = client["open_image"](path)
        pixels, size = client["prepare"](image, model)
        array = np.array(image)
        right = fit(to_tensor(array), array.shape[:2], pre).numpy()
        assert pixels.shape == (1, 3, *canvas)
        assert size == right.shape[1:]
        inside = pixels[0, :, : size[0], : size[1]]
        assert np.abs(inside.astype(int) - right.astype(int)).max() <= 2
        assert pixels.sum() == inside.sum()  # the rest is padding


def ask(body: bytes, query: str = "", kind: str = "application/octet-stream") -> Request:
    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http", "method": "POST", "path": "/", "headers": headers,
        "query_string": query.encode(),
    }  # fmt: skip
    return Request(scope, receive)


def test_a_replica_answers_as_predict_does(file, photos):
    replica = Replica({"cells": file, "again": file})
    assert [model["name"] for model in replica.models] == ["cells", "again"]
    queries = ("", "model=again", "model=again&threshold=0.3&name=x.png", "")
    jobs = [
        asyncio.run(replica.read(ask(path.read_bytes(), query)))
        for path, query in zip(photos, queries, strict=True)
    ]
    # One batch of several models, options and requests, as a server may make it.
    answers = replica.answer([job for each in jobs for job in each])
    found = [json.loads(replica.join([answer]))[0] for answer in answers]
    for ours, theirs, query in zip(found, muntin.load(file)(photos), queries, strict=True):
        right = theirs.above(0.3 if "threshold" in query else 0.0).to_dict()
        assert ours.pop("path") == ("x.png" if "name" in query else "")
        right.pop("path")
        assert json.dumps(ours) == json.dumps(right)


def test_a_replica_refuses_what_the_server_refuses(file, photos):
    replica = Replica({"cells": file}, ServeLimits(images=1))

    def refused(request: Request) -> RefusedError:
        with pytest.raises(RefusedError) as caught:
            replica.join(replica.answer(asyncio.run(replica.read(request))))
        return caught.value

    assert refused(ask(b"no image")).status == 415
    assert refused(ask(photos[0].read_bytes(), "model=cels")).status == 404
    assert refused(ask(b"no image", "model=cels")).status == 404
    assert refused(ask(photos[0].read_bytes()[:1000])).status == 422
    tasks = refused(ask(b'{"tasks": []}', kind="application/json"))
    assert tasks.status == 422
    replica.limit(megapixels=0.001)
    assert refused(ask(photos[0].read_bytes())).status == 413
    with pytest.raises(ConfigError, match=r"limits.megapixels"):
        replica.limit(megapixels=0)


def test_unknown_servers_names_and_files(tmp_path, file):
    out, torch_file = tmp_path / "out", tmp_path / "cells.pt2"
    torch_file.write_bytes(b"of another format")
    for kind, models, text in (
        ("trition", [file], "Did you mean 'triton'"),
        ("kubernetes", [file], "Known: kserve"),
        ("triton", [torch_file], "muntin export RUN NAME.onnx"),
        ("openvino-model-server", [torch_file], "openvino (.xml) or onnx (.onnx)"),
        ("triton", [file, file], "Name one of them: classify2="),
        ("triton", [tmp_path / "none.onnx"], "got '"),
        ("triton", [], "Name a run folder"),
        ("ray", [torch_file], "cells.pt2"),
    ):
        with pytest.raises(MuntinError) as caught:
            list(write_bundle(kind, [*map(str, models)], out))
        assert text in str(caught.value), kind
        assert "\n" not in str(caught.value)
        assert not out.exists()
        assert {path.name for path in tmp_path.iterdir()} == {"cells.pt2"}


def test_runs_that_cannot_answer(tmp_path):
    learned = shutil.copytree(RUNS / "classify", tmp_path / "learned")
    run = Run.open(learned)
    replace(run, config=replace(run.config, task="pretrain")).write()
    unfinished = shutil.copytree(RUNS / "classify", tmp_path / "unfinished")
    (unfinished / "weights.safetensors").unlink()
    for run, text in ((learned, "muntin pretrain"), (unfinished, "Training stopped")):
        for kind in ("triton", "ray"):
            with pytest.raises(RunError, match=text) as caught:
                list(write_bundle(kind, [str(run)], tmp_path / "new" / "out"))
            assert "\n" not in str(caught.value)
            assert not (tmp_path / "new").exists()


def test_where_a_bundle_may_lie(tmp_path, file):
    out = tmp_path / "out"
    out.mkdir()
    kept = out / "notes.txt"
    kept.write_text("mine", encoding="utf-8")
    for force in (False, True):  # never what muntin did not write
        with pytest.raises(RunError, match="other files"):
            list(write_bundle("ray", [str(file)], out, force=force))
        assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(RunError, match="be a folder"):
        list(write_bundle("ray", [str(file)], kept))
    kept.unlink()
    list(write_bundle("ray", [str(file)], out))  # an empty folder is filled
    with pytest.raises(RunError, match="--force"):
        list(write_bundle("ray", [str(file)], out))
    with pytest.raises(RunError, match="hold an input"):
        list(write_bundle("ray", [str(out / "models" / "classify.onnx")], out, force=True))
    list(write_bundle("triton", [f"b={file}"], out, force=True))
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "b", "bundle.json", "client.py",
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_an_error_leaves_the_old_bundle(tmp_path, file):
    out = tmp_path / "out"
    list(write_bundle("ray", [str(file)], out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(RunError, match="damaged"):
        list(write_bundle("ray", [str(file), str(damaged)], out, force=True))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "damaged.onnx"}


def test_container_and_service():
    docker = (ROOT / "docs" / "deployment" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in re.sub(r"\\\n", " ", docker).splitlines() if line[:1].strip("# ")]
    words = [line.split(None, 1)[0] for line in lines]
    known = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "STOPSIGNAL",
             "HEALTHCHECK", "ENTRYPOINT", "CMD"}  # fmt: skip
    assert set(words) <= known
    assert words.index("USER") < words.index("ENTRYPOINT")
    entry, command = (
        json.loads(lines[words.index(w)].split(None, 1)[1]) for w in ("ENTRYPOINT", "CMD")
    )
    assert {"--token-file", "--host"} <= options_of(command) <= known_options()
    assert entry == ["muntin"]
    assert "/v2/health/ready" in lines[words.index("HEALTHCHECK")]
    unit = (ROOT / "docs" / "deployment" / "muntin.service").read_text(encoding="utf-8")
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert "--token-file" in options_of(start.split()) <= known_options()
    drain = float(re.search(r"--drain (\d+)", start)[1])
    assert float(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > drain
    for setting in ("DynamicUser=yes", "ProtectSystem=strict", "PrivateTmp=yes"):
        assert setting in unit.splitlines()


EXPORTED = ("classify", "detect", "semantic")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model repository of runs that were exported for it."""
    out = tmp_path_factory.mktemp("exported") / "out"
    lines = list(write_bundle("triton", [str(RUNS / name) for name in EXPORTED], out))
    assert sum("exporting" in line for line in lines) == len(EXPORTED)
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)  # three exports, each compared with its run
def test_run_folders_are_exported_with_finished_outputs(exported):
    for name in EXPORTED:
        described = json.loads((exported / name / "model.json").read_text(encoding="utf-8"))
        inputs = [one["name"] for one in described["inputs"]]
        assert inputs == (["images", "sizes"] if name == "detect" else ["images"])
        assert all(one["shape"][0] == -1 for one in described["inputs"] + described["outputs"])
        finished = {"classify": "probabilities", "semantic": "labels", "detect": "boxes"}[name]
        config = parse_triton((exported / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert finished in [one.name for one in config.output]
        path = exported / name / "1" / "model.onnx"
        assert muntin.load(path).classes.names == tuple(described["class_names"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"triton"}))
def test_a_run_folder_is_exported_first(tmp_path, kind):
    out = tmp_path / "out"
    lines = list(write_bundle(kind, [str(RUNS / "classify")], out))
    assert "exporting" in lines[0]
    suffix = ".xml" if kind == "openvino-model-server" else ".onnx"
    (path,) = out.rglob(f"*{suffix}")
    assert path.with_suffix(".bin").is_file() == (suffix == ".xml")
    photo = sorted((DATA / "classify").rglob("*.png"))[0]
    (ours,), (theirs,) = muntin.load(path)(photo), muntin.load(RUNS / "classify")(photo)
    assert ours.class_names == theirs.class_names
    assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)
    if suffix == ".xml":
        described = json.loads((out / "classify" / "model.json").read_text(encoding="utf-8"))
        (images,) = described["inputs"]
        assert (images["name"], images["dtype"]) == ("images", "uint8")
        assert (len(images["shape"]), images["shape"][0]) == (4, -1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_client_reads_detections_and_maps(exported):
    import onnxruntime

    client = runpy.run_path(str(exported / "client.py"))
    photo = sorted((DATA / "scenes").rglob("*.png"))[0]
    image = client["open_image"](photo)
    for name in ("detect", "semantic"):
        model = client["read_model"](name)
        pixels, size = client["prepare"](image, model)
        path = exported / name / "1" / "model.onnx"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feed = {"images": pixels, "sizes": np.array([size], np.int64)}
        names = [one.name for one in session.get_outputs()]
        given = {one.name: feed[one.name] for one in session.get_inputs()}
        outputs = dict(zip(names, session.run(names, given), strict=True))
        found = client["explain"](outputs, model, size, (image.height, image.width))
        (right,) = muntin.load(path)(photo)
        if name == "semantic":
            ids, counts = np.unique(right.labels, return_counts=True)
            pixels = {right.class_names[i]: int(n) for i, n in zip(ids, counts, strict=True)}
            whole = sum(one["pixels"] for one in found)
            for one in found:
                share = pixels.get(one["class"], 0) / right.labels.size
                assert one["pixels"] / whole == pytest.approx(share, abs=0.02)
            continue
        right = right.above(model["threshold"])
        assert len(found) == len(right.scores) > 0
        for one, box, score in zip(found, right.boxes, right.scores, strict=True):
            assert one["box"] == pytest.approx(box.tolist(), abs=1.0)
            assert one["score"] == pytest.approx(float(score), abs=0.02)
