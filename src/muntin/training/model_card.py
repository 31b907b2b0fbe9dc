# SPDX-License-Identifier: Apache-2.0
"""The model card of a finished run: ``README.md``, with front matter for the hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

import muntin
from muntin.diagnosing.findings import Finding
from muntin.errors import plural, quote
from muntin.run_config import RunConfig
from muntin.run_files import write_text
from muntin.runs import Run
from muntin.samples import Listing, TaskKind
from muntin.staging import part_of
from muntin.training.progress import format_duration
from muntin.untrusted import read_regular
from muntin.weights.weight_files import is_hub_id

CARD = "README.md"

MAX_CLASSES = 100
"""Of a table; more are counted only."""

# What it does, and its name on the hub.
_KINDS: Mapping[TaskKind, tuple[str, str]] = {
    "classification": ("tells the class of an image", "image-classification"),
    "detection": ("finds objects in an image", "object-detection"),
    "segmentation": ("tells the class of each pixel of an image", "image-segmentation"),
    "keypoints": ("finds the keypoints of instances in an image", "keypoint-detection"),
    "pretraining": (
        "computes features of an image; it was pretrained on images without labels, to be trained "
        "further",
        "image-feature-extraction",
    ),
}
_SEAL = re.compile(r"<!-- written by muntin, sha256 of all above: ([0-9a-f]{64}) -->\n\Z")


def write_card(
    run: Run,
    sets: tuple[Listing, Listing],
    figures: Mapping[str, Any],
    trained: tuple[int, float],
    findings: Sequence[Finding] = (),
) -> bool:
    """Write the model card, unless there is one that somebody changed; whether it was written.

    Args:
        run: The run, with its pictures.
        sets: Images of training and of validation.
        figures: Of the best epoch.
        trained: Number of epochs and seconds.
        findings: Why the figures show nothing, where they do not.
    """
    path = part_of(run.path, CARD)
    if path.exists() and not _is_own(path):
        return False
    numbers = {
        name: value
        for name, value in figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    # The digest tells a card that somebody has changed from one that may be written again.
    body = _body(run, sets, numbers, trained, findings)
    text = f"---\n{_front_matter(run, numbers)}\n---\n\n{body}\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(path, f"{text}<!-- written by muntin, sha256 of all above: {digest} -->\n")
    return True


def _is_own(path: Path) -> bool:
    """Whether a card is as it was written."""
    try:
        text = read_regular(path).decode().replace("\r\n", "\n")
    except (OSError, ValueError):
        return False
    found = _SEAL.search(text)
    return (
        found is not None
        and hashlib.sha256(text[: found.start()].encode()).hexdigest() == (found[1])
    )


def _front_matter(run: Run, figures: Mapping[str, float]) -> str:
    config, (_, tag) = run.config, _KINDS[run.task.kind]
    data = Path(config.data).name or "data"
    # A threshold is a choice, not a result.
    skipped = ("best_threshold", "threshold")
    shares = {k: v for k, v in figures.items() if isinstance(v, float) and k not in skipped}
    source = config.weights.partition("@")[0]
    # The hub refuses a card whose base model is none of its own.
    from_hub = is_hub_id(source) and not Path(source).exists()
    found = [
        EvalResult(
            task_type=tag,
            dataset_type=re.sub(r"[^\w.-]+", "-", data),
            dataset_name=data,
            dataset_split="validation",
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for name, value in shares.items()
    ]
    return ModelCardData(
        license=config.license.lower() or ("unknown" if config.weights else None),
        library_name="muntin",
        pipeline_tag=tag,
        tags=["muntin", config.task],
        base_model=source if from_hub else None,
        model_name=run.path.resolve().name if found else None,
        eval_results=found or None,
    ).to_yaml()


def _body(
    run: Run,
    sets: tuple[Listing, Listing],
    figures: Mapping[str, float],
    trained: tuple[int, float],
    findings: Sequence[Finding],
) -> str:
    config = run.config
    size = "x".join(map(str, run.preprocessing.img_size))
    name = run.path.resolve().name
    parts = [
        f"# {_plain(name)}",
        f"A {config.model_name} that {_KINDS[run.task.kind][0]}, at {size} pixels "
        f"(height x width). Trained with muntin {muntin.__version__}.",
        "## How to use it",
        f"```\nmuntin predict {quote(name)} IMAGE...\n```"
        if run.task.kind != "pretraining"
        else f"```\nmuntin train TASK DATA --weights {quote(name)}\n"
        f"muntin embed {quote(name)} IMAGES --out features.npy\n```",
        f'```python\nimport muntin\n\npredictor = muntin.load("{name}")\n'
        'results = predictor("image.jpg")\n```'
        if run.task.kind != "pretraining"
        else f'```python\nimport muntin\n\nfeatures = muntin.embed("{name}", "images/")\n```',
        "## Data",
        _describe_data(config, sets),
        "## Recipe",
        format_rows(("what", "value"), _recipe(run, trained)),
        f"All settings are in `config.json`; `{run.task.command} DATA --config config.json` "
        f"repeats the run.",
        "## Figures",
        "Of the best epoch, on the validation images; those of each epoch are in `results.csv`.",
        format_rows(("figure", "value"), ((key, f"{value:.4g}") for key, value in figures.items())),
        *(["## Diagnosis", *(f"- {_plain(str(one))}" for one in findings)] if findings else ()),
        "## Licence",
        _describe_license(config),
    ]
    if pictures := sorted((run.path / "pictures").rglob("*.png")):
        parts += ["## Pictures", *(_show(path, run.path) for path in pictures)]
    return "\n\n".join(parts)


def _describe_data(config: RunConfig, sets: tuple[Listing, Listing]) -> str:
    train, val = sets
    told = f"{_plain(Path(config.data).name)}: {len(train)} {train.unit} for training, "
    told += f"{len(val)} for validation."
    names = train.class_names
    if not names or len(names) > MAX_CLASSES:
        return told if not names else f"{told} {plural(len(names), 'class', 'classes')}."
    counts = zip(names, train.class_counts, val.class_counts, strict=True)
    rows = ((_plain(name), str(before), str(after)) for name, before, after in counts)
    unit = "images" if train.kind != "keypoints" else train.unit
    return f"{told}\n\n" + format_rows(("class", f"{unit} for training", "for validation"), rows)


def _recipe(run: Run, trained: tuple[int, float]) -> Iterable[tuple[str, str]]:
    config, tuned, machine = run.config, run.config.train, run.config.machine
    epochs, seconds = trained
    yield "recipe", tuned.recipe
    yield "initial weights", _plain(_shown_source(config)) or "random"
    if config.distill is not None:
        yield "teacher", _plain(Path(config.distill.teacher).name)
    yield "head", getattr(config.head, "kind", "") or "linear"
    yield "epochs", f"{epochs} in {format_duration(seconds)}"
    yield "batch", str(tuned.batch_size * tuned.accumulate)
    yield "optimizer", f"{tuned.optimizer}, learning rate {tuned.learning_rate:g}"
    yield "precision", f"{machine.precision} on {machine.device}"
    yield "seed", str(tuned.seed)


def _shown_source(config: RunConfig) -> str:
    """The source of the initial weights; of a path its name, as folders are nobody's business."""
    is_path = Path(config.weights).exists() or not is_hub_id(config.weights)
    return Path(config.weights).name if is_path else config.weights


def _describe_license(config: RunConfig) -> str:
    if not config.weights:
        return "The weights began with random numbers: their licence is the choice of who trained."
    known = config.license or "is not known"
    return (
        f"The licence of the initial weights, {_plain(_shown_source(config))}: {known}. It may "
        f"apply to these, too."
    )


def _show(path: Path, folder: Path) -> str:
    place = path.relative_to(folder)
    words = " ".join([*place.parts[1:-1], place.stem]).replace("_", " ")
    return f"![{words}]({place.as_posix()})"


def format_rows(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format rows as a table of Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    """A name of a user as Markdown that shows its characters, in one cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
