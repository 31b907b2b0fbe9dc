# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Write results as tables into README.md and docs/reference/numbers.md, between markers.

``--check`` writes nothing and fails if a table differs from the results.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from gpu import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "reference" / "numbers.md")
FEATURED = (
    "CIFAR-10",
    "bccd",
    "nuclei",
    "dubai",
    "mirror_mouse",
    "Swin-T inference",
    "swin_tiny, training",
    "swin_tiny, memory",
    "Plans",
    "swin_tiny, data",
    "Cost per pixel",
    "GPU",
    "Mask R-CNN, Swin-T",
    "Tiling",
)
"""Prefixes of rows shown in the README; the page of numbers has all rows."""
BEGIN, END = "<!-- numbers: made by benchmarks/report.py -->", "<!-- end of numbers -->"


def newest(topic: str) -> tuple[str, dict[str, Any]] | None:
    """Name and content of the newest result of a topic."""
    paths = sorted(p for p in RESULTS.glob("*.json") if p.stem.split("_", 2)[2:] == [topic])
    return (paths[-1].name, json.loads(paths[-1].read_text(encoding="utf-8"))) if paths else None


def rows() -> list[tuple[str, str, str, str]]:
    """Rows of (benchmark, result, comparison, file)."""
    table = []
    if found := newest("cifar10"):
        name, result = found
        minutes = result["wall_seconds"] / 60
        table.append(
            (
                f"CIFAR-10 (JPEG) from scratch, `{result['muntin_command']}`, test top-1",
                f"{100 * result['test']['top1']:.1f} %",
                f"{minutes:.1f} minutes of wall time in total; {result['epochs']} epochs",
                name,
            )
        )
    if found := newest("loading"):
        name, result = found
        bare = result["contestants"]["bare and copied"]["seconds"]["median"]
        for contestant, row in result["contestants"].items():
            seconds, extra = row["seconds"], row["extra_mib"]["median"] / result["file_mib"]
            table.append(
                (
                    f"Loading swin_base from safetensors: {contestant}",
                    f"{seconds['median']:.2f} s ({seconds['min']:.2f}-{seconds['max']:.2f})",
                    f"{seconds['median'] / bare:.2f} x bare and copied; extra memory "
                    f"{extra:.2f} x the file",
                    name,
                )
            )
    table += detection_rows()
    table += semantic_rows()
    table += pose_rows()
    table += inference_rows()
    table += precision_rows()
    table += peer_rows()
    table += plan_rows()
    table += gpu_rows()
    if found := newest("startup"):
        name, result = found
        for what, seconds in result["seconds"].items():
            table.append((f"Start: {what}", f"{seconds['median']:.3f} s", "", name))
    return table


def detection_rows() -> list[tuple[str, str, str, str]]:
    """Detectors: accuracy from scratch, cost, tiles."""
    table = []
    for topic, figure in (("detection_bccd", "box_ap50"), ("detection_nuclei", "mask_ap50")):
        if found := newest(topic):
            name, result = found
            for contestant, row in result.items():
                if isinstance(row, dict) and "test" in row:
                    table.append(
                        (
                            f"{topic.partition('_')[2]} from scratch, "
                            f"{result['minutes']:g} minutes: {contestant}",
                            f"{figure.replace('_', ' ').upper()} {row['test'][figure]:.3f}",
                            f"AP {row['test'][figure.removesuffix('50')]:.3f}; "
                            f"{row['epochs']} epochs",
                            name,
                        )
                    )
    if found := newest("detector_cost"):
        name, result = found
        for what, row in result["rows"].items():
            seconds, ratio = row["seconds"], row["ratio_to_torchvision"]
            table.append(
                (
                    f"Mask R-CNN, Swin-T, {result['size']}: {what}",
                    f"{seconds['median']:.2f} s ({seconds['min']:.2f}-{seconds['max']:.2f})",
                    f"{ratio['median']:.2f} x the time of torchvision's",
                    name,
                )
            )
    if found := newest("memorise"):
        name, result = found
        table.append(
            (
                f"Overfitting 20 photographs: {result['head']}",
                f"box AP50 {result['box_ap50']:.3f}, mask AP50 {result['mask_ap50']:.3f}",
                f"{result['epochs']} epochs at {result['settings']['img_size']} pixels",
                name,
            )
        )
    if found := newest("tiling"):
        name, result = found
        for row in result["rows"]:
            seconds, peak = row["seconds"], row["peak_mib"]
            table.append(
                (
                    f"Instance segmentation in tiles, {row['size'][1]} x {row['size'][0]} pixels",
                    f"{seconds['median']:.1f} s ({seconds['min']:.1f}-{seconds['max']:.1f})",
                    f"peak of {peak['max']:.0f} MiB resident; "
                    f"{seconds['median'] / row['megapixels']:.2f} s per megapixel",
                    name,
                )
            )
    return table


