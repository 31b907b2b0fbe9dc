# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Results to tables: README.md and docs/reference/numbers.md, between markers.

``--check`` writes nothing and fails if a table is not what the results say.
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
    "A pixel",
    "GPU",
    "Mask R-CNN, Swin-T",
    "Tiling",
)
"""How rows begin that README shows; the page of numbers has all."""
BEGIN, END = "<!-- numbers: made by benchmarks/report.py -->", "<!-- end of numbers -->"


def newest(topic: str) -> tuple[str, dict[str, Any]] | None:
    """Name and content of the newest result of a topic."""
    paths = sorted(p for p in RESULTS.glob("*.json") if p.stem.split("_", 2)[2:] == [topic])
    return (paths[-1].name, json.loads(paths[-1].read_text(encoding="utf-8"))) if paths else None


def rows() -> list[tuple[str, str, str, str]]:
    """What, figure, beside what, where it stands."""
    table = []
    if found := newest("cifar10"):
        name, result = found
        minutes = result["wall_seconds"] / 60
        table.append(
            (
                f"CIFAR-10 (JPEG) from scratch, `{result['muntin_command']}`, test top-1",
                f"{100 * result['test']['top1']:.1f} %",
                f"{minutes:.1f} minutes of wall time, everything included; "
                f"{result['epochs']} epochs",
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
                f"20 photographs learnt by heart: {result['head']}",
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
                    f"{peak['max']:.0f} MiB resident at most; "
                    f"{seconds['median'] / row['megapixels']:.2f} s a megapixel",
                    name,
                )
            )
    return table


def semantic_rows() -> list[tuple[str, str, str, str]]:
    """Maps of classes: accuracy from scratch, cost, large images."""
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
                "dubai_aerial, test images seen in windows",
                f"mIoU {windows['miou_in_windows']:.3f}",
                f"{windows['miou_at_once']:.3f} seen at once; {windows['same_pixels']:.1%} of the "
                f"pixels are of the same class",
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
                f"Generated set of two classes, `{result['muntin_command']}`",
                f"mIoU {result['miou']:.3f}",
                f"{result['train_seconds']:.0f} s of wall time",
                name,
            )
        )
        table.append(
            (
                "The same on scenes with things that are covered",
                f"mIoU {result['miou_scenes']:.3f}",
                "",
                name,
            )
        )
        windows = result["windows"]
        table.append(
            (
                f"The first of them, images of {windows['size'][1]} x {windows['size'][0]} in "
                f"windows of {windows['window']}",
                f"mIoU {windows['miou in windows']:.3f}",
                f"{windows['miou at once']:.3f} seen at once; "
                f"{windows['same_pixels']['median']:.1%} of the pixels are of the same class",
                name,
            )
        )
        table.append(
            (
                f"Map of classes of {wide} x {high} pixels",
                f"{result['peak_mib']['max']:.0f} MiB resident at most",
                f"{result['seconds']['median']:.0f} s",
                name,
            )
        )
    return table


def pose_rows() -> list[tuple[str, str, str, str]]:
    """Keypoints: accuracy from scratch, learning by heart, and what crops cost."""
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
                "16 persons of photographs learnt by heart",
                f"OKS AP {result['oks_ap']:.3f}",
                f"{result['epochs']} epochs",
                name,
            )
        )
    return table


