# SPDX-License-Identifier: Apache-2.0
"""Records of a run: a table beside the journal, trackers, and a card for people."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

import muntin
from muntin.commands import main
from muntin.errors import ConfigError, MissingExtra, MuntinWarning, RunError
from muntin.run_files import read_json, read_split
from muntin.runs import read_journal
from muntin.training import run_logs
from muntin.training.model_card import write_card
from tests.small import SETTINGS, train_small, write_images

NAMES = ("\u732b|a", "*b*", "c [x](y)")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees", classes=NAMES)


def read_table(folder):
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def as_texts(lines, columns):
    return [{name: str(line.get(name, "")) for name in columns} for line in lines]


def test_the_table_is_the_journal(data, tmp_path):
    run = train_small(data, tmp_path / "run", epochs=3)
    rows, lines = read_table(run.path), read_journal(run.path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows == as_texts(lines, rows[0])
    assert {"train_loss", "val_top1", "learning_rate", "seconds"} <= rows[0].keys()


def test_columns_that_come_later_and_epochs_that_are_written_again(tmp_path):
    table = run_logs.Table(tmp_path)
    table.write()
    assert not (tmp_path / "results.csv").exists()
    lines = [{"epoch": 1, "a": 0.5}, {"epoch": 2, "a": 0.25, "val_b": 1}, {"epoch": 3, "a": 2}]
    for line in lines:
        run_logs.append_journal(tmp_path, line)
        table.add(line)
    assert read_table(tmp_path) == as_texts(lines, ("epoch", "a", "val_b"))
    run_logs.drop_epochs_from(tmp_path, 2)
    table.write()
    assert read_table(tmp_path) == [{"epoch": "1", "a": "0.5"}]


class FakeMLflow(SimpleNamespace):
    """What is used of MLflow's client, which remembers what it was told."""

    def __init__(self):
        super().__init__(told=[], groups={}, params={}, ended=[], broken=False)
        self.entities = SimpleNamespace(
            Metric=lambda *values: values, Param=lambda key, value: (key, value)
        )

    def MlflowClient(self):  # noqa: N802
        return self

    def get_experiment_by_name(self, name):
        known = self.groups.get(name)
        return None if known is None else SimpleNamespace(experiment_id=known)

    def create_experiment(self, name):
        return self.groups.setdefault(name, f"group of {name}")

    def create_run(self, group, *, run_name):
        self.told.append(("create", group, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="id-1"))

    def update_run(self, known, *, status):
        self.told.append(("update", known, status))

    def log_batch(self, known, metrics=(), params=()):
        if self.broken and metrics:
            message = "no route\nto the server"
            raise ConnectionError(message)
        assert known == "id-1"
        assert len(params) <= 100
        self.params |= dict(params)
        self.told += [("metric", name, value, step) for name, value, _, step in metrics]

    def set_terminated(self, known, status):
        self.ended.append((known, status))


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
    fake.__spec__ = importlib.util.spec_from_loader("mlflow", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "trees")
    return fake


def test_mlflow(data, tmp_path, mlflow):
    stopped = train_small(
        data, tmp_path / "run", settings={"machine.log": "mlflow"}, stop_after=2, epochs=2
    )
    assert stopped.interrupted
    assert mlflow.ended == [("id-1", "KILLED")]
    run = train_small(data, tmp_path / "run", resume=True)
    assert mlflow.told[0] == ("create", "group of trees", "run")
    assert mlflow.told[1] == ("update", "id-1", "RUNNING")
    lines = read_journal(run.path)
    wanted = [
        ("metric", name, float(value), line["epoch"])
        for line in lines
        for name, value in line.items()
        if name != "epoch"
    ]
    assert mlflow.told[2:] == wanted
    assert mlflow.ended[1:] == [("id-1", "FINISHED")]
    assert mlflow.params["train.batch_size"] == "4"
    assert not any(name.startswith("machine.") for name in mlflow.params)


def test_wandb(data, tmp_path, monkeypatch):
    told = []
    started = SimpleNamespace(
        id="id-2",
        log=lambda values, step: told.append((step, values)),
        summary={},
        finish=lambda exit_code: told.append(exit_code),
    )
    begun = {}

    def init(**options):
        begun.update(options)
        return started

    fake = SimpleNamespace(init=init, Settings=lambda **options: options)
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = train_small(data, tmp_path / "run", settings={"machine.log": "wandb"})
    assert [step for step, _ in told[:-1]] == [1, 2]
    assert told[-1] == 0
    assert told[0][1]["train_loss"] == read_journal(run.path)[0]["train_loss"]
    assert started.summary["best_top1"] == run.metrics["top1"]
    assert (begun["name"], begun["project"], begun["id"]) == ("run", "muntin", None)
    assert begun["config"]["model_name"]
    assert read_json(run.path / "trackers.json") == {"wandb": "id-2"}


def test_a_tracker_that_fails(data, tmp_path, mlflow, monkeypatch):
    mlflow.broken = True
    with pytest.warns(MuntinWarning, match=r"mlflow.*no route"):
        run = train_small(data, tmp_path / "run", settings={"machine.log": "mlflow"})
    assert len(read_table(run.path)) == 2
    monkeypatch.setattr(mlflow, "create_run", lambda *_, **__: 1 / 0)
    with pytest.raises(RunError, match=r"machine\.log=mlflow.*division"):
        train_small(data, tmp_path / "b", settings={"machine.log": "mlflow"})


