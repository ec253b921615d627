"""The log of a run's metrics: TensorBoard's, or CSV where TensorBoard is not installed; it also holds the recipe."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

log = logging.getLogger(__name__)

Setting = bool | int | float | str


def build_metric_log(run: Path) -> Logger:
    """Build the logger of a run; nothing is written yet."""
    if importlib.util.find_spec("tensorboard") is None:
        log.warning("tensorboard is not installed. Metrics go to %s as CSV.", run / "logs")
        return CSVLogger(str(run), name="logs", version="")
    return TensorBoardLogger(str(run), name="logs", version="", default_hp_metric=False)


def log_recipe(logger: Logger | None, resolved: Mapping[str, Any], metric: str) -> None:
    """Write the settings of a recipe as hyper-parameters, under dotted names; `metric` is what they are compared by."""
    settings = dict(_flatten(resolved))
    if isinstance(logger, TensorBoardLogger):
        from torch.utils.tensorboard import summary

        # Lightning would write them only together with a value of the metric, a point in its curve that is not true.
        writer = cast(Any, logger.experiment)._get_file_writer()
        for part in cast(Any, summary).hparams(settings, {metric: 0.0}):
            writer.add_summary(part)
    if logger is not None:
        logger.log_hyperparams(settings)


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Setting]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, value if isinstance(value, Setting) else str(value)
