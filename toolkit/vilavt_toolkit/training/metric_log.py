"""The trackers of a run: they get its metrics, its settings and the versions it runs with, and pictures."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from vilavt_toolkit.config.schema import TrackerName
from vilavt_toolkit.errors import TrainingError, UsageError
from vilavt_toolkit.training.trackio_logger import TrackioLogger
from vilavt_toolkit.utils.files import read_json, write_json
from vilavt_toolkit.utils.text import shorten_text

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

Setting = bool | int | float | str

_IDS_FILE = "trackers.json"
"""The file of a run with the names that trackers gave it, under which a resumed run goes on."""
_PROJECT = "vilavt"
"""The project, or experiment, of trackers that sort runs into some, unless their own variable names another."""
_SERVICES = ("wandb", "mlflow", "trackio")
"""Trackers that are packages of their own, as the extras of this one are called."""


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise UsageError for a tracker whose package is not installed."""
    for name in names:
        if name in _SERVICES and not _is_installed(name):
            raise UsageError(
                f"train.trackers names {name}, and the package {name} is not installed. Run: pip install "
                f"'vilavt-toolkit[{name}]'"
            )


def _is_installed(name: str) -> bool:
    # A folder of that name, as W&B leaves one where it runs, is found too, but has no file of its own.
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


class MetricLog:
    """The trackers of one stage, by name. A service that fails later is told once and ends no run."""

    def __init__(self, run: Path, names: Sequence[TrackerName], start_step: int = 0) -> None:
        """Make the trackers of a run that begins at `start_step`; a resumed one goes on under its old names."""
        self.run = run
        self._ids: dict[str, str] = _read_ids(run) if start_step else {}
        self._resumed = frozenset(self._ids)
        self._told: set[str] = set()
        self.loggers: dict[str, Logger] = {}
        """Lightning's loggers, by the names that recipes use."""
        (run / "logs").mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(names):
            self.loggers[name] = self._build_logger(name, start_step)

    def _build_logger(self, name: TrackerName, start_step: int) -> Logger:
        run, logs = str(self.run), self.run / "logs"
        if name == "tensorboard":
            if _is_installed("tensorboard"):
                return TensorBoardLogger(run, name="logs", version="", default_hp_metric=False)
            log.warning("tensorboard is not installed. Metrics go to %s as CSV.", logs / "csv")
        if name in ("tensorboard", "csv"):
            # In a folder for each start: this logger begins its file anew, and what came before would be lost.
            return CSVLogger(run, name="logs", version=f"csv/from-step-{start_step:08d}")
        if name == "wandb":
            project = os.environ.get("WANDB_PROJECT", _PROJECT)
            chosen = self._ids.setdefault(name, secrets.token_hex(4))
            return WandbLogger(self.run.name, save_dir=logs, id=chosen, project=project)
        if name == "trackio":
            chosen = self._ids.setdefault(name, f"{self.run.name}-{secrets.token_hex(4)}")
            return TrackioLogger(os.environ.get("TRACKIO_PROJECT", _PROJECT), chosen)
        return MLFlowLogger(
            os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
            run_name=self.run.name,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(logs / 'mlflow.db').resolve()}",
            artifact_location=None if os.environ.get("MLFLOW_TRACKING_URI") else (logs / "mlflow").resolve().as_uri(),
            run_id=self._ids.get(name),
        )

    def start(self, resolved: Mapping[str, Any], metric: str, facts: Mapping[str, Any]) -> None:
        """Start every tracker with the recipe's settings and `facts` (versions, state of git) under dotted names.

        `metric` is the one that runs are compared by. Raises TrainingError for a service that cannot be reached.
        """
        settings = dict(_flatten({**resolved, **facts}))
        for name, logger in self.loggers.items():
            try:
                self._start_logger(name, logger, settings, metric)
            # Each service has errors of its own, and the first contact shows what is wrong with key or address.
            except Exception as error:
                if name not in _SERVICES:
                    raise
                raise TrainingError(
                    f"train.trackers: {name} cannot be started ({_describe(error)}). Log in, or set its address, or "
                    "leave it out."
                ) from error
        if self._ids:
            write_json(self.run / _IDS_FILE, self._ids)

    def _start_logger(self, name: str, logger: Logger, settings: dict[str, Setting], metric: str) -> None:
        if isinstance(logger, TensorBoardLogger):
            from torch.utils.tensorboard import summary

            # Lightning would write them only with a value of the metric, a point in its curve that is not true.
            writer = cast(Any, logger.experiment)._get_file_writer()
            for part in cast(Any, summary).hparams(settings, {metric: 0.0}):
                writer.add_summary(part)
        # MLflow keeps the settings that a run began with, and refuses others.
        if not (isinstance(logger, MLFlowLogger) and name in self._resumed):
            logger.log_hyperparams(settings)
        if isinstance(logger, MLFlowLogger):
            self._ids[name] = str(logger.run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Give the metrics of a step to every tracker."""
        for name, logger in self.loggers.items():
            self._try(name, lambda logger=logger: _write_metrics(logger, metrics, step))

    @property
    def takes_pictures(self) -> bool:
        """True if a tracker shows pictures."""
        return any(not isinstance(logger, CSVLogger) for logger in self.loggers.values())

    def log_pictures(self, tag: str, pictures: Sequence[tuple[Image, str]], step: int) -> None:
        """Give pictures, each with its caption, to every tracker that takes some; CSV takes none."""
        for name, logger in self.loggers.items():
            self._try(name, lambda logger=logger: _write_pictures(logger, tag, pictures, step))

    def finish(self) -> None:
        """End the runs of services that keep one open in this process, so that the next stage gets its own."""
        for name, logger in self.loggers.items():
            if isinstance(logger, WandbLogger):
                self._try(name, lambda logger=logger: logger.experiment.finish())

    def _try(self, name: str, write: Any) -> None:
        try:
            write()
        # See `start`. Days of training are worth more than the curve of a server that is away for a while.
        except Exception as error:
            if name not in _SERVICES:
                raise
            if name not in self._told:
                self._told.add(name)
                log.warning("%s does not take what it is given (%s). Training goes on.", name, _describe(error))


def _read_ids(run: Path) -> dict[str, str]:
    # A run of an earlier version has none, and a damaged file is worth no more than a new name.
    try:
        found = read_json(run / _IDS_FILE)
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _describe(error: Exception) -> str:
    return shorten_text(" ".join(f"{type(error).__name__}: {error}".split()).rstrip("."), 300)


def _write_metrics(logger: Logger, metrics: Mapping[str, float], step: int) -> None:
    logger.log_metrics(dict(metrics), step)
    logger.save()


def _write_pictures(logger: Logger, tag: str, pictures: Sequence[tuple[Image, str]], step: int) -> None:
    import numpy as np

    if isinstance(logger, TensorBoardLogger):
        # TensorBoard and MLflow have no captions.
        for number, (picture, _) in enumerate(pictures):
            cast(Any, logger.experiment).add_image(f"{tag}/{number}", np.asarray(picture), step, dataformats="HWC")
        logger.save()
    elif isinstance(logger, WandbLogger):
        captions = [caption for _, caption in pictures]
        logger.log_image(tag, [picture for picture, _ in pictures], step, caption=captions)
    elif isinstance(logger, TrackioLogger):
        logger.log_pictures(tag, pictures, step)
    elif isinstance(logger, MLFlowLogger):
        for number, (picture, _) in enumerate(pictures):
            cast(Any, logger.experiment).log_image(logger.run_id, picture, f"{tag}/step-{step:08d}/{number}.png")


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Setting]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, value if isinstance(value, Setting) else str(value)
