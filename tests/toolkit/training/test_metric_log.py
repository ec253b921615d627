"""Trackers get settings, versions, metrics and pictures; one that is away is told and ends no run."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging

import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import TrainingError, UsageError
from vilavt_toolkit.training.metric_log import MetricLog, check_trackers
from vilavt_toolkit.training.supervised.run import run_supervised

RESOLVED = {"seed": 3, "run": "", "rl": None, "train": {"steps": 4, "freeze": ["encoder"], "optimizer": {"lr": 1e-3}}}
FACTS = {"versions": {"torch": "2.14"}, "git": {}}
SETTINGS = {"seed": 3, "run": "", "train.steps": 4, "train.freeze": "['encoder']", "train.optimizer.lr": 1e-3}
SETTINGS |= {"versions.torch": "2.14", "git": "{}"}


def read_events(run) -> EventAccumulator:
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    return events


def test_tensorboard_shows_the_settings_and_versions_of_a_run(tiny_run):
    events = read_events(tiny_run)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["train.optimizer.lr"].number_value == 1e-3
    assert settings["task.name"].string_value == "digit_scenes"
    versions = json.loads((tiny_run / "versions.json").read_text())
    assert settings["versions.torch"].string_value == versions["torch"]
    git = json.loads((tiny_run / "git.json").read_text())
    assert settings["git.commit"].string_value == git["commit"] if git else "git.commit" not in settings
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    (metric,) = HParamsPluginData.FromString(content).experiment.metric_infos
    assert metric.name.tag == "loss" and len(events.Scalars("loss")) == 4, "and no point that is none"


def logged(run, names, start=0) -> MetricLog:
    metric_log = MetricLog(run, names, start)
    metric_log.start(RESOLVED, "loss", FACTS)
    metric_log.log_metrics({"loss": 1.0 + start}, start)
    metric_log.log_pictures("validation", [(Image.new("RGB", (8, 6), "red"), "what? red")], start)
    metric_log.finish()
    for logger in metric_log.loggers.values():
        logger.finalize("success")
    return metric_log


def test_settings_are_written_with_and_without_tensorboard(tmp_path, monkeypatch):
    logged(tmp_path / "with", ["tensorboard"])
    assert yaml.safe_load((tmp_path / "with" / "logs" / "hparams.yaml").read_text()) == SETTINGS
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    logged(tmp_path / "without", ["tensorboard"])
    assert rows_of(tmp_path / "without", 0) == [("0", "1.0")]


def rows_of(run, start: int) -> list[tuple[str, str]]:
    folder = run / "logs" / "csv" / f"from-step-{start:08d}"
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == SETTINGS
    with (folder / "metrics.csv").open() as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def test_several_trackers_get_the_same_and_pictures_go_where_they_are_shown(tmp_path):
    logged(tmp_path, ["csv", "tensorboard", "csv"])
    logged(tmp_path, ["csv", "tensorboard"], start=5)
    assert (rows_of(tmp_path, 0), rows_of(tmp_path, 5)) == ([("0", "1.0")], [("5", "6.0")]), (
        "no start removes another's"
    )
    events = read_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 1.0), (5, 6.0)]
    assert [(shown.width, shown.height) for shown in events.Images("validation/0")] == [(8, 6), (8, 6)]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(tiny_recipe, tmp_path, monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    with pytest.raises(UsageError, match=rf"names {name}, .*pip install 'vilavt-toolkit\[{name}\]'"):
        check_trackers(["csv", name])
    with pytest.raises(UsageError, match=f"names {name}"):
        run_supervised(load_recipe(tiny_recipe, [f"run={tmp_path / 'run'}", f"train.trackers=[{name}]"]))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_a_trackers_name_is_not_its_package(tmp_path, monkeypatch):
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if importlib.util.find_spec("trackio").origin is not None:
        pytest.skip("it is installed")
    with pytest.raises(UsageError, match="trackio is not installed"):
        check_trackers(["trackio"])


class Away:
    """A logger of a service that cannot be reached."""

    def log_hyperparams(self, settings):
        raise ConnectionError("no route to host")

    def log_metrics(self, metrics, step):
        raise ConnectionError("no route\nto host")


def test_a_service_that_is_away_is_told_and_costs_no_run(tmp_path, caplog):
    metric_log = MetricLog(tmp_path, ["csv"])
    metric_log.loggers["mlflow"] = Away()
    with pytest.raises(TrainingError, match=r"^train\.trackers: mlflow cannot be started \(ConnectionError: no route"):
        metric_log.start(RESOLVED, "loss", FACTS)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            metric_log.log_metrics({"loss": 1.0}, step)
    assert caplog.messages == [
        "mlflow does not take what it is given (ConnectionError: no route to host). Training goes on."
    ]
    assert len(rows_of(tmp_path, 0)) == 3


def test_mlflow_keeps_a_resumed_run_in_one(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first, second = (logged(tmp_path, ["mlflow"], start) for start in (0, 5))
    run = first.loggers["mlflow"].run_id
    assert second.loggers["mlflow"].run_id == run == json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    assert [(point.step, point.value) for point in client.get_metric_history(run, "loss")] == [(0, 1.0), (5, 6.0)]
    assert client.get_run(run).data.params["train.steps"] == "4"
    assert [found.path for found in client.list_artifacts(run, "validation")] != []


def test_wandb_writes_offline_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, second = (logged(tmp_path, ["wandb"], start) for start in (0, 5))
    assert first.loggers["wandb"].version == second.loggers["wandb"].version
    folders = [path for path in (tmp_path / "logs" / "wandb").iterdir() if path.name.startswith("offline-run")]
    assert all(path.name.endswith(first.loggers["wandb"].version) for path in folders) and folders


def test_trackio_keeps_a_resumed_run_in_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    first, second = (logged(tmp_path, ["trackio"], start) for start in (0, 5))
    assert first.loggers["trackio"].version == second.loggers["trackio"].version
