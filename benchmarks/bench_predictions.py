# SPDX-License-Identifier: Apache-2.0
"""A call on photographs, from JPEG files to results: its parts, and beside other libraries.

"parts" are preparing, network, decoding and drawing of the default small model of each task, at two
sizes and for one object and a hundred. Other names are pairs: muntin and a library's own model with
a backbone of its kind, each from the same decoded images to results in pixels of these, by turns.
Weights are fresh, and detectors return as many objects as are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import record
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

import muntin
from muntin.benching.predictions import make_images, time_parts
from muntin.benching.result_rows import BenchmarkCase, summarize, time_interleaved
from muntin.configs import replace
from muntin.data.decoding import open_image
from muntin.data.transforms import Fit, Preprocessing
from muntin.heads.network import Network
from muntin.inference.batch_invariance import make_batch_invariant
from muntin.prediction.predictor import Predictor
from muntin.samples import Classes, Skeleton
from muntin.shapes import Size
from muntin.tasks.task_table import find_task

SIZES = (480, 640), (1080, 1920)
NANO = "swin_nano_patch4_window4_64"
FITS: dict[str, Fit] = {
    "classify": "center_crop", "detect": "letterbox", "instance": "letterbox",
    "semantic": "sliding_window", "pose": "instance_crop",
}  # fmt: skip
SMALL: dict[str, tuple[str, str | None, Size]] = {
    "classify": (NANO, None, (128, 128)),
    "detect": (NANO, "dense_small", (288, 384)),
    "instance": (NANO, "dense_small", (288, 384)),
    "semantic": (NANO, "light_small", (256, 256)),
    "pose": ("swin_nano_patch4_256", "light_pose_small", (256, 192)),
}
"""Model, head and image size that `muntin train` takes on a CPU without weights."""


def main() -> None:
    """Measure, and write a result for each part."""
    everything = ("parts", *PAIRS)
    options = record.options(__doc__, rounds=5, what=everything)
    for name in options.what:
        if name == "parts":
            rows = [row for task in SMALL for row in time_task(task, options.rounds)]
            record.save("prediction_parts", {"what": "parts of a call", "rows": rows})
        else:
            result = {"what": name, **compare(*PAIRS[name](), options.rounds)}
            record.save(f"prediction_{name}", result, ("transformers",))


def predictor(
    task: str, model: str, head: str | None, size: Size, *, found: int = 100, scale: float = 1.0
) -> Predictor:
    """Fresh weights, and a threshold at which `found` objects come out."""
    torch.manual_seed(0)
    options: dict[str, Any] = {} if head is None else {"head": head}
    network: Network = muntin.create(task, model, num_classes=80, **options)
    head_of: Any = network.head
    if hasattr(head_of, "select"):
        select = replace(head_of.select, {"score_threshold": 0.0, "max_detections": found})
        head_of.config = replace(head_of.config, {"select": select})
    make_batch_invariant(network)  # as `muntin.load` does
    names = tuple(map(str, range(80)))
    classes = Classes(names=names, skeleton=Skeleton(names=names[:17]))
    pre = Preprocessing(
        img_size=size, mean=(0.5,) * 3, std=(0.25,) * 3, fit=FITS[task], scale=scale,
        interpolation="bilinear", padding=1.0,
    )  # fmt: skip
    return Predictor(network, find_task(task, head), classes, pre, device="cpu")


def time_task(task: str, rounds: int) -> list[dict[str, Any]]:
    """Rows for each size of images and number of objects, in batches of 1 and 8."""
    rows = []
    for size in SIZES:
        # What `muntin train` chooses for images of this size.
        scale = min(1.0, round((6 * 256**2 / (size[0] * size[1])) ** 0.5, 2))
        for found in (1, 100) if task in ("detect", "instance") else (1,):
            ours = predictor(task, *SMALL[task], found=found, scale=scale)
            for batch in (1, 8):
                images = make_images(batch, size, ours.preprocessing)
                parts = time_parts(ours, images, rounds=rounds)
                rows += [{"task": task, "size": [*size], "objects": found, **one} for one in parts]
    return rows


Call = Callable[[NDArray[np.uint8]], int]
"""From pixels (H, W, 3) to results, of which it gives the number."""


def compare(ours: Predictor, theirs: dict[str, Call], rounds: int) -> dict[str, Any]:
    """Seconds a call of both, by turns, on one image of 480 x 640."""
    image = open_image(make_images(1, SIZES[0], ours.preprocessing)[0])
    calls: dict[str, Call] = {"muntin": lambda image: len(ours(image)[0]), **theirs}

    def run(call: Call) -> NDArray[np.float32]:
        return np.array([call(image)], np.float32)

    cases = [BenchmarkCase(owner=name, run=partial(run, call)) for name, call in calls.items()]
    timings = time_interleaved(cases, rounds=rounds)
    found = {timing.case.owner: summarize(timing.seconds) for timing in timings}
    return {
        "size": [*SIZES[0]],
        "rows": {
            name: {
                "seconds": seconds,
                "ratio": found["muntin"]["median"] / seconds["median"],
                "found": int(calls[name](image)),
            }
            for name, seconds in found.items()
        },
    }


def torchvision_call(name: str, **options: Any) -> Call:
    """A detector of torchvision that returns up to 100 objects, with its masks pasted."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, box_score_thresh=0.0, **options
    ).eval()

    @torch.inference_mode()
    def call(image: NDArray[np.uint8]) -> int:
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        found = network([pixels])[0]
        return len(found["boxes"])

    return call


