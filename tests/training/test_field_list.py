# SPDX-License-Identifier: Apache-2.0
"""What `muntin settings` and `muntin heads` list is what --set and --head take."""

import pytest

from muntin.errors import ConfigError
from muntin.tasks.task_table import TASKS
from muntin.training.field_list import list_fields, list_heads
from muntin.training.request import group_settings


@pytest.mark.parametrize("task", [*TASKS, "pretrain"])
def test_every_field_has_a_meaning_and_is_taken(task: str) -> None:
    rows = list_fields(task)
    assert not [row["name"] for row in rows if not row["meaning"]]
    assert len({row["name"] for row in rows}) == len(rows)
    grouped = group_settings(tuple((row["name"], row["default"]) for row in rows))
    assert sum(map(len, grouped.values())) == len(rows)


def test_a_pattern_model_and_head_choose() -> None:
    rows = {row["name"]: row for row in list_fields("classify", "train.learning*")}
    assert rows.keys() == {"train.learning_rate"}
    assert rows["train.learning_rate"]["default"] == "0.0005"
    names = {
        row["name"] for row in list_fields("classify", "model.*", model="vit_tiny_patch16_224")
    }
    assert "model.depth" in names
    assert "model.depths" not in names
    assert list_fields("instance", "head.*", head="mask_rcnn") != list_fields("instance", "head.*")


def test_heads_of_each_task() -> None:
    rows = list_heads()
    assert {row["name"] for row in rows if row["default"] == "small models"} == {
        "dense_small", "light_small", "light_pose_small",
    }  # fmt: skip
    assert {row["task"] for row in list_heads("pose")} == {"pose"}
    assert "keypoint_rcnn" in {row["name"] for row in list_heads("pose")}


def test_pretraining_lists_its_objectives_and_their_fields() -> None:
    rows = list_heads("pretrain")
    assert [(row["name"], row["default"]) for row in rows] == [
        ("mae", "ViT, Hiera models"),
        ("simmim", "Swin, SwinV2 models"),
        ("views", "other models"),
    ]
    for head, field in (("", "mask_unit"), ("simmim", "mask_unit"), ("views", "hidden_dim")):
        assert list_fields("pretrain", f"head.{field}", head=head)
    assert list_fields("pretrain", "head.norm_pix", model="vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: list_fields("classify", "train.nothing"), "nothing"),
        (lambda: list_fields("flowers"), "flowers.*pretrain"),
        (lambda: list_heads("flowers"), "flowers.*pretrain"),
        (lambda: list_heads("classify"), "classify"),
        (lambda: list_fields("detect", head="upernet"), "upernet"),
    ],
)
def test_unknown_names_are_refused(call, words) -> None:
    with pytest.raises(ConfigError, match=words):
        call()
