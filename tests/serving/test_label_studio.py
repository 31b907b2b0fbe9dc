# SPDX-License-Identifier: Apache-2.0
"""The backend of Label Studio: what it answers to tasks, and to tasks that would do harm."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from muntin.serving.batching import RefusedError
from muntin.serving.label_backend import find_file, read_limited
from muntin.serving.label_config import describe_mismatch, parse_label_config
from muntin.serving.label_regions import make_regions, mean_score
from muntin.serving.serve_settings import ServeLimits
from tests.serving.live import DATA, RUNS, Live, start
from tests.serving.quick import run
from tests.serving.test_inference_protocol import ODD, places
from tests.serving.test_region_encoding import fill, unpack

NAMES = ("background", "cross", "disc", "ring", "square", "star", "triangle")
POINTS = ("centre", "top", "right", "bottom", "left")
SCENES = sorted((DATA / "scenes" / "val").glob("*.png"))


def config(tag: str, names: tuple[str, ...] = NAMES, more: str = "") -> str:
    child = "Choice" if tag == "Choices" else "Label"
    labels = "".join(f'<{child} value="{name.title()}"/>' for name in names)
    control = f'<{tag} name="a" toName="i" {more}>{labels}</{tag}>'
    return f'<View><Image name="i" value="$photo"/>{control}</View>'


def address_of(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def ask(served: Live, path: str, values: Any) -> tuple[int, Any]:
    body = json.dumps(values).encode()
    status, answer, _ = served.ask("POST", path, body, {"Content-Type": "application/json"})
    return status, answer


def predict(served: Live, name: str, label_config: str, photos: list[Any], **more: Any) -> Any:
    tasks = [{"id": number, "data": {"photo": photo}} for number, photo in enumerate(photos)]
    values = {"tasks": tasks, "label_config": label_config, "project": "1.1", **more}
    status, answer = ask(served, f"/label-studio/{name}/predict", values)
    assert status == 200, answer
    assert len(answer["results"]) == len(photos)
    assert {each["model_version"] for each in answer["results"]} == {answer["model_version"]}
    return answer["results"]


def plain(served: Live, name: str, image: bytes) -> Any:
    return served.predict(image, f"/predict?model={name}")[1][0]


def test_a_configuration_is_read() -> None:
    text = """<View><Header value="Look"/><Image name="img" value="$photo"/>
      <Image name="other" value="http://a.example/fixed.png"/><Text name="t" value="$text"/>
      <rectanglelabels name="box" toName="img" model_score_threshold="0.25">
        <Label value="Big Cat" alias="cat" predicted_values="lion, puma"/><Label value="dog_1"/>
      </rectanglelabels>
      <Choices name="c" toName="img" choice="multiple"><Choice value="day"/></Choices>
      <Choices name="d" toName="img" perRegion="true"><Choice value="day"/></Choices>
      <Labels name="words" toName="t"><Label value="noun"/></Labels>
      <BrushLabels name="b" toName="other"><Label value="x"/></BrushLabels></View>"""
    box, choice = parse_label_config(text)
    assert (box.kind, box.name, box.image, box.key) == ("rectanglelabels", "box", "img", "photo")
    asked = ("big cat", "CAT", "Lion", "puma", "Dog 1", "bird")
    assert [box.label_of(name) for name in asked] == ["cat"] * 4 + ["dog_1", None]
    assert (box.threshold, choice.threshold, choice.multiple) == (0.25, None, True)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<View>", "XML"),
        ('<!DOCTYPE a [<!ENTITY b "bb">]><View>&b;</View>', "entities"),
        (f"<View>{'<b/>' * 300_000}</View>", "characters"),
        (config("Choices").replace("</View>", "<Choices toName='i'/>" * 101 + "</View>"), "100"),
        (config("Choices", more='model_score_threshold="high"'), "model_score_threshold"),
        (None, "null"),
        (["<View/>"], "an array"),
    ],
)
def test_what_is_no_configuration(text: Any, word: str) -> None:
    with pytest.raises(RefusedError, match=word) as caught:
        parse_label_config(text)
    assert caught.value.status == 422


def test_a_mismatch_is_described() -> None:
    tags = parse_label_config(config("RectangleLabels", ("cat", "dog")))
    (first, second) = describe_mismatch(tags, ("CAT", "bird"), "detection")
    assert "Dog" in first
    assert "bird" in second
    assert not describe_mismatch(tags, ("dog", "cat"), "detection")
    assert "brushlabels" in describe_mismatch(tags, ("dog", "cat"), "segmentation")[0]


def test_boxes(served: Live) -> None:
    images = [path.read_bytes() for path in SCENES]
    text = config("RectangleLabels", more='model_score_threshold="0.05"')
    results = [predict(served, "detect", text, [address_of(image)])[0] for image in images]
    assert sum(len(each["result"]) for each in results) > 0
    for image, each in zip(images, results, strict=True):
        rows = [row for row in plain(served, "detect", image)["boxes"] if row["score"] >= 0.05]
        assert len(each["result"]) == len(rows)
        for row, region in zip(rows, each["result"], strict=True):
            assert (region["from_name"], region["to_name"]) == ("a", "i")
            assert (region["original_width"], region["original_height"]) == (48, 48)
            assert region["score"] == row["score"]
            value = region["value"]
            assert value["rectanglelabels"] == [row["name"].title()]
            corners = [value["x"], value["y"], value["x"] + value["width"]]
            corners = np.array([*corners, value["y"] + value["height"]]) * 0.48
            np.testing.assert_allclose(corners, np.clip(row["xyxy"], 0, 48), atol=0.001)
        assert len({region["id"] for region in each["result"]}) == len(rows)
        if rows:
            mean = sum(row["score"] for row in rows) / len(rows)
            assert each["score"] == pytest.approx(mean)


def test_masks_of_objects(served: Live) -> None:
    image = SCENES[0].read_bytes()
    more = 'model_score_threshold="0.05"'
    (brushes,) = predict(served, "instance", config("BrushLabels", more=more), [address_of(image)])
    rows = [row for row in plain(served, "instance", image)["boxes"] if row["score"] >= 0.05]
    assert len(brushes["result"]) == len(rows) > 0
    for row, region in zip(rows, brushes["result"], strict=True):
        assert region["value"]["format"] == "rle"
        found = unpack(region["value"]["rle"]).reshape(48, 48, 4)[..., 3] > 0
        np.testing.assert_array_equal(found, coco.decode(row["mask"]).astype(bool))


@pytest.mark.parametrize("tag", ["BrushLabels", "PolygonLabels"])
def test_maps(served: Live, tag: str) -> None:
    image = SCENES[0].read_bytes()
    # Without a label for the background.
    text = config(tag, NAMES[1:])
    (answer,) = predict(served, "semantic", text, [address_of(image)])
    rows = [row for row in plain(served, "semantic", image)["semantic"] if row["id"]]
    assert rows
    for row in rows:
        label, mask = row["name"].title(), coco.decode(row["mask"]).astype(bool)
        regions = [r["value"] for r in answer["result"] if r["value"][tag.lower()] == [label]]
        if tag == "BrushLabels":
            found = unpack(regions[0]["rle"]).reshape(48, 48, 4)[..., 0] > 0
            np.testing.assert_array_equal(found, mask)
        else:
            found = fill([value["points"] for value in regions], 48, 48)
            assert (mask & ~found).sum() < 0.3 * mask.sum()
    assert "score" not in answer


def test_keypoints_belong_to_their_box(served: Live) -> None:
    image = SCENES[0].read_bytes()
    points = "".join(f'<Label value="{name}"/>' for name in POINTS[:3])
    text = f"""<View><Image name="i" value="$photo"/>
      <KeyPointLabels name="k" toName="i" model_score_threshold="0">{points}</KeyPointLabels>
      <RectangleLabels name="b" toName="i" model_score_threshold="0"><Label value="thing"/>
      </RectangleLabels></View>"""
    (answer,) = predict(served, "keypoint_rcnn", text, [address_of(image)])
    poses = plain(served, "keypoint_rcnn", image)["poses"]
    boxes = [each for each in answer["result"] if each["type"] == "rectanglelabels"]
    assert len(boxes) == len(poses) > 0
    assert {each["value"]["rectanglelabels"][0] for each in boxes} == {"thing"}
    for pose, box in zip(poses, boxes, strict=True):
        own = [each for each in answer["result"] if each.get("parentID") == box["id"]]
        assert [each["value"]["keypointlabels"] for each in own] == [[n] for n in POINTS[:3]]
        for (x, y, score), region in zip(pose["keypoints"], own, strict=False):
            place = np.array([region["value"]["x"], region["value"]["y"]]) * 0.48 - 0.5
            np.testing.assert_allclose(place, [x, y], atol=0.001)
            assert region["score"] == score


def test_choices(served: Live) -> None:
    image = SCENES[0].read_bytes()
    rows = plain(served, "classify", image)["classes"]
    (answer,) = predict(served, "classify", config("Choices"), [address_of(image)])
    (region,) = answer["result"]
    assert region["value"] == {"choices": [rows[0]["name"].title()]}
    assert answer["score"] == rows[0]["score"]
    # The best of what the project knows.
    others = tuple(row["name"] for row in rows[1:])
    (answer,) = predict(served, "classify", config("Choices", others), [address_of(image)])
    assert answer["result"][0]["value"]["choices"] == [rows[1]["name"].title()]


def test_several_choices() -> None:
    rows = [{"name": n, "id": 0, "score": s} for n, s in (("Day", 0.9), ("sea", 0.6), ("cat", 0.2))]
    result = {"size": [4, 4], "classes": rows}
    text = config("Choices", ("day", "sea", "cat"), 'choice="multiple"')
    model = {"kind": "classification", "multi_label": True, "class_names": [], "threshold": 0.0}
    (region,) = make_regions(result, model, parse_label_config(text), 0.0)
    assert region["value"] == {"choices": ["Day", "Sea"]}
    assert mean_score([region]) == 0.9
    (region,) = make_regions(result, model | {"multi_label": False}, parse_label_config(text), 0.0)
    assert region["value"] == {"choices": ["Day"]}


def test_what_the_model_does_not_give_is_not_answered(served: Live) -> None:
    tasks = [{"data": {"photo": address_of(b"no image")}}]
    values = {"tasks": tasks, "label_config": config("BrushLabels")}
    for path in ("/label-studio/classify/predict", "/predict"):
        status, answer = ask(served, path, values)
        assert status == 422
        for word in ("choices", "got brushlabels", "/label-studio/semantic"):
            assert word in answer["error"]
    assert any("brushlabels" in line or "gives" in line for line in served.lines)


def test_a_project_connects(served: Live) -> None:
    text = config("RectangleLabels", ("nonsense",))
    for _ in range(3):
        status, answer = ask(
            served, "/label-studio/detect/setup", {"project": "1.1", "schema": text}
        )
        assert status == 200
    version = served.ask("GET", "/models/detect")[1]["version"]
    assert answer == {"model_version": f"detect-{version}"}
    assert sum("Nonsense" in line for line in served.lines) == 1
    assert ask(served, "/versions", {})[1]["versions"][0].startswith("classify-")
    assert served.ask("GET", "/label-studio/detect/health")[1] == {"status": "UP"}
    assert served.ask("GET", "/health")[1]["status"] == "UP"
    assert ask(served, "/webhook", {"action": "ANNOTATION_CREATED"})[0] == 200
    status, answer = ask(served, "/webhook", {"action": "START_TRAINING"})
    assert status == 422
    assert "muntin" in answer["error"]
    assert ask(served, "/label-studio/nobody/setup", {})[0] == 404


def test_predict_of_the_server_itself(served: Live) -> None:
    """Without a name in the address the first model answers, beside images of other clients."""
    photo = address_of(SCENES[0].read_bytes())
    values = {"tasks": [{"id": 1, "data": {"photo": photo}}], "label_config": config("Choices")}
    status, answer = ask(served, "/predict", values)
    assert status == 200
    assert answer["results"][0]["result"][0]["type"] == "choices"


def test_a_broken_image_fails_its_task_alone(served: Live) -> None:
    good = SCENES[0].read_bytes()
    photos = [address_of(good[:-40]), address_of(good), address_of(b"no image"), None, 3]
    photos += ["http://a.example/b.png", address_of(good)]
    answers = predict(served, "classify", config("Choices"), photos)
    assert [len(each["result"]) for each in answers] == [0, 1, 0, 0, 0, 0, 1]
    assert [("error" in each) for each in answers] == [True, False, True, True, True, True, False]
    assert "nothing is fetched" in answers[5]["error"]
    assert answers[1]["result"] == answers[6]["result"]


def test_more_tasks_than_images_of_a_request(served: Live) -> None:
    photos = [address_of(path.read_bytes()) for path in SCENES] * 15
    answers = predict(served, "classify", config("Choices"), photos)
    assert [each["result"] for each in answers] == [each["result"] for each in answers[:2]] * 15


@pytest.mark.parametrize("photo", ["/etc/passwd", "/photos/2024/ab12"])
def test_a_path_is_no_base64(served: Live, photo: str) -> None:
    values = {"tasks": [{"data": {"photo": photo}}], "label_config": config("Choices")}
    status, answer = ask(served, "/label-studio/classify/predict", values)
    assert (status, "/data/local-files/?d=NAME" in answer["error"]) == (422, True)


@pytest.mark.parametrize("photo", ["http://a.example/b.png", "https://127.0.0.1/x", "s3://a/b.png"])
def test_nothing_is_fetched(served: Live, photo: str) -> None:
    tasks = [{"id": 1, "data": {"photo": photo}}]
    values = {"tasks": tasks, "label_config": config("Choices")}
    status, answer = ask(served, "/label-studio/classify/predict", values)
    assert status == 422
    assert "nothing is fetched" in answer["error"]


@pytest.mark.parametrize(
    ("values", "status", "word"),
    [
        ({"tasks": 3}, 422, "label_config"),
        ({"tasks": 3, "label_config": "<View/>"}, 422, "tasks"),
        ({"tasks": [3], "label_config": "<View/>"}, 422, "tasks"),
        ({"tasks": [{}] * 1001, "label_config": "<View/>"}, 413, "1000"),
        ({"tasks": [{}], "label_config": "<View/>", "params": {"tile": "x"}}, 422, "tile"),
        ([], 422, "object"),
    ],
)
def test_requests_that_make_no_sense(served: Live, values: Any, status: int, word: str) -> None:
    found, answer = ask(served, "/label-studio/detect/predict", values)
    assert found == status
    assert word in answer["error"]


def test_broken_requests_are_answered(served: Live) -> None:
    """A hundred and fifty of them, with values of every kind where others belong."""
    generator = random.Random(5)
    photo = address_of(SCENES[0].read_bytes())
    odd = [*ODD, "/data/local-files/?d=" + "../" * 9, "/data/upload/\0", "<View>", photo[:200]]
    statuses: dict[int, int] = {}
    for number in range(150):
        task = {"id": 1, "data": {"photo": photo}}
        values: dict[str, Any] = {"tasks": [task, {**task, "data": {"photo": "x"}}]}
        values |= {"label_config": config("Choices"), "params": {"threshold": 0.1}, "project": "1"}
        for _ in range(generator.randrange(1, 3)):
            *path, last = generator.choice(places(values))
            holder: Any = values
            for key in path:
                holder = holder[key]
            holder[last] = generator.choice(odd)
        where = generator.choice(["predict", "predict", "predict", "setup", "webhook"])
        status, answer = ask(served, f"/label-studio/classify/{where}", values)
        statuses[status] = statuses.get(status, 0) + 1
        assert status in (200, 413, 422), (number, where, answer)
        assert status == 200 or 0 < len(answer["error"]) < 2000
    assert statuses[200] > 20
    assert statuses[422] > 20
    assert served.ready()


def test_files_below_the_folder(served: Live) -> None:
    name = SCENES[0].relative_to(DATA).as_posix()
    photos = [f"/data/local-files/?d={name}", address_of(SCENES[0].read_bytes())]
    photos += ["/data/local-files/?d=../old/classify/classes.json", "/data/local-files/?d=missing"]
    photos += ["/data/local-files/", "/data/upload/1/x.png", "/etc/passwd", "/data/x?d=" + name]
    photos += ["/data/local-files/?d=scenes", "/data/local-files/?d=/etc/passwd"]
    answers = predict(served, "classify", config("Choices"), photos)
    assert answers[0]["result"] == answers[1]["result"] != []
    assert all(each["error"] and not each["result"] for each in answers[2:])
    assert not any("root" in each["error"] for each in answers[2:])
    said = [
        "leads out",
        "there is no file 'missing'",
        "address of a file",
        "'media/upload/1/x.png'",
    ]
    said += ["/data/local-files/?d=NAME", "address of a file", "no file 'scenes'", "leads out"]
    for each, words in zip(answers[2:], said, strict=True):
        assert words in each["error"]


def test_images_that_are_done_keep_no_place(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    limits = ServeLimits(body_mib=0.1, waiting_mib=0.1, batch=1)
    photos = ["/data/local-files/?d=noise.png"] * 3
    with run(limits=limits, files=str(tmp_path)) as quick:
        quick.worker.models["first"] |= {"class_names": ["cat"], "threshold": 0.5}
        answers = predict(quick, "first", config("RectangleLabels"), photos)
    assert not any("error" in each for each in answers)


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "files", tmp_path / "secret.png"
    (folder / "sub").mkdir(parents=True)
    secret.write_bytes(b"x")
    inside = folder / "sub" / "a b.png"
    inside.write_bytes(b"y")
    (folder / "out.png").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (folder / "in.png").symlink_to(inside)
    os.mkfifo(folder / "pipe.png")
    for name in ("sub/a b.png", "in.png", "./sub//a b.png"):
        found = find_file(folder, name)
        assert found is not None
        assert found.read_bytes() == b"y"
    wrong = ["../secret.png", "sub/../../secret.png", "out.png", "up/secret.png", str(secret), ""]
    wrong += [
        "sub",
        "pipe.png",
        "sub/a b.png\0",
        "..",
        "sub\\..\\..\\secret.png",
        "C:/a",
        "a" * 5000,
    ]
    wrong += ["files/../../secret.png", "/dev/zero", "loop"]
    (folder / "loop").symlink_to(folder / "loop")
    assert [name for name in wrong if find_file(folder, name) is not None] == []
    # A folder that is itself reached by a link.
    (tmp_path / "link").symlink_to(folder)
    assert find_file(tmp_path / "link", "in.png") is not None


def test_a_file_is_no_larger_than_a_body(tmp_path: Path) -> None:
    large = tmp_path / "a.png"
    large.write_bytes(b"x" * 2000)
    assert read_limited(large, ServeLimits()) == b"x" * 2000
    with pytest.raises(RefusedError, match="body_mib") as caught:
        read_limited(large, ServeLimits(body_mib=0.001))
    assert caught.value.status == 413
    with pytest.raises(RefusedError, match="missing"):
        read_limited(tmp_path / "missing", ServeLimits())


@pytest.mark.slow
def test_uploads_and_a_token(tmp_path: Path) -> None:
    """Files that Label Studio was given, and the password that it can send."""
    folder = tmp_path / "media" / "upload" / "1"
    folder.mkdir(parents=True)
    shutil.copy(SCENES[0], folder / "a-b.png")
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    words = [RUNS / "classify", "--files", tmp_path, "--token-file", token]
    photo = {"photo": "/data/upload/1/a-b.png"}
    body = json.dumps({"tasks": [{"data": photo}], "label_config": config("Choices")}).encode()
    with start(*words) as live:
        for given, status in (("any:0123456789abcdef", 200), ("any:wrong", 401), ("", 401)):
            text = base64.b64encode(given.encode()).decode()
            headers = {"Authorization": f"Basic {text}", "Content-Type": "application/json"}
            found, answer, _ = live.ask("POST", "/predict", body, headers)
            assert found == status
            if status == 200:
                assert len(answer["results"][0]["result"]) == 1
