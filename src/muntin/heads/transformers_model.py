# SPDX-License-Identifier: Apache-2.0
"""Models of the transformers library by their `model_type`: which there are, and how to build them.

Source:
    transformers 5.24: the modelling file and the image processor of each model.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from muntin.errors import ConfigError, WeightError, missing_extra, shorten, unknown_name
from muntin.untrusted import check_budget, parse_json, reading

_NAME = "transformers"
TRANSFORMERS = "hf:"
"""Prefix of names of models of the transformers library."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersModel:
    """What differs between whole models of the library.

    Attributes:
        model_class: The library's class.
        answers: Boxes of queries, maps of classes, masks of queries, or boxes and masks.
        model_type: That of the library, where it is the name of another model.
        softmax: Whether scores are a softmax over the classes and "none", of which the library
            takes the best of each query; otherwise each class has a sigmoid.
        reads_mask: Whether it is told which pixels are padding: boxes are relative to the image
            inside, otherwise to all pixels.
        stride: Of maps and masks, in pixels.
        rescales: Whether images stay in [0, 1] by default.
        limit: Most pairs of query and class that are answers; 0: as many as there are queries.
    """

    model_class: str
    answers: Literal["boxes", "maps", "masks", "boxes and masks"] = "boxes"
    model_type: str = ""
    softmax: bool = False
    reads_mask: bool = False
    stride: int = 4
    rescales: bool = False
    limit: int = 0


_DETR = functools.partial(TransformersModel, reads_mask=True)
_REAL_TIME = functools.partial(TransformersModel, rescales=True)
ARCHITECTURES: dict[str, TransformersModel] = {
    "conditional_detr": _DETR(model_class="ConditionalDetrForObjectDetection", limit=100),
    "d_fine": _REAL_TIME(model_class="DFineForObjectDetection"),
    "deformable_detr": _DETR(model_class="DeformableDetrForObjectDetection", limit=100),
    "detr": _DETR(model_class="DetrForObjectDetection", softmax=True),
    "lw_detr": TransformersModel(model_class="LwDetrForObjectDetection", limit=100),
    "rf_detr": TransformersModel(model_class="RfDetrForObjectDetection"),
    "rf_detr_instance": TransformersModel(
        model_class="RfDetrForInstanceSegmentation", answers="boxes and masks", model_type="rf_detr"
    ),
    "rt_detr": _REAL_TIME(model_class="RTDetrForObjectDetection"),
    "rt_detr_v2": _REAL_TIME(model_class="RTDetrV2ForObjectDetection"),
    "yolos": TransformersModel(model_class="YolosForObjectDetection", softmax=True),
    "dpt": TransformersModel(model_class="DPTForSemanticSegmentation", answers="maps", stride=1),
    "segformer": TransformersModel(model_class="SegformerForSemanticSegmentation", answers="maps"),
    "upernet": TransformersModel(
        model_class="UperNetForSemanticSegmentation", answers="maps", stride=1
    ),
    "eomt": TransformersModel(
        model_class="EomtForUniversalSegmentation", answers="masks", softmax=True
    ),
    "eomt_dinov3": TransformersModel(
        model_class="EomtDinov3ForUniversalSegmentation", answers="masks", softmax=True
    ),
    "mask2former": TransformersModel(
        model_class="Mask2FormerForUniversalSegmentation", answers="masks"
    ),
    "maskformer": TransformersModel(
        model_class="MaskFormerForInstanceSegmentation", answers="masks"
    ),
}
"""The models that can be run, by their `model_type`, or a longer name where that has several."""

