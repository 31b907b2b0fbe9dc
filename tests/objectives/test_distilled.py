# SPDX-License-Identifier: Apache-2.0
"""Learning from labels and from a teacher: what is compared with what, and what a teacher sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from muntin.data.classification_transforms import AugmentConfig
from muntin.data.transforms import Preprocessing, normalise
from muntin.errors import ConfigError, RunError, WeightError
from muntin.features import FeatureSpec
from muntin.heads.classification_head import DistilledHead, build_classifier
from muntin.heads.network import Network
from muntin.objectives.distilled_objective import (
    DistilledClasses,
    DistilledFeatures,
    pair_maps,
)
from muntin.objectives.supervised_objective import Supervised
from muntin.objectives.teacher import Teacher
from muntin.objectives.teacher_answer import (
    SharedClasses,
    StoredAnswer,
    TeacherAnswer,
    match_classes,
)
from muntin.ops.distillation_losses import feature_losses, hard_losses, soft_losses
from muntin.samples import Classes
from muntin.tasks.task_table import find_task
from muntin.training.distillation import check_teacher, open_teacher
from muntin.training.run_objective import build_mixup
from muntin.zoo.model_building import model_config
from muntin.zoo.model_zoo import build_backbone
from tests.objectives.test_supervised import CPU, PRE, a_backbone, a_batch, a_task

LABELS = [0, 1, 2, 0]
LOGITS = torch.tensor([[2.0, 0, 1], [0, 1, 3], [1, 0.5, 0], [0, 4, 1]]).half()


def a_network(*, token: bool = False) -> Network:
    torch.manual_seed(0)
    if not token:
        backbone = a_backbone()
        return Network(backbone, build_classifier(backbone, 3)).eval()
    fields = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": (16, 16)}
    backbone = build_backbone(model_config("deit_tiny_distilled_patch16_224", fields))
    return Network(backbone, build_classifier(backbone, 3)).eval()


def found_losses(network, *, kind="hard", columns=(0, 1, 2), logits=LOGITS, mixing=None, **more):
    supervised = Supervised({"head": a_task(LABELS, 3, **more)}, PRE, mixing)
    options = {"kind": kind, "alpha": 0.3, "temperature": 2.0}
    stored = StoredAnswer(logits, SharedClasses((0, 1, 2)[: len(columns)], columns))
    objective = DistilledClasses(supervised, stored, **options)
    torch.manual_seed(5)
    inputs = objective.prepare((a_batch(),), CPU)
    return objective.losses(network, inputs), inputs


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("token", [False, True])
def test_each_classifier_learns_from_its_own_source(kind, token):
    network = a_network(token=token)
    losses, inputs = found_losses(network, kind=kind, label_smoothing=0.1)
    vector = network.features(inputs.inputs["head"].images).vector
    head = network.head
    assert isinstance(head, DistilledHead) == token
    own = head.fc(vector[:, :16]) if token else head.fc(vector)
    taught = head.fc_dist(vector[:, 16:]) if token else own
    labels = F.cross_entropy(own, torch.tensor(LABELS), label_smoothing=0.1, reduction="none")
    logits = LOGITS.float()
    teacher = hard_losses(taught, logits) if kind == "hard" else soft_losses(taught, logits, 2.0)
    torch.testing.assert_close(losses["classes"], 0.7 * labels)
    torch.testing.assert_close(losses["teacher"], 0.3 * teacher)
    if token:
        both = network(inputs.inputs["head"].images)
        torch.testing.assert_close(both, (own + taught) / 2)


def test_a_class_that_the_teacher_does_not_know_is_learnt_from_its_label_alone():
    network = a_network()
    columns, logits = (2, 0), LOGITS[:, :2]
    losses, inputs = found_losses(network, columns=columns, logits=logits)
    images = inputs.inputs["head"].images
    taught = network(images)[:, [2, 0]]
    share = torch.tensor([0.3, 0.0, 0.3, 0.3])  # the label of the second image is class 1
    labels = F.cross_entropy(network(images), torch.tensor(LABELS), reduction="none")
    torch.testing.assert_close(losses["teacher"], share * hard_losses(taught, logits.float()))
    torch.testing.assert_close(losses["classes"], (1 - share) * labels)
    mix = build_mixup(AugmentConfig(mixup=0.8), 3)
    mixed, inputs = found_losses(network, columns=columns, logits=logits, mixing=mix)
    batch = inputs.inputs["head"]
    share = 0.3 * (1 - batch.labels[:, 1])
    teacher = hard_losses(network(batch.images)[:, [2, 0]], logits.float())
    torch.testing.assert_close(mixed["teacher"], share * teacher)


def a_teacher(pre: Preprocessing = PRE, **options) -> Teacher:
    backbone = a_backbone()
    network = Network(backbone, build_classifier(backbone, 3)).eval().requires_grad_(False)
    classes = Classes(names=("A ", "c", "b_x"))
    return Teacher(
        source="t", checksum="", network=network, preprocessing=pre,
        task=find_task("classify"), classes=classes, **options,
    )  # fmt: skip


OTHER = Preprocessing(img_size=(16, 16), mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))


def test_a_teacher_sees_the_mixed_images_with_its_own_normalisation():
    teacher = a_teacher(OTHER)
    mix = build_mixup(AugmentConfig(mixup=0.8), 3)
    supervised = Supervised({"head": a_task(LABELS, 3)}, PRE, mix)
    answer = TeacherAnswer(teacher, PRE, SharedClasses((2, 0, 1), (0, 1, 2)))
    objective = DistilledClasses(supervised, answer, kind="soft", alpha=0.5, temperature=1.0)
    torch.manual_seed(3)
    inputs = objective.prepare((a_batch(),), CPU)
    torch.manual_seed(3)
    pixels, _ = mix(a_batch().images.float(), torch.tensor(LABELS))
    wanted = teacher.network(normalise(pixels, OTHER))[:, [2, 0, 1]]
    torch.testing.assert_close(inputs.answers[0], wanted, rtol=1e-4, atol=1e-4)
    assert not inputs.answers[0].requires_grad


def test_what_a_teacher_sees_has_its_size_and_channels():
    images, sizes = torch.randn(2, 3, 32, 64), torch.tensor([[32, 64], [16, 48]])
    shown, inside = a_teacher().show(images, PRE, sizes)
    assert (tuple(shown.shape), inside.tolist()) == ((2, 3, 16, 16), [[16, 16], [8, 12]])
    # Whole images keep their proportions, at the area of the teacher's images.
    letterbox = replace(PRE, fit="letterbox", img_size=(32, 64))
    for pre, seen_by in ((PRE, letterbox), (replace(letterbox, img_size=(16, 16)), PRE)):
        shown, inside = a_teacher(pre).show(images, seen_by, sizes)
        assert tuple(shown.shape) == (2, 3, 12, 24), "multiples of its stride 4"
        assert inside.tolist() == [[12, 24], [6, 18]]
    grey = replace(PRE, in_chans=1, mean=(0.5,), std=(0.25,))
    three, _ = a_teacher().show(torch.full((1, 1, 16, 16), 0.4), grey, sizes[:1])
    assert three.allclose(torch.full((1, 3, 16, 16), 255 * 0.6))
    one, _ = a_teacher(grey).show(torch.zeros(1, 3, 16, 16), PRE, sizes[:1])
    assert one.allclose(torch.full((1, 1, 16, 16), 255 * 0.5), atol=0.1)


def test_classes_are_matched_by_name():
    teacher = a_teacher()
    shared = match_classes(teacher, Classes(names=("b x", "d", "a")))
    assert shared == ((2, 0), (0, 2))
    several = replace(teacher, classes=Classes(names=("a", "c", "A", "d")))
    assert match_classes(several, Classes(names=("a", "c", "d"))) == ((1, 3), (1, 2))
    with pytest.raises(ConfigError, match=r"got 1.*A , c, b_x.*a, e.*distill\.kind=features"):
        match_classes(teacher, Classes(names=("a", "e")))
    with pytest.raises(ConfigError, match=r"any number.*distill\.kind=features"):
        match_classes(teacher, Classes(names=("a", "c"), multi_label=True))
    for other in (replace(teacher, task=find_task("semantic")), replace(teacher, task=None)):
        with pytest.raises(ConfigError, match=r"classify.*distill\.kind=features"):
            match_classes(other, Classes(names=("a", "c")))


SPEC = FeatureSpec((8, 16, 32, 64), (4, 8, 16, 32))


@pytest.mark.parametrize(
    ("student", "strides", "pairs"),
    [
        (SPEC, (4, 8, 16, 32), [(0, 0), (1, 1), (2, 2), (3, 3)]),
        (SPEC, (14,), [(2, 0)]),
        (SPEC, (8, 16, 32, 64), [(1, 0), (2, 1), (3, 2)]),
        (FeatureSpec((8,), (16,)), (4, 8, 16, 32), [(0, 2)]),
        (FeatureSpec((8, 8), (8, 32)), (16,), [(1, 0)]),
    ],
)
def test_maps_are_paired_by_stride(student, strides, pairs):
    assert pair_maps(student, FeatureSpec((1,) * len(strides), strides)) == pairs


def test_features_are_compared_behind_projections_and_the_student_learns():
    network, teacher = a_network().train(), a_teacher(OTHER)
    supervised = Supervised({"head": a_task(LABELS, 3)}, PRE)
    objective = DistilledFeatures(
        supervised, TeacherAnswer(teacher, PRE, None),
        student=network.spec, alpha=0.25,
    )  # fmt: skip
    inputs = objective.prepare((a_batch(),), CPU)
    losses = objective.losses(network, inputs)
    assert losses["classes"].equal(supervised.losses(network, inputs.inputs)["classes"])
    ours = network.features(inputs.inputs["head"].images).maps
    theirs = teacher.network.features(normalise(a_batch().images, OTHER)).maps
    rows = zip(ours, theirs, objective.projections, strict=True)
    wanted = [feature_losses(projection(a), b) for a, b, projection in rows]
    torch.testing.assert_close(losses["features"], 0.25 * (wanted[0] + wanted[1]) / 2)
    losses["features"].sum().backward()
    trained = [*network.backbone.named_parameters(), *objective.auxiliary.named_parameters()]
    assert not [name for name, p in trained if p.grad is None and "norm." not in name]
    assert all(p.grad is None for p in teacher.network.parameters())


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("swin_nano_patch4_window4_64", "none are known"),
        ("swin_tiney", "swin_tiny"),
        ("runs/none", "run folder"),
    ],
)
def test_a_teacher_must_have_been_trained(source, named):
    with pytest.raises((ConfigError, WeightError), match=rf"--teacher.*{named}"):
        check_teacher(source)
    with pytest.raises((RunError, WeightError), match=named.removeprefix("run ")):
        open_teacher(source)


def test_a_file_of_weights_is_made_a_run_first(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"1")
    with pytest.raises(ConfigError, match=r"muntin convert .*x\.safetensors OUT --to run --model"):
        check_teacher(str(tmp_path / "x.safetensors"))


class _Graph(torch.nn.Module):
    """As an exported file, which reads pixels of one type."""

    reads_pixels = True

    def forward(self, images):
        self.seen = images
        return images.float().mean(dim=(2, 3))


@pytest.mark.parametrize(("bits", "value", "dtype"), [(8, 12.0, "uint8"), (16, 12.25, "float32")])
def test_an_exported_teacher_sees_pixels_of_its_type(bits, value, dtype):
    graph = _Graph()
    teacher = Teacher(
        source="t", checksum="", network=graph, preprocessing=replace(OTHER, bits=bits)
    )
    teacher.logits(torch.full((1, 3, 4, 4), 12.25))
    assert graph.seen.dtype == getattr(torch, dtype)
    assert graph.seen.max() == value
