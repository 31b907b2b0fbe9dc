# SPDX-License-Identifier: Apache-2.0
"""Write results as tables into the READMEs and docs/reference/numbers.md, between markers.

``--check`` writes nothing and fails if a table differs from the results.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu import SECTIONS

from muntin.benching.result_rows import best_row, find_measure, group_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NUMBERS = ROOT / "docs" / "reference" / "numbers.md"
CHINESE = ROOT / "README_zh.md"
PAGES = (ROOT / "README.md", CHINESE, NUMBERS)
FEATURED = (
    ("CIFAR-10 (JPEG)", ""),
    ("bccd from scratch, 25 minutes: muntin", "bccd from scratch, 25 minutes: faster"),
    ("nuclei from scratch, 25 minutes: muntin", "nuclei from scratch, 25 minutes: mask"),
    ("dubai_aerial from scratch, 25 minutes: muntin", "dubai_aerial from scratch, 25 minutes: l"),
    ("mirror_mouse_pose from scratch, 15 minutes: muntin", "mirror_mouse_pose from scratch, 15 "),
    ("Mask R-CNN, Swin-T, 480x640: training step, muntin", ""),
    ("Swin-T inference, 224 x 224, batch 8, fp32", ""),
    ("swin_tiny, training: precision fp32", ""),
    ("swin_tiny, memory: work training", ""),
    ("swin_tiny, data: work training, workers 2", ""),
    (
        "Cost per pixel, 224 x 224 to 2048 x 2048: swin",
        "Cost per pixel, 224 x 224 to 2048 x 2048: v",
    ),
    ("Plans of 16 runs, fp32: memory", ""),
    ("GPU", ""),
)
"""Rows of the README by how they begin, and the row of the peer where it is another one."""
NOTE = (
    "Rows of before 2026-11-30 are of earlier code. Since then, training has other layers "
    "(docs/adr/0021): time and memory of training steps and attention, plans, and what is reached "
    "in a fixed time may differ."
)
BEGIN, END = "<!-- numbers: made by benchmarks/report.py -->", "<!-- end of numbers -->"

Json = dict[str, Any]


def newest(topic: str) -> tuple[str, Json] | None:
    """Name and content of the newest result of a topic."""
    paths = sorted(p for p in RESULTS.glob("*.json") if p.stem.split("_", 2)[2:] == [topic])
    return (paths[-1].name, json.loads(paths[-1].read_text(encoding="utf-8"))) if paths else None


@dataclass(frozen=True)
class Rows:
    """Rows of the table from one topic's newest result.

    Attributes:
        topic: Topic of the result.
        cells: Formats of benchmark, result and comparison; the fields are those of the result and
            of each item.
        items: From the result to one mapping of further fields per row.
    """

    topic: str
    cells: tuple[str, str, str]
    items: Callable[[Json], Iterable[Json]] = lambda result: [{}]


def named(key: str) -> Callable[[Json], Iterable[Json]]:
    """Items of a mapping in the result, with their ``name``."""
    return lambda result: [{"name": name, **row} for name, row in result[key].items()]


def trained(result: Json) -> Iterator[Json]:
    """Everyone who was trained from scratch and scored on the test part."""
    for name, row in result.items():
        if isinstance(row, dict) and "test" in row:
            yield {"name": name, **row}


def adapted(result: Json) -> Iterator[Json]:
    """Memory and score of adapters, as shares of full fine-tuning's."""
    for rows, group, field in (("memory", "model", "mib"), ("scores", "task", "score")):
        whole = 0.0
        for row in result[rows]:
            value = row.get(field) or row.get("top1") or row["miou"]
            whole = value if row["way"] == "full" else whole
            kind = "memory of a step" if field == "mib" else f"score after {row['time']}"
            yield {"name": f"{row[group]}, {row['way']}: {kind}", "share": value / whole,
                   "shown": f"{value:.0f} MiB" if field == "mib" else f"{value:.3f}"}  # fmt: skip


def loadings(result: Json) -> Iterator[Json]:
    """Loading of weights, relative to a bare copy."""
    bare = result["contestants"]["bare and copied"]["seconds"]["median"]
    for name, row in result["contestants"].items():
        times = row["seconds"]["median"] / bare
        yield {"name": name, **row, "times": times,
               "extra": row["extra_mib"]["median"] / result["file_mib"]}  # fmt: skip


def tiles(result: Json) -> Iterator[Json]:
    """Predictions in tiles, with seconds per megapixel."""
    for row in result["rows"]:
        yield {**row, "per_mp": row["seconds"]["median"] / row["megapixels"]}


def engines(result: Json) -> Iterator[Json]:
    """Muntin's best and the peers' best engine in each precision."""
    for part in ("throughput", "latency"):
        measured = result[part]
        for group in group_rows(measured["contestants"], ["precision"]):
            for pair in compared(group):
                yield {"batch": measured["batch_size"], "size": measured["img_size"], **pair}


