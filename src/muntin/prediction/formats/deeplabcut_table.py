# SPDX-License-Identifier: Apache-2.0
"""Tables of poses as DeepLabCut writes its predictions."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from muntin.prediction.formats.items import Answers, FormatContext, open_text


def write_poses(answers: Answers, places: Sequence[Path], context: FormatContext) -> None:
    """Write poses, one row an image or frame: x, y and likelihood of each keypoint, in pixels.

    If an image has several instances, a row "individuals" numbers them: by their track in a video,
    else independently in each. Cells of missing instances are empty. Rows are named by the paths of
    images, as seen from the table, or the numbers of frames.
    """
    names: Sequence[str] = ()
    individuals = {1}
    for answer in answers():
        names = answer["keypoint_names"]
        poses = enumerate(answer["poses"], 1)
        individuals |= {pose.get("track", number) for number, pose in poses}
    columns = [
        (f"individual{one}", name, axis)
        for one in sorted(individuals)
        for name in names
        for axis in ("x", "y", "likelihood")
    ]
    with open_text(places[0]) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["scorer", *(context.scorer for _ in columns)])
        if len(individuals) > 1:
            writer.writerow(["individuals", *(person for person, _, _ in columns)])
        writer.writerow(["bodyparts", *(name for _, name, _ in columns)])
        writer.writerow(["coords", *(axis for _, _, axis in columns)])
        for answer in answers():
            found = {
                pose.get("track", number): pose["keypoints"]
                for number, pose in enumerate(answer["poses"], 1)
            }
            missing = [[""] * 3] * len(names)
            points = chain.from_iterable(found.get(one, missing) for one in sorted(individuals))
            cells = [f"{v:.3f}" if v != "" else "" for point in points for v in point]
            writer.writerow([answer.get("frame", context.seen_from_here(answer["path"])), *cells])