_RESNET_18 = {
    "backbone_config": {
        "model_type": "rt_detr_resnet", "layer_type": "basic", "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64,
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_in_channels": [128, 256, 512], "decoder_layers": 3, "hidden_expansion": 0.5,
}  # fmt: skip
SMALL_SETTINGS: dict[str, dict[str, Any]] = {"rt_detr": _RESNET_18, "rt_detr_v2": _RESNET_18}
"""Settings of families built anew, where the smallest published one differs from the default."""

_PROCESSORS = (
    "ConditionalDetr", "DeformableDetr", "Detr", "DPT", "Eomt", "Mask2Former", "MaskFormer",
    "RfDetr", "RTDetr", "Segformer", "Yolos",
)  # fmt: skip
"""Image processors whose steps are known here, by their names without ending."""

_DROPPED = (
    "architectures", "auto_map", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "dtype", "torch_dtype", "id2label", "label2id", "num_labels",
    "quantization_config", "transformers_version", "_name_or_path", "use_pretrained_backbone",
    "return_dict", "output_attentions", "output_hidden_states", "torchscript", "use_kernels",
)  # fmt: skip
"""Fields that are no part of an architecture, name code, or let the library download."""


def find_architecture(name: str) -> TransformersModel:
    """Look up a model by its `model_type`."""
    if name not in ARCHITECTURES:
        hint = f"Models of the transformers library that can be run: {', '.join(ARCHITECTURES)}."
        raise ConfigError(unknown_name("hf model", name, ARCHITECTURES, hint=hint))
    return ARCHITECTURES[name]


def name_architecture(values: Mapping[str, Any]) -> str:
    """Name the model of a ``config.json``; its `model_type` where that cannot be run."""
    model_type = str(values.get("model_type"))
    for name, row in ARCHITECTURES.items():
        if row.model_type == model_type and row.model_class in (values.get("architectures") or ()):
            return name
    return model_type


def clean_settings(values: Any) -> Any:  # noqa: ANN401 (JSON)
    """Keep the fields of a ``config.json`` that state the architecture, in inner ones too."""
    if isinstance(values, list):
        return [clean_settings(value) for value in values]
    if not isinstance(values, Mapping):
        return values
    return {key: clean_settings(value) for key, value in values.items() if key not in _DROPPED}


def build_model(name: str, settings: str, num_classes: int) -> nn.Module:
    """Build a model of the library with random weights; on the meta device inside its context.

    Raises:
        MissingExtra: The library is not installed.
        ConfigError: The library has no such model, or cannot build it from these settings.
    """
    kind = _model_class(name)
    where = f"the settings of {TRANSFORMERS}{name}"
    with reading(where, "Restore the config.json that they came from.", ConfigError):
        return _make(kind, settings, num_classes)


def _make(kind: Any, settings: str, num_classes: int) -> nn.Module:  # noqa: ANN401 (of the library)
    from huggingface_hub.errors import StrictDataclassError  # comes with the library

    values = clean_settings(parse_json(settings))
    try:
        config = kind.config_class.from_dict({**values, "num_labels": num_classes})
        model: nn.Module = kind(config)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return model


def _model_class(name: str) -> Any:  # noqa: ANN401 (of the library)
    row, library = find_architecture(name), _library()
    if not hasattr(library, row.model_class):
        message = (
            f"{TRANSFORMERS}{name} needs a transformers library with {row.model_class}, got "
            f"version {library.__version__}. Update it: pip install -U transformers"
        )
        raise ConfigError(message)
    kind = getattr(library, row.model_class)
    # Tracing makes `len` of a tensor a constant, and with it the size of a batch.
    names = vars(sys.modules[kind.__module__])
    names["len"] = _length
    if "torch_compilable_check" in names:  # of sizes, which a graph has one of
        names["torch_compilable_check"] = _check
    return kind


def _check(*arguments: Any, **options: Any) -> None:
    if not torch.compiler.is_exporting():
        _library().utils.torch_compilable_check(*arguments, **options)


def _length(values: Any) -> Any:  # noqa: ANN401 (what has a length; symbolic in a graph)
    return values.shape[0] if isinstance(values, Tensor) else len(values)


def _library() -> Any:  # noqa: ANN401 (a module)
    if importlib.util.find_spec(_NAME) is None:
        raise missing_extra(_NAME, "hf", f"A model named {TRANSFORMERS}...")
    import transformers

    return transformers


def read_processor(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Complete the fields of a ``preprocessor_config.json`` by the defaults of its processor.

    Raises:
        ConfigError: The processor, or a field of it, is not known.
    """
    named = str(values.get("image_processor_type") or values.get("feature_extractor_type"))
    stem = re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", named)
    if stem not in _PROCESSORS:
        message = f"{unknown_name('image processor', named, _PROCESSORS)} It is that of {where}."
        raise ConfigError(message)
    kind = getattr(_library(), f"{stem}ImageProcessor")
    usual = kind().to_dict()
    strange = {
        key: value
        for key, value in values.items()
        if key not in usual and value not in (None, False) and not _HARMLESS.fullmatch(key)
    }
    if strange:
        message = (
            f"fields in {where} must be those of {kind.__name__}, got {strange}. Remove them if "
            f"they change no pixels."
        )
        raise ConfigError(message)
    with reading(where, "Download it again.", ConfigError):
        return dict(kind(**values).to_dict())


_HARMLESS = re.compile(
    r"(image_processor|feature_extractor)_type|processor_class|use_fast|max_size|format|"
    r"num_labels|ignore_index|_valid_processor_keys|pad_size|reduce_labels|do_reduce_labels|"
    r"do_convert_annotations|pad_and_return_pixel_mask|size_divisibility|annotation_format|"
    r"size_divisor|do_pad|ensure_multiple_of|keep_aspect_ratio|do_center_crop|crop_size"
)


def class_rows(
    model: nn.Module, name: str, settings: str, num_classes: int
) -> dict[str, tuple[int, int]]:
    """Layers with a row for each class, found by building the model for one class more.

    Path of the layer -> rows per class, and rows besides those.
    """
    with torch.device("meta"):
        other = build_model(name, settings, num_classes + 1).state_dict()
    rows = {}
    for key, tensor in model.state_dict().items():
        if other[key].shape != tensor.shape:
            # Some have rows besides, such as that of "no object".
            step = len(other[key]) - len(tensor)
            rows[key.rpartition(".")[0]] = (step, len(tensor) - step * num_classes)
    return rows


def read_state(
    name: str, settings: str, num_classes: int, state: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Convert weights in the names of any version of the library to those of this one.

    Raises:
        WeightError: They are not all of the model's, or of another shape.
    """
    kind, advice = _model_class(name), "Download the folder again, all files of one model."
    with reading(where, advice, WeightError):
        with torch.device("meta"):
            # Without memory: what the settings ask for is compared with the limit first.
            shell = _make(kind, settings, num_classes)
        check_budget(4.0 * sum(one.numel() for one in shell.state_dict().values()), where)
        with _silent():
            model, info = kind.from_pretrained(
                None,
                config=shell.config,
                state_dict=dict(state),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
            )
        lacking = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
        if lacking:
            message = (
                f"it must have all weights of its config.json, got none for {shorten(lacking)}"
            )
            raise ValueError(message)
        return dict(model.state_dict())


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the library's bars and warnings: what they say is in our errors."""
    log = _library().utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def state_settings(values: Mapping[str, Any]) -> str:
    """Write fields of a ``config.json`` as the settings of a config."""
    return json.dumps(clean_settings(values), sort_keys=True)