def peers(result: Json) -> Iterator[Json]:
    """Muntin and the best peer for each kind of work."""
    fields = ("stage", "work", "workers", "precision")
    for group in group_rows(result["contestants"], fields):
        for pair in compared(group):
            ours = pair["ours"]
            work = ", ".join(f"{field} {ours[field]}" for field in fields if field in ours)
            yield {**pair, "work": work}


def compared(group: list[Json]) -> Iterator[Json]:
    """Muntin's best row, the best peer's, their values and the ratio; nothing without a peer."""
    measure = find_measure(group)
    ours, theirs = (best_row(group, measure, rival=rival) for rival in (False, True))
    if ours and theirs:
        value, other = (row[measure.key]["median"] for row in (ours, theirs))
        digits = 2 if value < 10 else 1 if value < 100 else 0
        yield {
            "ours": ours,
            "theirs": theirs,
            "value": f"{value:.{digits}f}",
            "other": f"{other:.{digits}f}",
            "rate": value,
            "other_rate": other,
            "ratio": (value / other) ** -measure.sign,
        }


def areas(result: Json) -> Iterator[Json]:
    """Deviation of the cost per pixel from its median over the sides."""
    for name, within in result["time_within"].items():
        memory, largest = result["memory_within"][name], result["sides"][-1]
        yield {"name": name, "time": within, "memory": memory, "largest": largest}


def precisions(result: Json) -> Iterator[Json]:
    """Exported files, relative to PyTorch in fp32."""
    start = next(iter(result["files"].values()))["images_per_s"]["median"]
    for name, row in result["files"].items():
        yield {"name": name, **row, "times": row["images_per_s"]["median"] / start}


def plan_errors(result: Json) -> Iterator[Json]:
    """Errors of plans against measurements."""
    for what in ("memory", "time"):
        errors = [row[f"{what}_error"] for row in result["rows"]]
        yield {"what": what, "count": len(errors), **_spread(errors)}


def fragmentation(result: Json) -> Iterator[Json]:
    """Measured memory beyond a plan's tensors and process, as a fraction of a step's memory."""
    shares = []
    for row in result["rows"]:
        plan = row["plan"]
        step = plan["gradients"] + plan["workspace"] + sum(plan["activations"].values())
        shares.append((row["measured_mib"] - plan["peak"] + plan["holes"]) / step)
    yield {"count": len(shares), **_spread(shares)}


def calls(result: Json) -> Iterator[Json]:
    """Calls of a predictor, with the shares of their parts."""
    for group in group_rows(result["rows"], ("task", "size", "objects", "batch")):
        parts = {row["part"]: row for row in group}
        shares = {f"{name}_share": row["share"] for name, row in parts.items()}
        yield {**parts["call"], **shares, "drawing": parts["drawing"]["seconds"]["median"]}


def gpu_lines(result: Json) -> Iterator[Json]:
    """Lines that `gpu.py` printed for a section."""
    failed = result.get("failed")
    for line in [f"failed: {failed}"] if failed else result["lines"]:
        yield {"line": line}


def _spread(values: list[float]) -> Json:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