def transformers_call(
    network: nn.Module, processor: Callable[..., Any], finish: Callable[[Any, Size], int]
) -> Call:
    """A model of transformers with its own processor; `finish` counts what is found."""
    network.eval()

    @torch.inference_mode()
    def call(image: NDArray[np.uint8]) -> int:
        inputs = processor(image, return_tensors="pt")
        return finish(network(**inputs), (image.shape[0], image.shape[1]))

    return call


def swin_config(**options: Any) -> Any:  # noqa: ANN401 (of transformers)
    """Swin-T with a map of each stage."""
    from transformers import SwinConfig

    return SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24],
        out_features=["stage1", "stage2", "stage3", "stage4"], **options,
    )  # fmt: skip


def upernet() -> tuple[Predictor, dict[str, Call]]:
    """UPerNet on Swin-T, 80 classes, images as they are."""
    from transformers import SegformerImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(backbone_config=swin_config(), num_labels=80, auxiliary_in_channels=384)
    processor = SegformerImageProcessor(do_resize=False)
    finish = processor.post_process_semantic_segmentation
    call = transformers_call(
        UperNetForSemanticSegmentation(config),
        processor,
        lambda output, size: len(finish(output, [size])[0].unique()),
    )
    return predictor("semantic", "swin_tiny", "upernet", (512, 512)), {"transformers": call}


def mask2former() -> tuple[Predictor, dict[str, Call]]:
    """Mask2Former on Swin-T beside Mask R-CNN on Swin-T, 480 x 640."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
    )

    config = Mask2FormerConfig(backbone_config=swin_config(), num_labels=80)
    processor = Mask2FormerImageProcessor(size={"height": 480, "width": 640})
    finish = partial(
        processor.post_process_instance_segmentation, threshold=0.0, return_coco_annotation=True
    )
    call = transformers_call(
        Mask2FormerForUniversalSegmentation(config),
        processor,
        lambda output, size: len(finish(output, target_sizes=[size])[0]["segments_info"]),
    )
    return predictor("instance", "swin_tiny", "mask_rcnn", SIZES[0]), {"transformers": call}


def vitpose() -> tuple[Predictor, dict[str, Call]]:
    """ViTPose-B with the classic decoder; the whole image is the only instance."""
    from transformers import (
        VitPoseBackboneConfig,
        VitPoseConfig,
        VitPoseForPoseEstimation,
        VitPoseImageProcessor,
    )

    body = VitPoseBackboneConfig(out_features=["stage12"])
    config = VitPoseConfig(backbone_config=body, num_labels=17, use_simple_decoder=False)
    network = VitPoseForPoseEstimation(config).eval()
    processor = VitPoseImageProcessor()

    @torch.inference_mode()
    def call(image: NDArray[np.uint8]) -> int:
        boxes = [[[0.0, 0.0, float(image.shape[1]), float(image.shape[0])]]]
        inputs = processor(image, boxes=boxes, return_tensors="pt")
        return len(processor.post_process_pose_estimation(network(**inputs), boxes=boxes)[0])

    return predictor("pose", "vitpose_base", "vitpose", (256, 192)), {"transformers": call}


def beside_torchvision(task: str, ours: tuple[str, str, Size], name: str, **options: Any) -> Any:  # noqa: ANN401 (as the others)
    """A detector of ours, and one of torchvision."""
    return predictor(task, *ours), {f"torchvision {name}": torchvision_call(name, **options)}


AS_IT_IS = {"min_size": 480, "max_size": 640}
PAIRS: dict[str, Callable[[], tuple[Predictor, dict[str, Call]]]] = {
    "detect_small": partial(
        beside_torchvision, "detect", SMALL["detect"], "fasterrcnn_mobilenet_v3_large_320_fpn"
    ),
    "detect_large": partial(
        beside_torchvision, "detect", ("swin_tiny", "faster_rcnn", SIZES[0]),
        "fasterrcnn_resnet50_fpn", **AS_IT_IS,
    ),
    "instance_small": partial(
        beside_torchvision, "instance", SMALL["instance"], "maskrcnn_resnet50_fpn",
        min_size=288, max_size=384,
    ),
    "instance_large": partial(
        beside_torchvision, "instance", ("swin_tiny", "mask_rcnn", SIZES[0]),
        "maskrcnn_resnet50_fpn", **AS_IT_IS,
    ),
    "instance_mask2former": mask2former,
    "semantic_upernet": upernet,
    "pose_vitpose": vitpose,
}  # fmt: skip


if __name__ == "__main__":
    main()
