# SPDX-License-Identifier: Apache-2.0
"""What other servers publish about their configurations, as far as bundles use it or could.

Sources:
    triton-inference-server/common@08365ea, protobuf/model_config.proto: names, numbers and types of
    fields and enumerations.
    openvinotoolkit/model_server@033c8e4, src/schema.cpp: the JSON schema of ``config.json``.
    kserve/kserve@00ad1e9, python/kserve/docs/V1beta1PredictorSpec.md and V1beta1ModelSpec.md, and
    Kubernetes' Container and Probe: names of fields.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

# Message: field: (number, type), "*" before the type of a repeated field.
TRITON_MESSAGES = {
    "ModelConfig": {
        "name": (1, "string"), "platform": (2, "string"), "max_batch_size": (4, "int32"),
        "input": (5, "*ModelInput"), "output": (6, "*ModelOutput"),
        "instance_group": (7, "*ModelInstanceGroup"), "default_model_filename": (8, "string"),
        "dynamic_batching": (11, "ModelDynamicBatching"), "backend": (17, "string"),
        "runtime": (25, "string"),
    },
    "ModelInput": {
        "name": (1, "string"), "data_type": (2, "DataType"), "format": (3, "Format"),
        "dims": (4, "*int64"), "is_shape_tensor": (6, "bool"), "allow_ragged_batch": (7, "bool"),
        "optional": (8, "bool"),
    },
    "ModelOutput": {
        "name": (1, "string"), "data_type": (2, "DataType"), "dims": (3, "*int64"),
        "label_filename": (4, "string"), "is_shape_tensor": (6, "bool"),
    },
    "ModelInstanceGroup": {
        "name": (1, "string"), "count": (2, "int32"), "gpus": (3, "*int32"), "kind": (4, "Kind"),
        "profile": (5, "*string"), "passive": (7, "bool"), "host_policy": (9, "string"),
    },
    "ModelQueuePolicy": {
        "timeout_action": (1, "TimeoutAction"), "default_timeout_microseconds": (2, "uint64"),
        "allow_timeout_override": (3, "bool"), "max_queue_size": (4, "uint32"),
    },
    "ModelDynamicBatching": {
        "preferred_batch_size": (1, "*int32"), "max_queue_delay_microseconds": (2, "uint64"),
        "preserve_ordering": (3, "bool"), "priority_levels": (4, "uint64"),
        "default_priority_level": (5, "uint64"), "default_queue_policy": (6, "ModelQueuePolicy"),
    },
}  # fmt: skip
TRITON_NAMES = {
    "DataType": [
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64",
        "TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32",
        "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ],
    "Format": ["FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
    "TimeoutAction": ["REJECT", "DELAY"],
}  # fmt: skip


def parse_triton(text: str) -> Any:
    """The message of a ``config.pbtxt``; what is no field or value of it is an error."""
    numbers = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="model_config.proto", package="inference", syntax="proto3"
    )
    for name, values in TRITON_NAMES.items():
        listed = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            listed.value.add(name=value, number=number)
    for name, fields in TRITON_MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            plain = kind.removeprefix("*")
            label = numbers.LABEL_REPEATED if kind.startswith("*") else numbers.LABEL_OPTIONAL
            made = message.field.add(name=field, number=number, label=label)
            if plain in TRITON_NAMES or plain in TRITON_MESSAGES:
                made.type_name = f".inference.{plain}"
                made.type = numbers.TYPE_ENUM if plain in TRITON_NAMES else numbers.TYPE_MESSAGE
            else:
                made.type = getattr(numbers, f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(text, kind())


OPENVINO_CONFIG = {
    "name": str, "base_path": str, "batch_size": (int, str), "model_version_policy": dict,
    "shape": (dict, str), "nireq": int, "target_device": str, "plugin_config": dict,
    "stateful": bool, "idle_sequence_cleanup": bool, "low_latency_transformation": bool,
    "max_sequence_number": int, "custom_loader_options": dict,
}  # fmt: skip


def check_openvino(config: Any) -> None:
    """Check a ``config.json``: no other keys, those that are required, and their types."""
    allowed = {
        "custom_loader_config_list", "model_config_list", "pipeline_config_list",
        "custom_node_library_config_list",
    }  # fmt: skip
    assert {"model_config_list"} <= config.keys() <= allowed
    for entry in config["model_config_list"]:
        assert entry.keys() == {"config"}
        model = entry["config"]
        assert {"name", "base_path"} <= model.keys() <= OPENVINO_CONFIG.keys()
        for key, value in model.items():
            assert isinstance(value, OPENVINO_CONFIG[key]), key


_PROBE = {
    "httpGet": {"path": str, "port": int, "scheme": str, "host": str}, "periodSeconds": int,
    "failureThreshold": int, "initialDelaySeconds": int, "successThreshold": int,
    "timeoutSeconds": int,
}  # fmt: skip
_AMOUNTS = {"cpu": str, "memory": str}
_CONTAINER = {
    "args": [str], "command": [str], "env": [{"name": str, "value": str}], "image": str,
    "name": str, "livenessProbe": _PROBE, "readinessProbe": _PROBE, "startupProbe": _PROBE,
    "ports": [{"containerPort": int, "protocol": str, "name": str}],
    "resources": {"requests": _AMOUNTS, "limits": _AMOUNTS},
    "securityContext": {
        "runAsNonRoot": bool, "runAsUser": int, "allowPrivilegeEscalation": bool,
        "privileged": bool, "capabilities": {"drop": [str], "add": [str]},
        "readOnlyRootFilesystem": bool,
    },
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}  # fmt: skip
INFERENCE_SERVICE = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations": {"serving.kserve.io/deploymentMode": str}},
    "spec": {
        "predictor": {
            "minReplicas": int, "maxReplicas": int, "containerConcurrency": int, "timeout": int,
            "terminationGracePeriodSeconds": int, "serviceAccountName": str,
            "containers": [_CONTAINER],
            "volumes": [{"name": str, "secret": {"secretName": str}}],
            "model": {
                **_CONTAINER, "modelFormat": {"name": str, "version": str}, "runtime": str,
                "runtimeVersion": str, "protocolVersion": str, "storageUri": str,
            },
        }
    },
}  # fmt: skip


def check_fields(found: Any, schema: Any, where: str = "") -> None:
    """Check that values have no other fields than the schema, of its types."""
    if isinstance(schema, dict):
        assert isinstance(found, dict), where
        for key, value in found.items():
            assert key in schema, f"{where}.{key}"
            check_fields(value, schema[key], f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(found, list), where
        for number, value in enumerate(found):
            check_fields(value, schema[0], f"{where}[{number}]")
    else:
        assert type(found) is schema, f"{where}: {found!r}"