SECONDS = "{seconds[median]:.2f} s ({seconds[min]:.2f}-{seconds[max]:.2f})"
SAME_PIXELS = "of the pixels have the same class"
TABLE = (
    Rows("cifar10", (
        "CIFAR-10 (JPEG) from scratch, `{muntin_command}`, test top-1", "{top1:.1f} %",
        "{minutes:.1f} minutes of wall time in total; {epochs} epochs",
    ), lambda one: [{"top1": 100 * one["test"]["top1"], "minutes": one["wall_seconds"] / 60}]),
    Rows("adapters", (
        "Fine-tuning, {name}", "{shown}", "{share:.2f} x full fine-tuning",
    ), adapted),
    Rows("pretraining", (
        "Pretraining, uniform masking beside SimMIM: {name}",
        "{images_per_s[uniform][median]:.0f} images/s",
        "{speed_ratio:.2f} x the images/s, {memory_ratio:.2f} x the memory of SimMIM",
    ), named("models")),
    Rows("distillation", (
        "Training step with a teacher: {name}", "{ms[median]:.0f} ms ({ms[min]:.0f}-{ms[max]:.0f})",
        "{relative:.2f} x a plain step",
    ), named("cases")),
    Rows("serving", (
        "Serving {model}, {row[engine]}, 32 clients: {row[server]}",
        "{row[at_32_clients][answers_per_s]:.0f} answers/s",
        "at 3x the load {row[goodput]:.2f} x of these, statuses {row[at_3_times][statuses]}",
    ), lambda result: [{"row": row} for row in result["rows"]]),
    Rows("loading", (
        "Loading swin_base from safetensors: {name}", SECONDS,
        "{times:.2f} x bare and copied; extra memory {extra:.2f} x the file",
    ), loadings),
    Rows("detection_bccd", (
        "bccd from scratch, {minutes:g} minutes: {name}", "BOX AP50 {test[box_ap50]:.3f}",
        "AP {test[box_ap]:.3f}; {epochs} epochs",
    ), trained),
    Rows("detection_nuclei", (
        "nuclei from scratch, {minutes:g} minutes: {name}", "MASK AP50 {test[mask_ap50]:.3f}",
        "AP {test[mask_ap]:.3f}; {epochs} epochs",
    ), trained),
    Rows("detector_cost", (
        "Mask R-CNN, Swin-T, {size}: {name}", SECONDS,
        "{ratio_to_torchvision[median]:.2f} x the time of torchvision's",
    ), named("rows")),
    Rows("memorise", (
        "Overfitting 20 photographs: {head}",
        "box AP50 {box_ap50:.3f}, mask AP50 {mask_ap50:.3f}",
        "{epochs} epochs at {settings[img_size]} pixels",
    )),
    Rows("tiling", (
        "Instance segmentation in tiles, {size[1]} x {size[0]} pixels",
        SECONDS.replace(".2f", ".1f"),
        "peak of {peak_mib[max]:.0f} MiB resident; {per_mp:.2f} s per megapixel",
    ), tiles),
    Rows("semantic_dubai", (
        "dubai_aerial from scratch, {minutes:g} minutes: {name}", "mIoU {test[miou]:.3f}",
        "pixel accuracy {test[pixel_accuracy]:.3f}",
    ), trained),
    Rows("semantic_dubai", (
        "dubai_aerial, test images in sliding windows", "mIoU {miou_in_windows:.3f}",
        f"{{miou_at_once:.3f}} for whole images; {{same_pixels:.1%}} {SAME_PIXELS}",
    ), lambda one: [one["muntin"]["windows"]]),
    Rows("segmenter_cost", (
        "Training step of UPerNet, Swin-T, 150 classes, 2 x 512 x 512: {name}",
        "{activation_mib[median]:.0f} MiB of activations "
        "({activation_mib[min]:.0f}-{activation_mib[max]:.0f}), {seconds[median]:.1f} s",
        "{activation_ratio[median]:.2f} x the memory, {time_ratio[median]:.2f} x the time of "
        "transformers",
    ), named("rows")),
    Rows("large_maps", (
        "Synthetic dataset of two classes, `{muntin_command}`", "mIoU {miou:.3f}",
        "{train_seconds:.0f} s of wall time",
    )),
    Rows("large_maps", ("The same on scenes with occlusion", "mIoU {miou_scenes:.3f}", "")),
    Rows("large_maps", (
        "Synthetic dataset of two classes, images of {windows[size][1]} x {windows[size][0]} in "
        "windows of {windows[window]}",
        "mIoU {windows[miou in windows]:.3f}",
        "{windows[miou at once]:.3f} for whole images; {windows[same_pixels][median]:.1%} "
        + SAME_PIXELS,
    )),
    Rows("large_maps", (
        "Semantic segmentation of {size[1]} x {size[0]} pixels",
        "peak of {peak_mib[max]:.0f} MiB resident", "{seconds[median]:.0f} s",
    )),
    Rows("pose_mouse", (
        "mirror_mouse_pose from scratch, {minutes:g} minutes: {name}",
        "mean error {test[mean_pixel_error]:.2f} px, PCK at 2 % {test[pck]:.3f}",
        "median {test[median_pixel_error]:.2f} px",
    ), trained),
    Rows("pose_mouse", (
        "Keypoints of {crops[crops]:,} crops", "{crops[seconds]:.1f} s",
        "{crops[in_network]:.0%} of it in the network",
    )),
    Rows("pose_memorise", (
        "Overfitting 16 persons in photographs", "OKS AP {oks_ap:.3f}", "{epochs} epochs",
    )),
    Rows("inference", (
        "Swin-T inference, {size[0]} x {size[1]}, batch {batch}, {ours[precision]}: {ours[name]}",
        "{rate:.1f} images/s, {ours[of_ceiling]:.0%} of the machine's limit",
        "{theirs[name]} {other_rate:.1f} images/s ({ratio:.2f}x)",
    ), engines),
    Rows("prediction_parts", (
        "A call, {task} by the default small model, {size[1]} x {size[0]}, batch {batch}, up to "
        "{objects} found", "{seconds[median]:.4f} s an image",
        "preparing {preparing_share:.0%}, network {network_share:.0%}, decoding "
        "{decoding_share:.0%}; drawing {drawing:.3f} s",
    ), calls),
    *(
        Rows(f"prediction_{what}", (
            f"A call, {what.replace('_', ', ')}, {{size[1]}} x {{size[0]}}: {{name}}",
            "{seconds[median]:.3f} s ({seconds[min]:.3f}-{seconds[max]:.3f})",
            "muntin takes {ratio:.2f} x its time",
        ), named("rows"))
        for what in (
            "detect_small", "detect_large", "instance_small", "instance_large",
            "instance_mask2former", "semantic_upernet", "pose_vitpose",
        )
    ),
    Rows("precisions", (
        "CIFAR-10 run, {num_images:,} test images: {name}",
        "top-1 {top1:.2%}, {agreement:.2%} equal to PyTorch fp32",
        "{images_per_s[median]:.0f} images/s ({times:.1f}x)",
    ), precisions),
    *(
        Rows(f"peers_{kind}", (
            f"{{model}}, {kind.replace('_', ' of ')}: {{work}}: {{ours[name]}}",
            f"{{value}} {unit}", "{theirs[name]} {other} ({ratio:.2f}x)",
        ), peers)
        for kind, unit in (
            ("training", "images/s"), ("memory", "MiB peak"), ("data", "images/s"),
            *((f"data_{part}", "images/s") for part in ("png", "webp", "detect", "instance")),
            ("attention", "ms"),
        )
    ),
    Rows("data_cache", (
        "Cache of decoded images, {num_images} JPEGs, without workers: {name}",
        "{median:.0f} images/s", "",
    ), named("images_per_s")),
    Rows("peers_area", (
        "Cost per pixel, {sides[0]} x {sides[0]} to {largest} x {largest}: {name}",
        "time within {time:.0%} of the median", "memory within {memory:.0%}",
    ), areas),
    *(
        rows
        for topic, extra in (("plan", ""), ("plan_again", ", all blocks recomputed"))
        for rows in (
            Rows(topic, (
                f"Plans of {{count}} runs, {{precision}}{extra}: {{what}}",
                "median error {median:.0%}", "largest error {max:.0%}",
            ), plan_errors),
            Rows(topic, (
                f"Allocator fragmentation, {{count}} runs{extra}",
                "median {median:.2f} of a step's memory", "from {min:.2f} to {max:.2f}",
            ), fragmentation),
        )
    ),
    *(Rows(f"gpu_{name}", (f"GPU, {name}", "{line}", "{device}"), gpu_lines) for name in SECTIONS),
    Rows("startup", ("Start: {name}", "{median:.3f} s", ""), named("seconds")),
)  # fmt: skip
"""All rows, in the order of the pages."""


