# SPDX-License-Identifier: Apache-2.0
"""Folders of models as Triton, KServe and the OpenVINO Model Server read them: NAME/1/model.onnx.

Source:
    triton-inference-server/common, protobuf/model_config.proto (fields and enumerations of
    ``config.pbtxt``); openvinotoolkit/model_server, src/schema.cpp (``config.json``);
    kserve/kserve, config/runtimes/kserve-tritonserver.yaml and the fields of InferenceService
    v1beta1. Compared in tests/serving/test_bundles.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muntin.engines.graphs import GraphTensor
from muntin.serving.bundled_model import BundledModel, fill, write_description, write_text
from muntin.serving.serve_settings import ServeLimits
from muntin.staging import format_json

LIMITS = ServeLimits()
MOUNT = "/" + "mnt/models"
"""Where KServe lays the files that ``storageUri`` names, in every container."""

_TYPES = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"}


def write_triton(out: Path, models: Sequence[BundledModel]) -> None:
    """Write a model repository of Triton, a client, and how to start it."""
    for model in models:
        _write_model(out / model.name, model)
    _write_client(out, models, "triton", 8000)


def write_kserve(out: Path, models: Sequence[BundledModel]) -> None:
    """Write services for KServe: Triton with a model repository, and `muntin serve` itself."""
    for model in models:
        _write_model(out / "models" / model.name, model)
    service = _service_name(models)
    # In quotes, as names may hold what YAML reads otherwise.
    places = (f"{model.name}={MOUNT}/{model.name}/1/model.onnx" for model in models)
    lines = "".join(f"      - {_quoted(place)}\n" for place in places)
    write_text(out / "inference-service.yaml", fill("kserve_service", service=service))
    text = fill("kserve_muntin_service", service=service, models=lines)
    write_text(out / "inference-service-muntin.yaml", text)
    _write_client(out, models, "kserve", 80, service=service)


def write_openvino(out: Path, models: Sequence[BundledModel]) -> None:
    """Write models and ``config.json`` of the OpenVINO Model Server."""
    for model in models:
        model.copy(out / model.name / "1", "model")
        write_description(model, out / model.name)
    configs = [
        {
            "config": {
                "name": model.name,
                "base_path": f"/models/{model.name}",
                "target_device": "CPU",
                "plugin_config": {
                    "PERFORMANCE_HINT": "THROUGHPUT",
                    # Also on machines where bfloat16 would be faster: the file was verified so.
                    "INFERENCE_PRECISION_HINT": _precision(model),
                },
            }
        }
        for model in models
    ]
    write_text(out / "config.json", format_json({"model_config_list": configs}) + "\n")
    _write_client(out, models, "openvino_model_server", 8000)


def _precision(model: BundledModel) -> str:
    return "bf16" if model.run.note.precision == "bf16" else "f32"


def _write_client(
    out: Path, models: Sequence[BundledModel], kind: str, port: int, **more: object
) -> None:
    write_text(out / "client.py", fill("client"))
    write_text(out / "README.md", fill(kind, name=models[0].name, port=port, **more))


def _write_model(folder: Path, model: BundledModel) -> None:
    model.copy(folder / "1", "model")
    write_description(model, folder)
    write_text(folder / "config.pbtxt", "\n".join(_config_lines(_triton_config(model))) + "\n")


def _triton_config(model: BundledModel) -> dict[str, Any]:
    """The message ModelConfig; words are names of enumerations, other text is in quotes."""
    inputs, outputs = model.tensors
    batched = model.any_batch
    config: dict[str, Any] = {
        "name": _quoted(model.name),
        "platform": _quoted("onnxruntime_onnx"),
        "max_batch_size": LIMITS.batch if batched else 0,
        "input": [_tensor(one, batched) for one in inputs],
        "output": [_tensor(one, batched) for one in outputs],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
    }
    config["input"][0]["format"] = "FORMAT_NCHW"
    if model.run.task.kind == "classification":
        for output in config["output"]:
            output["label_filename"] = _quoted("labels.txt")
    if batched:
        config["dynamic_batching"] = {
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": int(LIMITS.timeout * 1e6),
                "allow_timeout_override": "true",
                "max_queue_size": LIMITS.waiting_images,
            }
        }
    return config


def _tensor(tensor: GraphTensor, batched: bool) -> dict[str, Any]:
    kind = _TYPES.get(tensor.dtype, tensor.dtype.upper())
    return {
        "name": _quoted(tensor.name),
        "data_type": f"TYPE_{kind}",
        "dims": [*tensor.shape[batched:]],
    }


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _config_lines(message: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Write a message in the text format of Protocol Buffers."""
    for name, value in message.items():
        several = value if isinstance(value, list) and isinstance(value[0], dict) else [value]
        for one in several:
            if isinstance(one, dict):
                yield f"{indent}{name} {{"
                yield from _config_lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {one}"


def _service_name(models: Sequence[BundledModel]) -> str:
    """A name that Kubernetes takes: small letters, digits and dashes, a letter first."""
    text = models[0].name.lower() if len(models) == 1 else "models"
    plain = re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:40].rstrip("-")
    return f"muntin-{plain}" if plain else "muntin"