def test_a_tracker_beside_a_broken_one_is_ended(data, tmp_path, mlflow, monkeypatch):
    fake = SimpleNamespace(init=lambda **_: 1 / 0, Settings=lambda **options: options)
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(RunError, match=r"machine\.log=wandb"):  # the second of both
        train_small(data, tmp_path / "a", settings={"machine.log": "mlflow,wandb"})
    assert mlflow.ended == [("id-1", "FAILED")]


def test_trackers_that_are_not_there(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("warnings.showwarning", None)
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(SystemExit) as ended:
            main(["train", "classify", str(data), "--out", str(tmp_path / "run"), "--log", name])
        assert ended.value.code == 1
        assert f"pip install 'muntin[{name}]'" in capsys.readouterr().err
    with pytest.raises(MissingExtra, match=r"mlflow and wandb.* are .*\[mlflow,wandb\]"):
        train_small(data, tmp_path / "run", settings={"machine.log": "wandb,mlflow"})
    with pytest.raises(SystemExit) as ended:
        main(["train", "classify", str(data), "--log", "foo"])
    assert ended.value.code == 2
    assert "Unknown value of --log: 'foo'. Known: mlflow, tensorboard" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"of log.*'tensorboad'.*'tensorboard'") as wrong:
        train_small(data, tmp_path / "run", settings={"machine.log": "tensorboad"})
    assert not isinstance(wrong.value, MissingExtra)
    assert not (tmp_path / "run").exists()


def test_tensorboard_once_however_it_is_asked_for():
    pytest.importorskip("tensorboard")
    config = run_logs.MachineConfig
    assert run_logs.choose_logs(config()) == ("tensorboard",)
    assert run_logs.choose_logs(config(log=("tensorboard",))) == ("tensorboard",)
    assert run_logs.choose_logs(config(tensorboard="off")) == ()


def test_the_card(data, tmp_path):
    run = train_small(data, tmp_path / "\u6811 run", pictures=True)
    path = run.path / "README.md"
    text = path.read_text(encoding="utf-8")
    card = ModelCard(text)  # raises for metadata that the hub refuses
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "muntin"
    assert card.data.license is None
    found = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert found["top1"] == pytest.approx(run.metrics["top1"])
    assert "\u732b" in text
    for name in NAMES:  # each in a cell of its own
        row = next(line for line in text.splitlines() if name[0] in line and line.startswith("| "))
        assert len([cell for cell in row.replace("\\|", "").split("|") if cell.strip()]) == 3
    links = [line[line.rindex("(") + 1 : -1] for line in text.splitlines() if line[:2] == "!["]
    assert "pictures/curves.png" in links
    assert all((run.path / link).is_file() for link in links)
    assert str(tmp_path) not in text
    split = read_split(run.path)
    counts = f"{split.num_train} images for training, {len(split.held_out)} for validation"
    assert counts in text


def test_a_card_that_was_changed_stays(data, tmp_path):
    run = train_small(data, tmp_path / "run")
    path = run.path / "README.md"
    first = path.read_text(encoding="utf-8")
    train_small(data, tmp_path / "run", resume=True, epochs=3)
    again = path.read_text(encoding="utf-8")
    assert again != first
    assert "| epochs | 3 in" in again
    mine = again.replace("# run", "# My run")
    path.write_text(mine, encoding="utf-8")
    train_small(data, tmp_path / "run", resume=True, epochs=4)
    assert path.read_text(encoding="utf-8") == mine
    path.write_bytes(b"\xff\xfe")
    train_small(data, tmp_path / "run", resume=True, epochs=5)
    assert path.read_bytes() == b"\xff\xfe"


def test_cards_of_other_tasks_and_weights(tmp_path):
    """Of runs as they are on disk: every task has a card that the hub reads."""
    from dataclasses import replace

    from muntin.runs import Run
    from muntin.samples import Entry, Listing
    from tests.golden.material import OLD

    tags = set()
    for folder in sorted(path for path in OLD.iterdir() if path.is_dir()):
        run = Run.open(folder, pretraining=True)
        config = replace(run.config, weights="timm/vit_tiny.in1k", license="CC-BY-NC-4.0")
        run = replace(run, path=tmp_path / folder.name, config=config)
        run.path.mkdir()
        listing = Listing(
            source="x", entries=(Entry(path="a.png", class_ids=(0,)),),
            class_names=run.classes.names,
        )  # fmt: skip
        figures = {"goal": 0.5, "num_images": 3, "iou": [0.1], "none": None}
        assert write_card(run, (listing, listing), figures, (3, 61.0))
        card = ModelCard((run.path / "README.md").read_text(encoding="utf-8"))
        assert (card.data.license, card.data.base_model) == ("cc-by-nc-4.0", "timm/vit_tiny.in1k")
        assert "num\\_images" in card.text or "num_images" in card.text
        assert "CC-BY-NC-4.0" in card.text
        tags.add(card.data.pipeline_tag)
    assert tags == {
        "image-classification", "object-detection", "image-segmentation", "keypoint-detection"
    }  # fmt: skip


def test_pretraining_has_records_too(data, tmp_path):
    run = muntin.pretrain(
        data, out=tmp_path / "run", model="swin_nano_patch2_window4_32", img_size=32, epochs=1,
        settings=SETTINGS, quiet=True, pictures=False, device="cpu", batch_size=8,
    )  # fmt: skip
    card = ModelCard((run.path / "README.md").read_text(encoding="utf-8"))
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert len(read_table(run.path)) == 1
    assert json.loads((run.path / "journal.jsonl").read_text())["epoch"] == 1
    table = muntin.embed(run.path, data, device="cpu")
    assert len(table) == 18
