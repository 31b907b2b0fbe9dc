# SPDX-License-Identifier: Apache-2.0
"""What commands share: arguments, options, parsers of their values, tables and JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from muntin.errors import UsageError, unknown_name
from muntin.staging import finite, format_json

if TYPE_CHECKING:
    from muntin.runs import Run

TaskArgument = Annotated[str, typer.Argument(help="classify, detect, instance, semantic or pose.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="A run, exported file or published model.")
]
DataArgument = Annotated[str, typer.Argument(help="Same as for train.")]
ValOption = Annotated[str, typer.Option(help="Validation data, if DATA has none.")]
ModelOption = Annotated[
    str, typer.Option(help="Model name (see: muntin models); default: automatic.")
]
HeadOption = Annotated[str, typer.Option(help="fcos, upernet, vitpose ...; default: automatic.")]
WeightsOption = Annotated[str, typer.Option(help="auto, none, a file, a run or a hub id.")]
ZooWeightsOption = Annotated[
    str, typer.Option("--weights", help="For MODEL: file, folder or hub id.")
]
PartOption = Annotated[
    str, typer.Option(help="Which weights of the file, if it holds several: teacher, model_ema ...")
]
AdaptOption = Annotated[
    str, typer.Option(help="lora: train low-rank additions to a frozen backbone; less memory.")
]
FreezeOption = Annotated[
    int | None, typer.Option(help="Frozen leading stages (blocks of a ViT); -1 = the backbone.")
]
ObjectiveOption = Annotated[
    str, typer.Option(help="What pretraining learns: auto (by the model), mae, simmim or views.")
]
RecipeOption = Annotated[str, typer.Option(help="auto, small-data, finetune, imagenet ...")]
EpochsOption = Annotated[int | None, typer.Option(help="Number of epochs.", min=1)]
MaxTimeOption = Annotated[str, typer.Option(help="Limit of total wall time: 90s, 15m, 2h.")]
DevicesOption = Annotated[
    int | None, typer.Option(help="Number of devices of each machine (one process each).", min=1)
]
NodesOption = Annotated[int | None, typer.Option(help="Machines: torchrun or srun on each.", min=1)]
SeedOption = Annotated[int | None, typer.Option(help="Random seed.", min=0)]
RunFolderOption = Annotated[str, typer.Option(help="Run folder; default: runs/NAME.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")]
ConfigOption = Annotated[str, typer.Option(help="Repeat a run from its config.json.")]
BatchOption = Annotated[str, typer.Option(help="Images per step, or auto.")]
SideOption = Annotated[str, typer.Option(help="Side in pixels, or HxW.")]
SizeOption = Annotated[str, typer.Option(help="N or HxW in pixels; default: that of the run.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
DetectorOption = Annotated[
    str, typer.Option(help="Keypoints only: a detection run that finds the instances.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
OnOption = Annotated[
    str, typer.Option("--on", help="Work on a cluster: ray, or its address ray://HOST:PORT.")
]
TeacherOption = Annotated[
    str, typer.Option(help="Learn from a run or a published model too: RUN, MODEL or timm:NAME.")
]
TeacherCacheOption = Annotated[
    str, typer.Option(help="Folder of the teacher's stored answers; default: in the run.")
]
LogOption = Annotated[
    str, typer.Option("--log", help="Also to tensorboard, mlflow, wandb (comma-separated).")
]
CheckFirstOption = Annotated[
    bool, typer.Option("--check-first", help="Learn a few images by heart first: finds faults.")
]
ExtendOption = Annotated[
    str,
    typer.Option(help="Add the classes of DATA to this run, without the images it learnt from."),
]
FoldsOption = Annotated[
    int, typer.Option(help="Train so many runs, each validated on another part of DATA.", min=0)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", help="Any config field: train.learning_rate=1e-4.")
]


def with_part(weights: str, part: str) -> str:
    """Weights of one part of a file, as one text; a part of none is a `UsageError`."""
    if part and weights in ("", "auto", "none"):
        message = (
            f"--part selects among the weights in a file, got {part!r} without a file. Name it "
            f"with --weights, or omit --part."
        )
        raise UsageError(message)
    return f"{weights}#{part}" if part else weights


def open_run_aloud(text: str) -> Run:
    """Open a run, an exported file or a model, and say which published weights a name means."""
    from muntin.published import PublishedRun, open_run

    run = open_run(text)
    if isinstance(run, PublishedRun):
        typer.echo(run.describe(), err=True)
    return run


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_time(text: str) -> float:
    """Parse 90, 90s, 15m or 2h to seconds; empty is 0."""
    if not text:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        message = f"--max-time must be a time such as 90s, 15m or 2h, got {text!r}."
        raise UsageError(message)
    return float(found[1]) * _UNITS[found[2]]


def parse_size(text: str) -> tuple[int, int]:
    """Parse 224 or 224x320 (height x width) to pixels; empty is (0, 0)."""
    if not text:
        return 0, 0
    found = re.fullmatch(r"([1-9]\d{0,8})(?:x([1-9]\d{0,8}))?", text.strip())
    if found is None:
        message = f"--img-size must be a side such as 224, or HxW such as 224x320, got {text!r}."
        raise UsageError(message)
    return int(found[1]), int(found[2] or found[1])


def parse_batch(text: str) -> int:
    """Parse a batch size; auto is 0."""
    return 0 if text == "auto" else _parse_count(text, "--batch-size must be a positive integer")


def parse_tile(text: str) -> int | Literal["auto"] | None:
    """Parse a side in pixels, or auto; empty is None."""
    if not text:
        return None
    return "auto" if text == "auto" else _parse_count(text, "--tile must be a side in pixels")


def _parse_count(text: str, what: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text):
        message = f"{what} or auto, got {text!r}."
        raise UsageError(message)
    return int(text)


def parse_bands(text: str) -> tuple[int, ...]:
    """Parse comma-separated numbers of bands; empty is ()."""
    if text and not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", text):
        message = f"--bands must be numbers from 1, such as 4,3,2, got {text!r}."
        raise UsageError(message)
    return tuple(map(int, text.split(","))) if text else ()


def parse_scales(text: str) -> tuple[float, ...]:
    """Parse comma-separated scale factors; empty is 1."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else (1.0,)
    except ValueError as error:
        message = f"--scales must be numbers such as 0.75,1,1.25, got {text!r}."
        raise UsageError(message) from error