def table() -> Iterator[tuple[str, ...]]:
    """Rows of (benchmark, result, comparison, file)."""
    missing = [name for name in SECTIONS if not newest(f"gpu_{name}")]
    for rows in TABLE:
        if rows.topic == "startup" and missing:
            words = ", ".join(missing).replace("_", " ")
            yield f"GPU: {words}", "not measured", "run `gpu.py` on a GPU", "none"
        if found := newest(rows.topic):
            name, result = found
            for item in rows.items(result):
                yield (*(cell.format(**{**result, **item}) for cell in rows.cells), name)


def featured() -> Iterator[tuple[str, ...]]:
    """Rows of the README: one a topic, compared with what stands in the peer's row."""
    rows = list(table())
    for ours, theirs in FEATURED:
        what, figure, comparison, name = next(row for row in rows if row[0].startswith(ours))
        if theirs:
            found = (row for row in rows if row[0].startswith(theirs) and row[0] != what)
            peer, other, *_ = next(found)
            comparison = f"{peer.rpartition(': ')[2]}: {other}"
        yield what, figure, comparison, name


def translate(cell: str, words: dict[str, str]) -> str:
    """Replace patterns one after another; what none of them names stays as it is."""
    for pattern, replacement in words.items():
        cell = re.sub(pattern, replacement, cell)
    return cell


def render(page: Path) -> str:
    """Render the block between the markers: all rows, or the featured ones for the README."""
    header, words = ["benchmark", "result", "comparison", "file"], {}
    if page == CHINESE:
        texts = (ROOT / "benchmarks" / "texts" / "zh.toml").read_text(encoding="utf-8")
        header, words = tomllib.loads(texts).values()
    lines = [BEGIN, "", f"| {' | '.join(header)} |", "|---|---|---|---|"]
    for *cells, name in table() if page == NUMBERS else featured():
        cells = [translate(cell, words) for cell in cells]
        lines.append(f"| {' | '.join(cells)} | `{name}` |")
    if page == NUMBERS:
        texts = (path.read_text(encoding="utf-8") for path in RESULTS.glob("*.json"))
        devices = "; ".join(sorted({json.loads(text)["device"] for text in texts}))
        lines += ["", f"Measured on: {devices}. Medians; minimum to maximum in parentheses.", NOTE]
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