def semantic_rows() -> list[tuple[str, str, str, str]]:
    """Semantic segmentation: accuracy from scratch, cost, large images."""
    table = []
    if found := newest("semantic_dubai"):
        name, result = found
        for contestant, row in result.items():
            if isinstance(row, dict) and "test" in row:
                table.append(
                    (
                        f"dubai_aerial from scratch, {result['minutes']:g} minutes: {contestant}",
                        f"mIoU {row['test']['miou']:.3f}",
                        f"pixel accuracy {row['test']['pixel_accuracy']:.3f}",
                        name,
                    )
                )
        windows = result["muntin"]["windows"]
        table.append(
            (
                "dubai_aerial, test images in sliding windows",
                f"mIoU {windows['miou_in_windows']:.3f}",
                f"{windows['miou_at_once']:.3f} for whole images; {windows['same_pixels']:.1%} of "
                f"the pixels have the same class",
                name,
            )
        )
    if found := newest("segmenter_cost"):
        name, result = found
        for contestant, row in result["rows"].items():
            memory, seconds = row["activation_mib"], row["seconds"]
            table.append(
                (
                    f"Training step of UPerNet, Swin-T, 150 classes, 2 x 512 x 512: {contestant}",
                    f"{memory['median']:.0f} MiB of activations "
                    f"({memory['min']:.0f}-{memory['max']:.0f}), {seconds['median']:.1f} s",
                    f"{row['activation_ratio']['median']:.2f} x the memory, "
                    f"{row['time_ratio']['median']:.2f} x the time of transformers",
                    name,
                )
            )
    if found := newest("large_maps"):
        name, result = found
        high, wide = result["size"]
        table.append(
            (
                f"Synthetic dataset of two classes, `{result['muntin_command']}`",
                f"mIoU {result['miou']:.3f}",
                f"{result['train_seconds']:.0f} s of wall time",
                name,
            )
        )
        table.append(
            (
                "The same on scenes with occlusion",
                f"mIoU {result['miou_scenes']:.3f}",
                "",
                name,
            )
        )
        windows = result["windows"]
        table.append(
            (
                f"Synthetic dataset of two classes, images of {windows['size'][1]} x "
                f"{windows['size'][0]} in windows of {windows['window']}",
                f"mIoU {windows['miou in windows']:.3f}",
                f"{windows['miou at once']:.3f} for whole images; "
                f"{windows['same_pixels']['median']:.1%} of the pixels have the same class",
                name,
            )
        )
        table.append(
            (
                f"Semantic segmentation of {wide} x {high} pixels",
                f"peak of {result['peak_mib']['max']:.0f} MiB resident",
                f"{result['seconds']['median']:.0f} s",
                name,
            )
        )
    return table


