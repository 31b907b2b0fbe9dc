# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol: by NVIDIA's client as it is, and by requests that break it."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from muntin.run_lengths import decode_mask, encode_mask
from muntin.serving.protocol_tensors import encode_outputs, make_tensors
from tests.serving.live import DATA, Live

KINDS = ("classify", "detect", "instance", "semantic", "keypoint_rcnn")
SCENES = sorted((DATA / "scenes" / "val").glob("*.png"))
SIDE = 8
"""Pixels of a side of the images of requests that break the protocol."""


@pytest.fixture(scope="module")
def client(served: Live) -> Any:
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(f"127.0.0.1:{served.port}") as found:
        yield found


def small(value: int = 90) -> bytes:
    """A PNG of SIDE x SIDE pixels."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (value, 120, 30)).save(file, "png")
    return file.getvalue()


def files() -> list[bytes]:
    return [path.read_bytes() for path in SCENES]


def predicted(served: Live, name: str, images: list[bytes]) -> Any:
    """What `/predict` answers to the same images in one request, which go through together."""
    values = {"images": [base64.b64encode(image).decode() for image in images], "model": name}
    body, kind = json.dumps(values).encode(), {"Content-Type": "application/json"}
    status, answer, _ = served.ask("POST", "/predict", body, kind)
    assert status == 200, answer
    return answer


def as_bytes(images: list[bytes], *, binary: bool = True) -> Any:
    """An input of encoded images, as NVIDIA's client sends it."""
    http = pytest.importorskip("tritonclient.http")
    values = images if binary else [base64.b64encode(image) for image in images]
    given = http.InferInput("image", [len(images)], "BYTES")
    return given.set_data_from_numpy(np.array(values, object), binary_data=binary)


def test_what_a_client_asks_first(client: Any, served: Live) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("classify")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "muntin"
    assert "binary_tensor_data" in server["extensions"]
    version = served.ask("GET", "/models/detect")[1]["version"]
    metadata = client.get_model_metadata("detect", version)
    assert metadata["versions"] == [version]
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    outputs = {each["name"]: (each["datatype"], each["shape"]) for each in metadata["outputs"]}
    assert outputs["boxes"] == ("FP32", [-1, -1, 4])
    config = client.get_model_config("detect")
    assert [each["name"] for each in config["output"]] == list(outputs)
    index = {each["name"]: each["state"] for each in client.get_model_repository_index()}
    assert index == dict.fromkeys(KINDS, "READY")


@pytest.mark.parametrize("name", KINDS)
def test_results_are_those_of_predict(client: Any, served: Live, name: str) -> None:
    images = files()
    result = client.infer(name, [as_bytes(images)], request_id="seven")
    assert result.get_response()["id"] == "seven"
    assert result.get_response()["model_name"] == name
    texts = result.as_numpy("json")
    expected = predicted(served, name, images)
    assert [json.loads(text) for text in texts] == expected
    CHECKS[name](result, expected)


def check_classes(result: Any, expected: list[Any]) -> None:
    scores = [[row["score"] for row in each["classes"]] for each in expected]
    np.testing.assert_array_equal(result.as_numpy("scores"), np.array(scores, np.float32))
    ids = [[row["id"] for row in each["classes"]] for each in expected]
    assert result.as_numpy("class_ids").tolist() == ids


def check_objects(result: Any, expected: list[Any]) -> None:
    counts = [len(each["boxes"]) for each in expected]
    assert result.as_numpy("num_detections").tolist() == counts
    boxes, ids = result.as_numpy("boxes"), result.as_numpy("class_ids")
    assert boxes.shape == (len(expected), max(counts), 4)
    for number, each in enumerate(expected):
        rows = each["boxes"]
        found = boxes[number, : len(rows)]
        np.testing.assert_array_equal(found, np.array([r["xyxy"] for r in rows], np.float32))
        assert ids[number].tolist() == [r["id"] for r in rows] + [-1] * (max(counts) - len(rows))
        assert not result.as_numpy("scores")[number, len(rows) :].any()


def check_map(result: Any, expected: list[Any]) -> None:
    labels = result.as_numpy("labels")
    assert labels.dtype == np.int16
    assert labels.min() >= 0
    for number, each in enumerate(expected):
        for row in each["semantic"]:
            np.testing.assert_array_equal(labels[number] == row["id"], decode_mask(row["mask"]))


def check_poses(result: Any, expected: list[Any]) -> None:
    counts = [len(each["poses"]) for each in expected]
    assert result.as_numpy("num_instances").tolist() == counts
    assert result.as_numpy("keypoints").shape == (len(expected), max(counts), 5, 3)
    for number, each in enumerate(expected):
        for place, pose in enumerate(each["poses"]):
            found = result.as_numpy("keypoints")[number, place]
            np.testing.assert_array_equal(found, np.array(pose["keypoints"], np.float32))


