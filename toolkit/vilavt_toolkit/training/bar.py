"""The progress bar of training: steps, time left, and the logged metrics."""

from __future__ import annotations

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm


class StepBar(TQDMProgressBar):
    """Counts the optimizer steps of this fit: what is done, and the time left."""

    def init_train_tqdm(self) -> Tqdm:
        """The bar, named after what it counts."""
        bar = super().init_train_tqdm()
        bar.set_description("training")
        return bar

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description("training")