def parse_point(text: str) -> tuple[float, float] | None:
    """Parse x,y in [0, 1] as a point of an image; empty is None."""
    if not text:
        return None
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        x, y = -1.0, -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        message = f"--point must be x,y in [0, 1], such as 0.5,0.25, got {text!r}."
        raise UsageError(message)
    return x, y


def parse_names(text: str) -> tuple[str, ...]:
    """Parse comma-separated names; empty is ()."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_settings(texts: Iterable[str] | None, option: str = "--set") -> dict[str, str]:
    """Parse ``name=value`` arguments."""
    settings = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            example = "train.epochs=10" if option == "--set" else "max_detections=1000"
            message = f"{option} must be name=value, such as {example}, got {text!r}."
            raise UsageError(message)
        settings[name.strip()] = value.strip()
    return settings


def train_settings(
    texts: Iterable[str] | None,
    adapt: str = "",
    freeze: int | None = None,
    cache: str = "",
    epochs: int | None = None,
    log: str = "",
    check: bool = False,
) -> dict[str, str]:
    """Parse settings, and add the fields that have options of their own."""
    from muntin.train_config import AdaptName, LogName

    _check_words("--adapt", (adapt,) if adapt else (), get_args(AdaptName))
    _check_words("--log", parse_names(log), get_args(LogName))
    options = {
        "train.adapt": adapt, "train.freeze": freeze, "distill.cache_dir": cache,
        "train.epochs": epochs, "machine.log": log, "train.overfit_check": "on" if check else "",
    }  # fmt: skip
    given = {name: str(value) for name, value in options.items() if value not in (None, "")}
    return {**parse_settings(texts), **given}


def _check_words(option: str, words: Iterable[str], known: Sequence[str]) -> None:
    for word in words:
        if word not in known:
            raise UsageError(unknown_name(f"value of {option}:", word, known))


def to_json(values: Any) -> str:  # noqa: ANN401 (whatever JSON can hold)
    """Format one JSON document; what is no finite number, which JSON lacks, becomes null."""
    return format_json(finite(values))


# Wide enough for every model name; a pipe has no width.
_PIPE_WIDTH = 240


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; cells that exceed a narrow terminal are wrapped, never truncated."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table()
    for title in titles:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: a class may be called "[red]"
    console.print(table)