def pose_rows() -> list[tuple[str, str, str, str]]:
    """Keypoints: accuracy from scratch, overfitting, and cost of crops."""
    table = []
    if found := newest("pose_mouse"):
        name, result = found
        for contestant, row in result.items():
            if isinstance(row, dict) and "test" in row:
                test = row["test"]
                table.append(
                    (
                        f"mirror_mouse_pose from scratch, {result['minutes']:g} minutes: "
                        f"{contestant}",
                        f"mean error {test['mean_pixel_error']:.2f} px, "
                        f"PCK at 2 % {test['pck']:.3f}",
                        f"median {test['median_pixel_error']:.2f} px",
                        name,
                    )
                )
        crops = result["crops"]
        table.append(
            (
                f"Keypoints of {crops['crops']:,} crops",
                f"{crops['seconds']:.1f} s",
                f"{crops['in_network']:.0%} of it in the network",
                name,
            )
        )
    if found := newest("pose_memorise"):
        name, result = found
        table.append(
            (
                "Overfitting 16 persons in photographs",
                f"OKS AP {result['oks_ap']:.3f}",
                f"{result['epochs']} epochs",
                name,
            )
        )
    return table


def inference_rows() -> list[tuple[str, str, str, str]]:
    """Images per second of muntin's best and the peers' best engine in each precision."""
    table = []
    if found := newest("inference"):
        name, result = found
        for part, what in (("throughput", "batch 8"), ("latency", "batch 1")):
            measured = result[part]
            high, wide = measured["img_size"]
            for precision in ("fp32", "bf16", "int8"):
                ours, theirs = (
                    max(
                        (
                            row
                            for row in measured["contestants"]
                            if row["precision"] == precision
                            and row["rival"] is rival
                            and not row.get("aside")
                        ),
                        key=lambda row: row["images_per_s"]["median"],
                    )
                    for rival in (False, True)
                )
                rate, other = (row["images_per_s"]["median"] for row in (ours, theirs))
                table.append(
                    (
                        f"Swin-T inference, {high} x {wide}, {what}, {precision}: {ours['name']}",
                        f"{rate:.1f} images/s, {ours['of_ceiling']:.0%} of the machine's limit",
                        f"{theirs['name']} {other:.1f} images/s ({rate / other:.2f}x)",
                        name,
                    )
                )
    return table


def peer_rows() -> list[tuple[str, str, str, str]]:
    """Training, memory, loading and attention against the best peer; cost per pixel."""
    table = []
    measures = (
        ("training", "images_per_s", "images/s", max),
        ("memory", "peak_mib", "MiB peak", min),
        ("data", "images_per_s", "images/s", max),
        ("attention", "ms", "ms", min),
    )
    for kind, key, unit, best in measures:
        if found := newest(f"peers_{kind}"):
            name, result = found
            for group in _groups(result["contestants"]):
                ours, theirs = (
                    best(
                        (row for row in group if row["rival"] is rival),
                        key=lambda row: row[key]["median"],
                    )
                    for rival in (False, True)
                )
                value, other = (row[key]["median"] for row in (ours, theirs))
                ratio = value / other if best is max else other / value
                what = ", ".join(
                    f"{field} {ours[field]}"
                    for field in ("stage", "work", "workers", "precision")
                    if field in ours
                )
                digits = 2 if value < 10 else 1 if value < 100 else 0
                table.append(
                    (
                        f"{result['model']}, {kind}: {what}: {ours['name']}",
                        f"{value:.{digits}f} {unit}",
                        f"{theirs['name']} {other:.{digits}f} ({ratio:.2f}x)",
                        name,
                    )
                )
    if found := newest("peers_area"):
        name, result = found
        smallest, largest = result["sides"][0], result["sides"][-1]
        for model, within in result["time_within"].items():
            table.append(
                (
                    f"Cost per pixel, {smallest} x {smallest} to {largest} x {largest}: {model}",
                    f"time within {within:.0%} of the median",
                    f"memory within {result['memory_within'][model]:.0%}",
                    name,
                )
            )
    return table