CHECKS = {
    "classify": check_classes, "detect": check_objects, "instance": check_objects,
    "semantic": check_map, "keypoint_rcnn": check_poses,
}  # fmt: skip


def test_json_alone_gives_the_same(client: Any) -> None:
    http = pytest.importorskip("tritonclient.http")
    images = files()
    wanted = [http.InferRequestedOutput(name, binary_data=False) for name in ("scores", "json")]
    plain = client.infer("classify", [as_bytes(images, binary=False)], outputs=wanted)
    packed = client.infer("classify", [as_bytes(images)])
    assert [each["name"] for each in plain.get_response()["outputs"]] == ["scores", "json"]
    np.testing.assert_array_equal(plain.as_numpy("scores"), packed.as_numpy("scores"))
    assert list(plain.as_numpy("json")) == [text.decode() for text in packed.as_numpy("json")]
    assert plain.as_numpy("class_ids") is None


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_pixels(client: Any, served: Live, binary: bool, batched: bool) -> None:
    http = pytest.importorskip("tritonclient.http")
    image = small()
    pixels = np.asarray(Image.open(io.BytesIO(image)))
    pixels = np.stack([pixels, pixels]) if batched else pixels
    given = http.InferInput("image", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels, binary_data=binary)
    result = client.infer("classify", [given])
    expected = predicted(served, "classify", [image] * (1 + batched))
    assert [json.loads(text) for text in result.as_numpy("json")] == expected


def test_options(client: Any, served: Live) -> None:
    image = files()[0]
    options = {"threshold": 0.4, "tta": True}
    result = client.infer("detect", [as_bytes([image])], parameters=options)
    status, expected, _ = served.predict(image, "/predict?model=detect&threshold=0.4&tta=true")
    assert status == 200
    assert json.loads(result.as_numpy("json")[0]) == expected[0]


def test_a_client_learns_what_is_wrong(client: Any) -> None:
    http = pytest.importorskip("tritonclient.http")
    error = pytest.importorskip("tritonclient.utils").InferenceServerException
    image = as_bytes(files()[:1])
    with pytest.raises(error, match="nobody") as unknown:
        client.infer("nobody", [image])
    assert unknown.value.status() == "404"
    with pytest.raises(error, match="Unknown version") as unknown:
        client.infer("classify", [image], model_version="1")
    assert unknown.value.status() == "404"
    with pytest.raises(error, match=r"scoers.*scores") as wrong:
        client.infer("classify", [image], outputs=[http.InferRequestedOutput("scoers")])
    assert wrong.value.status() == "400"
    with pytest.raises(error, match="504") as late:
        client.infer("classify", [image], timeout=1)
    assert late.value.status() == "504"


def ask(
    served: Live, values: Any, tail: bytes = b"", *, length: int | str | None = None,
    name: str = "classify",
) -> tuple[int, Any]:  # fmt: skip
    """Send a request as it stands in the protocol."""
    head = values if isinstance(values, bytes) else json.dumps(values).encode()
    headers = {"Content-Type": "application/json"}
    if tail or length is not None:
        headers["Inference-Header-Content-Length"] = str(len(head) if length is None else length)
    status, answer, _ = served.ask("POST", f"/v2/models/{name}/infer", head + tail, headers)
    return status, answer


def in_json() -> dict[str, Any]:
    text = base64.b64encode(small()).decode()
    return {
        "id": "a",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}],
        "outputs": [{"name": "scores"}],
        "parameters": {"threshold": 0.1},
    }


def in_binary(images: list[bytes]) -> tuple[dict[str, Any], bytes]:
    tail = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [len(images), 1],
        "parameters": {"binary_data_size": len(tail)},
    }
    return {"inputs": [tensor]}, tail


def test_requests_as_they_stand_in_the_protocol(served: Live) -> None:
    status, plain = ask(served, in_json())
    assert status == 200, plain
    assert plain["id"] == "a"
    assert [each["name"] for each in plain["outputs"]] == ["scores"]
    status, packed = ask(served, *in_binary([small()]))
    assert status == 200, packed
    kept = [score for score in packed["outputs"][1]["data"] if score >= 0.1]
    assert plain["outputs"][0]["data"] == kept
    # One image and nothing else.
    status, bare = ask(served, small(), length=0)
    assert status == 200
    assert bare == packed


def changed(path: str, value: Any) -> dict[str, Any]:
    """The request with one value changed; what is None is taken out."""
    request = in_json()
    *places, last = path.split(".")
    holder: Any = request
    for place in places:
        holder = holder[int(place) if place.isdigit() else place]
    if value is None:
        del holder[last]
    else:
        holder[int(last) if last.isdigit() else last] = value
    return request


PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2, 3]}
WRONG = [
    (changed("inputs.0.datatype", "FP32"), 400, "FP32"),
    (changed("inputs.0.shape", [2]), 400, "2 texts"),
    (changed("inputs.0.shape", [-1]), 400, "-1"),
    (changed("inputs.0.shape", [2**63]), 400, "9223372036854775808"),
    (changed("inputs.0.shape", [1, 1, 1]), 400, r"[n, 1]"),
    (changed("inputs.0.shape", [100]), 413, "100"),
    (changed("inputs.0.shape", [True]), 400, "True"),
    (changed("inputs.0.data", None), 400, "data"),
    (changed("inputs.0.data", ["%%"]), 422, "base64"),
    (changed("inputs.0.data", ["http://a.example/b.png"]), 422, "nothing is fetched"),
    (changed("inputs.0.data", [base64.b64encode(b"no image").decode()]), 415, "format"),
    (changed("inputs.0.name", "picture"), 400, "picture"),
    (changed("inputs.0.parameters", {"shared_memory_region": "x"}), 400, "shared memory"),
    (changed("inputs.0.parameters", {"binary_data_size": 3}), 400, "either"),
    (changed("inputs", in_json()["inputs"] * 2), 400, "once"),
    (changed("inputs", []), 400, "once"),
    (changed("inputs", None), 400, "inputs"),
    (changed("inputs", [PIXELS | {"data": [1, 2]}]), 400, "3 whole numbers"),
    (changed("inputs", [PIXELS | {"data": [1, 2, 256]}]), 400, "0 to 255"),
    (changed("inputs", [PIXELS | {"data": [1, 2, 1.5]}]), 400, "0 to 255"),
    (changed("inputs", [PIXELS | {"data": ["1", "2", "3"]}]), 400, "0 to 255"),
    (changed("inputs", [PIXELS | {"data": [[[1, 2]]]}]), 400, "3 whole numbers"),
    (changed("inputs", [PIXELS | {"shape": [3, 1, 1]}]), 400, "channels last"),
    (changed("inputs", [PIXELS | {"shape": [30_000, 30_000, 3]}]), 413, "million pixels"),
    (changed("outputs", [{"name": "scores"}] * 2), 400, "different names"),
    (changed("outputs", [{"name": "masks"}]), 400, "masks"),
    (changed("outputs.0.parameters", {"classification": 3}), 400, "classification"),
    (changed("outputs.0.parameters", {"binary_data": 1}), 400, "true or false"),
    (changed("parameters", {"threshold": float("nan")}), 422, "threshold"),
    (changed("parameters", {"threshold": float("inf")}), 422, "threshold"),
    (changed("parameters", {"tile": -1}), 422, "tile"),
    (changed("parameters", {"sequence_id": 1}), 400, "sequence_id"),
    (changed("parameters", {"timeout": -1}), 400, "timeout"),
    (changed("parameters", 3), 400, "object"),
    (changed("id", 3), 400, "id"),
    ([], 422, "object"),
    (b"{", 400, "JSON"),
    (b"", 400, "JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "word"), WRONG)
def test_a_request_that_breaks_the_protocol(
    served: Live, request_: Any, status: int, word: str
) -> None:
    found, answer = ask(served, request_)
    assert found == status, answer
    assert word in answer["error"]
    assert len(answer["error"]) < 1000


def test_bytes_that_do_not_add_up(served: Live) -> None:
    head, tail = in_binary([small(), small(20)])
    assert ask(served, head, tail)[0] == 200
    for wrong in (tail[:-1], tail + b"a", b""):
        status, answer = ask(served, head, wrong, length=len(json.dumps(head)))
        assert status == 400
        assert "binary_data_size" in answer["error"]
    for size in (2**32 - 1, 0, len(small()) + 1):
        wrong = struct.pack("<I", size) + tail[4:]
        status, answer = ask(served, head, wrong)
        assert status == 400
        assert "do not add up" in answer["error"]
    for length in (10**6, -1, "x", "9" * 30):
        status, answer = ask(served, head, tail, length=length)
        assert status == 400
        assert "Inference-Header-Content-Length" in answer["error"]
    # The JSON ends too early, or too late.
    assert ask(served, head, tail, length=5)[0] == 400
    assert ask(served, head, tail, length=len(json.dumps(head)) + 1)[0] == 400


def test_maps_of_different_sizes(served: Live) -> None:
    wide = io.BytesIO()
    Image.new("RGB", (4 * SIDE, SIDE // 2)).save(wide, "png")
    other = io.BytesIO()
    Image.new("RGB", (2 * SIDE, SIDE // 2)).save(other, "png")
    for second in (wide.getvalue(), other.getvalue()):
        head, tail = in_binary([small(), second])
        status, answer = ask(served, head, tail, name="semantic")
        assert status == 400
        assert "one size" in answer["error"]
        head["outputs"] = [{"name": "json"}]
        assert ask(served, head, tail, name="semantic")[0] == 200


def test_a_large_map_is_given_in_binary_form_alone(served: Live) -> None:
    large = io.BytesIO()
    Image.new("RGB", (1000, 501)).save(large, "png")
    head, tail = in_binary([large.getvalue()])
    head["outputs"] = [{"name": "labels"}]
    status, answer = ask(served, head, tail, name="semantic")
    assert status == 400
    assert "got 501000" in answer["error"]
    assert "binary_data" in answer["error"]
    mask = encode_mask(np.ones((1500, 1500), bool))
    result = {"path": "", "size": [1500, 1500], "semantic": [{"id": 3, "mask": mask}]}
    tensors = make_tensors({"kind": "segmentation"}, [json.dumps(result)], ["labels"])
    head, tail = encode_outputs({}, tensors, {"labels": True})
    assert json.loads(head)["outputs"][0]["shape"] == [1, 1500, 1500]
    assert set(np.frombuffer(tail, "<i2")) == {3}


@pytest.mark.parametrize("part", [b"1,", b"\\ud800"])
def test_many_values_are_refused_before_they_are_read(served: Live, part: bytes) -> None:
    """Reading them would hold up every other request."""
    body = b'{"inputs": ["' + part * 210_000 + b'"]}'
    status, answer = ask(served, body)
    assert status == 413
    assert "200000 values" in answer["error"]


def test_what_is_no_number_is_null() -> None:
    result = {"path": "", "size": [1, 1], "classes": [{"id": 0, "score": None}]}
    tensors = make_tensors({"kind": "classification"}, [json.dumps(result)], ["scores"])
    head, _ = encode_outputs({}, tensors, {"scores": False})
    assert json.loads(head)["outputs"][0]["data"] == [None]
    assert np.isnan(tensors["scores"]).all()


def test_nothing_found_is_an_empty_tensor() -> None:
    result = {"path": "", "size": [9, 9], "boxes": []}
    names = ["boxes", "scores", "num_detections"]
    tensors = make_tensors({"kind": "detection"}, [json.dumps(result)] * 2, names)
    assert tensors["boxes"].shape == (2, 0, 4)
    assert tensors["num_detections"].tolist() == [0, 0]


ODD = [
    None, True, -1, 0, 3, 2**31, 2**63, -(2**70), 10**400, 1e308, float("nan"), float("inf"), "",
    "image", "\ud800", "a" * 5000, [], [[]], [[[[[[1]]]]]], {}, {"name": None}, [None], ["x", 1],
    {"parameters": {"parameters": {}}}, "BYTES", "UINT8", [8, 8, 3], [1, 1], [0], b"".hex(),
]  # fmt: skip


def places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a request are."""
    found = [path] if path else []
    if isinstance(values, dict):
        return found + [p for key in values for p in places(values[key], (*path, key))]
    if isinstance(values, list):
        return found + [p for n, each in enumerate(values) for p in places(each, (*path, n))]
    return found


def mutate(generator: random.Random) -> tuple[bytes, bytes, str | None]:
    """Change a good request at one to three places: its values, or its bytes."""
    head, tail = in_binary([small()]) if generator.random() < 0.5 else (in_json(), b"")
    head = copy.deepcopy(head)
    for _ in range(generator.randrange(3)):
        *path, last = generator.choice(places(head))
        holder: Any = head
        for key in path:
            holder = holder[key]
        if generator.random() < 0.2 and isinstance(holder, dict):
            del holder[last]
        else:
            holder[last] = generator.choice(ODD)
        if not places(head):
            break
    text = bytearray(json.dumps(head).encode())
    length: str | None = str(len(text)) if tail else None
    data = bytearray(tail)
    chosen = generator.choice((text, data))
    for _ in range(generator.randrange(4)):
        if chosen:
            chosen[generator.randrange(len(chosen))] = generator.randrange(256)
    if generator.random() < 0.1:
        length = generator.choice(["0", "1", "-5", "99999999", "", "\xb2", str(2**64)])
    return bytes(text), bytes(data), length


def test_broken_requests_are_answered(served: Live) -> None:
    """Three hundred of them: each gets one clear line, and the server goes on."""
    generator = random.Random(11)
    statuses: dict[int, int] = {}
    for number in range(300):
        text, data, length = mutate(generator)
        headers = {"Content-Type": "application/octet-stream"}
        if length is not None:
            headers["Inference-Header-Content-Length"] = length
        status, answer, _ = served.ask("POST", "/v2/models/classify/infer", text + data, headers)
        statuses[status] = statuses.get(status, 0) + 1
        assert status in (200, 400, 413, 415, 422), (number, status, answer)
        if status != 200:
            assert 0 < len(answer["error"]) < 2000
    assert statuses[200] > 10
    assert statuses[400] > 100
    assert ask(served, in_json())[0] == 200
