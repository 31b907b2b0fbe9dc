# SPDX-License-Identifier: Apache-2.0
"""Losses between a student and a teacher, against formulas written out number by number."""

from __future__ import annotations

import math

import pytest
import torch

from muntin.ops.distillation_losses import feature_losses, find_inside, hard_losses, soft_losses

STUDENT = torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.2, -4.0]])
TEACHER = torch.tensor([[0.2, 3.0, -1.0], [2.0, 0.5, 0.4]])


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    parts = [math.exp(value / temperature) for value in row]
    return [part / sum(parts) for part in parts]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def pairs():
    return zip(STUDENT.tolist(), TEACHER.tolist(), strict=True)


def test_hard_is_the_cross_entropy_with_the_first_class():
    wanted = [-math.log(softmax(ours)[theirs.index(max(theirs))]) for ours, theirs in pairs()]
    assert hard_losses(STUDENT, TEACHER).tolist() == pytest.approx(wanted)


def test_hard_decides_each_of_several_labels():
    wanted = [
        sum(-math.log(sigmoid(s) if t > 0 else 1 - sigmoid(s)) for s, t in zip(*row, strict=True))
        / 3
        for row in pairs()
    ]
    assert hard_losses(STUDENT, TEACHER, multi_label=True).tolist() == pytest.approx(wanted, 1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_is_the_divergence_times_temperature_squared(temperature):
    wanted = []
    for ours, theirs in pairs():
        p, q = softmax(theirs, temperature), softmax(ours, temperature)
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        wanted.append(temperature**2 * divergence)
    found = soft_losses(STUDENT, TEACHER, temperature)
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    shifted = soft_losses(TEACHER, TEACHER + 7, temperature)
    assert shifted.tolist() == pytest.approx([0, 0], abs=1e-4)


def test_soft_compares_each_of_several_labels():
    wanted = []
    for ours, theirs in pairs():
        rows = [(sigmoid(t / 2), sigmoid(s / 2)) for s, t in zip(ours, theirs, strict=True)]
        each = [p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) for p, q in rows]
        wanted.append(4 * sum(each) / 3)
    found = soft_losses(STUDENT, TEACHER, 2.0, multi_label=True)
    assert found.tolist() == pytest.approx(wanted, rel=1e-4)


def test_features_are_compared_cell_by_cell_inside_the_image():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 2, 3) * 3, torch.randn(2, 4, 2, 3) * 5 + 2
    inside = torch.tensor([[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]]).bool()
    wanted = []
    for image in range(2):
        cells = []
        for y, x in inside[image].nonzero().tolist():
            values = teacher[image, :, y, x].tolist()
            mean = sum(values) / 4
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 + 1e-5)
            parts = []
            for channel, value in enumerate(values):
                gap = abs(float(student[image, channel, y, x]) - (value - mean) / deviation)
                parts.append(gap**2 / 4 if gap < 2 else gap - 1)
            cells.append(sum(parts) / 4)
        wanted.append(sum(cells) / len(cells))
    assert feature_losses(student, teacher, inside).tolist() == pytest.approx(wanted, rel=1e-5)
    whole = feature_losses(student, teacher)
    assert float(whole[1]) == pytest.approx(wanted[1], rel=1e-5)


def test_maps_of_another_size_are_brought_to_the_cells_of_the_student():
    teacher = torch.randn(1, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    same = torch.nn.functional.interpolate(
        teacher, (4, 4), mode="bilinear", align_corners=False, antialias=True
    )
    student = torch.randn(1, 3, 4, 4)
    assert feature_losses(student, teacher).equal(feature_losses(student, same))
    # A constant map stays one, whatever its size.
    flat = torch.tensor([1.0, 2.0, 6.0])[None, :, None, None].expand(1, 3, 5, 9)
    expected = (flat - 3) / math.sqrt(14 / 3)
    assert float(feature_losses(expected[:, :, :2, :3], flat)) == pytest.approx(0, abs=1e-5)


def test_cells_in_the_padding_are_left_out():
    sizes = torch.tensor([[32, 64], [64, 40]])
    inside = find_inside(sizes, (64, 64), (2, 4))
    assert inside.tolist() == [[[True] * 4, [False] * 4], [[True, True, False, False]] * 2]
