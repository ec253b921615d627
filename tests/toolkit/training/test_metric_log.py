"""The log of metrics holds the recipe's settings, where TensorBoard looks for hyper-parameters."""

from __future__ import annotations

import importlib.util

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from vilavt_toolkit.training.metric_log import build_metric_log, log_recipe

RESOLVED = {"seed": 3, "run": "", "rl": None, "train": {"steps": 4, "freeze": ["encoder"], "optimizer": {"lr": 1e-3}}}
SETTINGS = {"seed": 3, "run": "", "train.steps": 4, "train.freeze": "['encoder']", "train.optimizer.lr": 1e-3}


def test_tensorboard_shows_the_settings_of_a_run(tiny_run):
    events = EventAccumulator(str(tiny_run / "logs"))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["train.optimizer.lr"].number_value == 1e-3
    assert settings["task.name"].string_value == "digit_scenes"
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    (metric,) = HParamsPluginData.FromString(content).experiment.metric_infos
    assert metric.name.tag == "loss" and len(events.Scalars("loss")) == 4, "and no point that is none"


def test_settings_are_written_with_and_without_tensorboard(tmp_path, monkeypatch):
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        logger = build_metric_log(tmp_path / name)
        log_recipe(logger, RESOLVED, "loss")
        logger.log_metrics({"loss": 1.0}, 0)
        logger.save()
        assert yaml.safe_load((tmp_path / name / "logs" / "hparams.yaml").read_text()) == SETTINGS
