# SPDX-License-Identifier: Apache-2.0
"""What a run takes from the values and the bands of its training images."""

from __future__ import annotations

from dataclasses import replace

from muntin.data.data_config import DataConfig
from muntin.data.entry_images import MeasuredRange
from muntin.training.defaults import Choice
from muntin.zoo.model_zoo import BackboneConfig


def fit_bands(model: BackboneConfig, measured: MeasuredRange) -> Choice[BackboneConfig]:
    """Give the model an input of all bands, unless it has three."""
    if measured.bands == 3 or measured.bands == model.in_chans:
        return Choice(model)
    note = (
        f"the input has {measured.bands} bands, as the images (model.in_chans); of weights for "
        f"{model.in_chans}, the first layer is repeated in turn and scaled by "
        f"{model.in_chans}/{measured.bands}"
    )
    return Choice(replace(model, in_chans=measured.bands), (note,))


def use_measured(data: DataConfig, measured: MeasuredRange, in_chans: int) -> Choice[DataConfig]:
    """Set range, bits and, of bands, mean and standard deviation, unless the user set them."""
    # Weights for three channels were learnt with their own statistics; bands have none yet.
    bits = data.bits or measured.bits
    notes = [measured.note] if measured.note else []
    if bits == 16 or in_chans > 3:
        notes.append(
            "augmentation changes brightness and contrast, and no colours: these are no usual "
            "photographs"
        )
    data = replace(data, range=measured.value_range, bits=bits)
    if in_chans == measured.bands > 3 and not data.mean:
        data = replace(data, mean=measured.mean, std=measured.std)
    return Choice(data, tuple(notes))