def inference_rows() -> list[tuple[str, str, str, str]]:
    """Images a second of the best of ours and of theirs in each precision."""
    table = []
    if found := newest("inference"):
        name, result = found
        for part, what in (("throughput", "8 images at a time"), ("latency", "one at a time")):
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
    """Ours beside the best rival in training, memory, reading and attention; what a pixel costs."""
    table = []
    measures = (
        ("training", "images_per_s", "images/s", max),
        ("memory", "peak_mib", "MiB at most", min),
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
        least, most = result["sides"][0], result["sides"][-1]
        for model, within in result["time_within"].items():
            table.append(
                (
                    f"A pixel of images of {least} x {least} to {most} x {most}: {model}",
                    f"time within {within:.0%} of its median",
                    f"memory within {result['memory_within'][model]:.0%}",
                    name,
                )
            )
    return table


def plan_rows() -> list[tuple[str, str, str, str]]:
    """How far plans are from what was measured, and the holes that were."""
    table = []
    for topic, extra in (("plan", ""), ("plan_again", ", blocks computed again")):
        if not (found := newest(topic)):
            continue
        name, result = found
        for what in ("memory", "time"):
            errors = sorted(row[f"{what}_error"] for row in result["rows"])
            table.append(
                (
                    f"Plans of {len(errors)} runs, {result['precision']}{extra}: {what}",
                    f"within {statistics.median(errors):.0%} in the median",
                    f"furthest off by {errors[-1]:.0%}",
                    name,
                )
            )
        shares = sorted(map(_share_of_holes, result["rows"]))
        table.append(
            (
                f"Holes between tensors, {len(shares)} runs{extra}",
                f"{statistics.median(shares):.2f} of what a step holds, in the median",
                f"from {shares[0]:.2f} to {shares[-1]:.2f}",
                name,
            )
        )
    return table


def _share_of_holes(row: dict[str, Any]) -> float:
    """Measured memory that a plan's tensors and process do not explain, as a share of a step's."""
    plan = row["plan"]
    step = plan["gradients"] + plan["workspace"] + sum(plan["activations"].values())
    explained = plan["peak"] - plan["holes"]
    return float((row["measured_mib"] - explained) / step)


def gpu_rows() -> list[tuple[str, str, str, str]]:
    """What `gpu.py` printed of each section; the sections that nobody has run are said."""
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
        table.append((f"GPU: {words}", "not measured", "nobody has run `gpu.py` on one", "none"))
    return table


def _groups(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows that did the same, where both sides took part."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = [row.get(field) for field in ("stage", "work", "workers", "precision")]
        groups.setdefault(json.dumps(key), []).append(row)
    return [group for group in groups.values() if {row["rival"] for row in group} == {True, False}]


def precision_rows() -> list[tuple[str, str, str, str]]:
    """What fewer bits cost and bring on a trained run."""
    found = newest("precisions")
    if not found:
        return []
    name, result = found
    files = list(result["files"].items())
    start = files[0][1]["images_per_s"]["median"]
    return [
        (
            f"CIFAR-10 run, {result['num_images']:,} test images: {what}",
            f"top-1 {row['top1']:.2%}, {row['agreement']:.2%} as PyTorch in fp32",
            f"{row['images_per_s']['median']:.0f} images/s "
            f"({row['images_per_s']['median'] / start:.1f}x)",
            name,
        )
        for what, row in files
    ]


def render(page: Path) -> str:
    """The block between the markers: all rows, or those that a README has room for."""
    lines = [BEGIN, "", "| what | measured | beside | result |", "|---|---|---|---|"]
    for what, figure, beside, name in rows():
        if page == PAGES[1] or what.startswith(FEATURED):
            lines.append(f"| {what} | {figure} | {beside} | `{name}` |")
    devices = sorted(
        {json.loads(path.read_text(encoding="utf-8"))["device"] for path in RESULTS.glob("*.json")}
    )
    lines += ["", f"Measured on: {'; '.join(devices)}. Medians; smallest to largest in brackets."]
    return "\n".join([*lines, "", END])


def main() -> None:
    """Write the pages, or check them."""
    stale = []
    for page in PAGES:
        block = render(page)
        text = page.read_text(encoding="utf-8")
        pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
        if not re.search(pattern, text, re.DOTALL):
            message = f"{page.relative_to(ROOT)} must hold the markers {BEGIN} ... {END}"
            raise SystemExit(message)
        fresh = re.sub(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if fresh != text:
            stale.append(page)
            if "--check" not in sys.argv:
                page.write_text(fresh, encoding="utf-8")
    if stale and "--check" in sys.argv:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        message = f"{names}: not what benchmarks/results say. Run benchmarks/report.py"
        raise SystemExit(message)


if __name__ == "__main__":
    main()
