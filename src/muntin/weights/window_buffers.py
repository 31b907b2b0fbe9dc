# SPDX-License-Identifier: Apache-2.0
"""Windows of a Swin V2 that a file records in buffers, which no parameter takes.

The position bias of a Swin V2 is a network of the offset, so that weights of any window fit in
shape. The buffer `relative_coords_table` (1, 2M-1, 2M-1, 2) holds the offsets that they were
trained with: it tells the window M of a stage, and from its largest value the window that the
offsets are relative to. Files of Microsoft, torchvision, OpenMMLab and older ones of transformers
have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.ops.positions import SIZE_RULES, SizeRuleName, log_offsets
from muntin.ops.windows import WindowLayout, lay_out
from muntin.shapes import Size
from muntin.weights.key_maps import RenamedState, Row, fill, match, square_index

_TABLE = "relative_coords_table"
_SCALE = "layers.{i}.blocks.{j}.attn.logit_scale"


def read_windows(reading: RenamedState, state: Mapping[str, Tensor]) -> dict[int, tuple[int, int]]:
    """Read the window of each stage and the one that its offsets are relative to, in tokens."""
    ours = dict(reading.pairs)
    found: dict[int, tuple[int, int]] = {}
    for key in reading.ignored:
        place = match(_SCALE, ours.get(key.removesuffix(_TABLE) + "logit_scale", ""))
        if not key.endswith(_TABLE) or place is None or state[key].ndim != 4:
            continue
        table = state[key]
        side = (table.shape[1] + 1) // 2
        # The inverse of `log_offsets`, at the largest offset: side - 1.
        largest = 2.0 ** (3 * float(table.abs().max())) - 1
        reference = 1 + round(8 * (side - 1) / largest) if largest > 0 else side
        found[int(place["i"])] = (side, reference)
    return found


def built_window(config: SwinConfig, stage: int, rule: SizeRuleName) -> Size:
    """Actual window of a stage at `img_size`, (height, width) in tokens."""
    return _lay_out_stage(config, stage, rule).window


def _lay_out_stage(config: SwinConfig, stage: int, rule: SizeRuleName) -> WindowLayout:
    """Windows of the shifted blocks of a stage at `img_size`."""
    height, width = config.grid
    for _ in range(stage):
        height, width = -(-height // 2), -(-width // 2)
    side = config.windows[stage]
    return lay_out((height, width), (side, side), True, SIZE_RULES[rule])


def differing_stages(config: SwinConfig, theirs: SwinConfig, rule: SizeRuleName) -> list[int]:
    """List the stages that another config and rule cut into other windows at `img_size`."""
    pairs = [
        (_lay_out_stage(config, stage, config.size_rule), _lay_out_stage(theirs, stage, rule))
        for stage in range(len(config.depths))
    ]
    return [
        stage
        for stage, (one, other) in enumerate(pairs)
        if (one.window, one.shift, one.pad) != (other.window, other.shift, other.pad)
    ]


def shrink_windows(config: SwinV2Config) -> SwinV2Config:
    """Return the config with a window a stage that is not larger than the map at `img_size`."""
    stages = range(len(config.depths))
    sides = tuple(min(built_window(config, stage, "muntin")) for stage in stages)
    return config if sides == config.windows else replace(config, window_size=sides)


def fit_windows(
    config: SwinV2Config, recorded: Mapping[int, tuple[int, int]], rule: SizeRuleName
) -> tuple[SwinV2Config, list[int]]:
    """Return the config with the recorded windows, and the stages whose window is another one.

    A stage takes the window of the file where it is that which the model's own window becomes on
    the map at `img_size`, but `rule` would not make it so. Where it is another window, the model's
    stays, and offsets are relative to the window of the file.
    """
    windows, references, others = list(config.windows), list(config.pretrained_windows), []
    for stage, (side, _) in recorded.items():
        if side == built_window(config, stage, rule)[0]:
            continue
        if side == built_window(config, stage, "muntin")[0]:
            windows[stage] = side
        else:
            others.append(stage)
    if windows != list(config.windows):
        config = replace(config, window_size=tuple(windows))
    for stage, (_, reference) in recorded.items():
        built = set(built_window(config, stage, rule))
        if {references[stage]} != {reference} and (references[stage] or built != {reference}):
            references[stage] = reference
    return replace(config, pretrained_windows=tuple(references)), others


def window_rows(theirs: str, config: SwinV2Config, flat: bool = False) -> tuple[Row, ...]:
    """Rows of the buffers of every stage, written from the config and ignored when reading.

    `theirs` is their prefix, in which i is the number of a stage.
    """
    rows = []
    for stage, (side, reference) in enumerate(
        zip(config.windows, config.pretrained_windows, strict=True)
    ):
        prefix, marker = (
            "{j}".join(fill(part, {"i": str(stage)}) for part in name.split("{j}"))
            for name in (theirs, _SCALE)
        )
        scaled_by = (reference or side,) * 2
        offsets = log_offsets((side, side), scaled_by).view(1, 2 * side - 1, 2 * side - 1, 2)
        index = square_index(offsets[0, ..., 0].reshape(-1, 1))
        index = index.flatten() if flat else index
        rows += [
            Row((prefix + _TABLE,), marker, derive=_constant(offsets)),
            Row((prefix + "relative_position_index",), marker, derive=_constant(index)),
        ]
    return tuple(rows)


def _constant(tensor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: tensor
