"""Lightning's logger for trackio, which Lightning does not bring: the calls are those of trackio's own page."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

if TYPE_CHECKING:
    from PIL.Image import Image


class TrackioLogger(Logger):
    """Writes the metrics of a run to trackio; a run of the same name goes on."""

    def __init__(self, project: str, name: str) -> None:
        super().__init__()
        self._project, self._name = project, name
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run's name in the project."""
        return self._name

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Start the run with its settings."""
        self._start(dict(params) if isinstance(params, Mapping) else vars(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics of a step."""
        self._start({}).log(dict(metrics), step=step)

    @rank_zero_only
    def log_pictures(self, tag: str, pictures: Sequence[tuple[Image, str]], step: int) -> None:
        """Write pictures with their captions."""
        import trackio

        shown = {f"{tag}/{number}": trackio.Image(image, caption) for number, (image, caption) in enumerate(pictures)}
        self._start({}).log(shown, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _start(self, settings: dict[str, Any]) -> Any:
        import trackio

        if self._run is None:
            self._run = trackio.init(self._project, name=self._name, config=settings, resume="allow")
        return self._run
