# SPDX-License-Identifier: Apache-2.0
"""What a machine has."""

from __future__ import annotations

import pytest
import torch

from muntin.devices import (
    choose_device,
    choose_precision,
    has_compiler,
    measure_matmul_rate,
    memory_mib,
)
from muntin.errors import ConfigError


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match=r"device.*cpu.*'tpu'"):
        choose_device("tpu")


def test_precision_and_measures():
    assert choose_precision(torch.device("cpu")) in ("fp32", "bf16")
    assert choose_precision(torch.device("meta")) == "fp32"
    assert measure_matmul_rate(torch.float32, seconds=0.01) > 1e6
    assert memory_mib() > 10


@pytest.mark.usefixtures("no_compiler")
def test_compiler():
    assert has_compiler() is False