def plan_rows() -> list[tuple[str, str, str, str]]:
    """Errors of plans against measurements, and the measured fragmentation."""
    table = []
    for topic, extra in (("plan", ""), ("plan_again", ", all blocks recomputed")):
        if not (found := newest(topic)):
            continue
        name, result = found
        for what in ("memory", "time"):
            errors = sorted(row[f"{what}_error"] for row in result["rows"])
            table.append(
                (
                    f"Plans of {len(errors)} runs, {result['precision']}{extra}: {what}",
                    f"median error {statistics.median(errors):.0%}",
                    f"largest error {errors[-1]:.0%}",
                    name,
                )
            )
        shares = sorted(map(_fragmentation, result["rows"]))
        table.append(
            (
                f"Allocator fragmentation, {len(shares)} runs{extra}",
                f"median {statistics.median(shares):.2f} of a step's memory",
                f"from {shares[0]:.2f} to {shares[-1]:.2f}",
                name,
            )
        )
    return table


def _fragmentation(row: dict[str, Any]) -> float:
    """Measured memory beyond a plan's tensors and process, as a fraction of a step's memory."""
    plan = row["plan"]
    step = plan["gradients"] + plan["workspace"] + sum(plan["activations"].values())
    explained = plan["peak"] - plan["holes"]
    return float((row["measured_mib"] - explained) / step)


def gpu_rows() -> list[tuple[str, str, str, str]]:
    """Output of `gpu.py` by section; sections without a result are listed as not measured."""
    table, missing = [], []
    for section in SECTIONS:
        if found := newest(f"gpu_{section}"):
            name, result = found
            lines = [f"failed: {result['failed']}"] if result.get("failed") else result["lines"]
            table += [(f"GPU, {section}", line, result["device"], name) for line in lines]
        else:
            missing.append(section)
    if missing:
        words = ", ".join(missing).replace("_", " ")
        table.append((f"GPU: {words}", "not measured", "run `gpu.py` on a GPU", "none"))
    return table


def _groups(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups of rows of equal work that contain both muntin and a peer."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = [row.get(field) for field in ("stage", "work", "workers", "precision")]
        groups.setdefault(json.dumps(key), []).append(row)
    return [group for group in groups.values() if {row["rival"] for row in group} == {True, False}]


def precision_rows() -> list[tuple[str, str, str, str]]:
    """Accuracy and speed of a trained run in each precision."""
    found = newest("precisions")
    if not found:
        return []
    name, result = found
    files = list(result["files"].items())
    start = files[0][1]["images_per_s"]["median"]
    return [
        (
            f"CIFAR-10 run, {result['num_images']:,} test images: {what}",
            f"top-1 {row['top1']:.2%}, {row['agreement']:.2%} equal to PyTorch fp32",
            f"{row['images_per_s']['median']:.0f} images/s "
            f"({row['images_per_s']['median'] / start:.1f}x)",
            name,
        )
        for what, row in files
    ]


def render(page: Path) -> str:
    """Render the block between the markers: all rows, or the featured ones for the README."""
    lines = [BEGIN, "", "| benchmark | result | comparison | file |", "|---|---|---|---|"]
    for what, figure, comparison, name in rows():
        if page == PAGES[1] or what.startswith(FEATURED):
            lines.append(f"| {what} | {figure} | {comparison} | `{name}` |")
    devices = sorted(
        {json.loads(path.read_text(encoding="utf-8"))["device"] for path in RESULTS.glob("*.json")}
    )
    lines += ["", f"Measured on: {'; '.join(devices)}. Medians; minimum to maximum in parentheses."]
    return "\n".join([*lines, "", END])


def main() -> None:
    """Write the pages, or check them."""
    stale = []
    for page in PAGES:
        block = render(page)
        text = page.read_text(encoding="utf-8")
        pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
        if not re.search(pattern, text, re.DOTALL):
            message = f"{page.relative_to(ROOT)} must contain the markers {BEGIN} ... {END}"
            raise SystemExit(message)
        fresh = re.sub(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if fresh != text:
            stale.append(page)
            if "--check" not in sys.argv:
                page.write_text(fresh, encoding="utf-8")
    if stale and "--check" in sys.argv:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        message = f"{names} must match benchmarks/results. Run: python benchmarks/report.py"
        raise SystemExit(message)


if __name__ == "__main__":
    main()
