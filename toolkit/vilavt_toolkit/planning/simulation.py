"""Simulating one optimizer step of a recipe on shapes: the stage's own module under Lightning's own trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from vilavt_toolkit.config.schema import PARTS_WITH_WEIGHTS, TrainSection
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.planning.dialogues import Dialogue
from vilavt_toolkit.planning.memory import Peak
from vilavt_toolkit.planning.offload import offload_on_shapes
from vilavt_toolkit.planning.operations import Cost
from vilavt_toolkit.planning.rates import DeviceRates
from vilavt_toolkit.planning.recording import BACKWARD, FORWARD, STEP, RecordingCallback, StepRecorder, hold_gradients
from vilavt_toolkit.planning.shapes import forget_values, run_on_shapes
from vilavt_toolkit.planning.sharded import pretended_processes
from vilavt_toolkit.training.memory import apply_memory_settings
from vilavt_toolkit.training.sharding import shard_model
from vilavt_toolkit.training.supervised.data import StepBatch, build_step_collator
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.trainable import store_frozen
from vilavt_toolkit.training.trainer import make_trainer, weight_dtype
from vilavt_toolkit.training.world import World

if TYPE_CHECKING:
    from vilavt_toolkit.config.recipe import CheckedRecipe


@dataclass
class Simulation:
    """Holds what one optimizer step takes."""

    parameters: dict[str, tuple[int, int]]
    """(trained, frozen) parameters of every part."""
    peaks: dict[str, Peak]
    """The most memory of every phase."""
    cost: Cost
    """The whole step."""
    phases: dict[str, Cost] = field(default_factory=dict)

    @property
    def peak(self) -> Peak:
        """The most memory of all."""
        return max(self.peaks.values(), key=lambda peak: peak.bytes)


def build_planned_model(recipe: CheckedRecipe) -> VisualChatModel:
    """Build a recipe's model, its weights on the meta device and its buffers real; raises RecipeErrors."""
    section = recipe.recipe.model
    model = assemble_model(section, recipe.where, filled=frozenset(PARTS_WITH_WEIGHTS))
    fixed = model.dialogue.fixed_strings(section.source.entry.cls.box_key)
    try:
        corpus = recipe.recipe.task.build().corpus()
    except InputError:
        # Without its data files a tokenizer from scratch knows bytes alone, which changes no shape.
        corpus = []
    model.language_model.fit_tokenizer(corpus, fixed)
    return model


def simulate_supervised_step(
    recipe: CheckedRecipe, model: VisualChatModel, dialogues: Sequence[Dialogue], rates: DeviceRates, devices: int = 1
) -> Simulation:
    """Simulate one optimizer step of `vilavt train` on the dialogues of one device, as many as it has of a step.

    With several devices under strategy fsdp2 weights, gradients and moments are sharded over them. Of many
    micro-batches the one of mean length and the longest are run; the first stands for all the others.
    """
    section = recipe.recipe.train
    recorder = StepRecorder(model.language_model.vocab_size, rates)
    collate = build_step_collator(model, section)
    chosen, times = choose_micro_batches(collate(dialogues))
    is_sharded = devices > 1 and section.strategy == "fsdp2"
    with ExitStack() as stack:
        mesh = stack.enter_context(pretended_processes(devices, recorder.memory)) if is_sharded else None
        stack.enter_context(run_on_shapes(recorder))
        give_weights(recipe, model, recorder)
        module = SupervisedModule(model, section.optimizer.build(), section)
        store_frozen(model, section, section.precision)
        parameters = count_parameters(model)
        if sum(times) > 1:
            hold_gradients(module, recorder)
        if mesh is not None:
            shard_model(model, mesh, section.precision == "bf16-mixed")
            # Sharded weights are gathered in their number format, without autocast.
            section = replace(section, precision="32-true" if section.precision == "bf16-mixed" else section.precision)
        fit(module, [chosen], section, recorder)
    return summarise(recorder, parameters, dict(enumerate(times)))


def choose_micro_batches(batch: StepBatch) -> tuple[StepBatch, list[int]]:
    """Return a step of at most two of a step's micro-batches, and how many micro-batches each of them stands for.

    The last one is the longest.
    """
    every = batch.micro_batches
    sizes = [micro_batch.ids.numel() for micro_batch in every]
    if min(sizes) == max(sizes):
        return StepBatch(every[-1:]), [len(every)]
    mean = sum(sizes) / len(sizes)
    middle = min(range(len(every) - 1), key=lambda place: abs(sizes[place] - mean))
    return StepBatch([every[middle], every[-1]]), [len(every) - 1, 1]


def give_weights(recipe: CheckedRecipe, model: VisualChatModel, recorder: StepRecorder) -> None:
    """Give a model fake weights in the type that training starts with, and the memory settings of the recipe."""
    section = recipe.recipe.train
    # Pretrained weights are read in this type, and new parts beside them get it too.
    forget_values(model, weight_dtype(section.precision) if recipe.recipe.model.checkpoint else None)
    apply_memory_settings(model, section)
    if section.offload_activations and recorder.rates.is_gpu:
        offload_on_shapes(model, recorder.memory)


def count_parameters(model: VisualChatModel) -> dict[str, tuple[int, int]]:
    """Return (trained, frozen) parameters of every part."""
    counted: dict[str, tuple[int, int]] = {}
    for kind, part in model.parts().items():
        trained = sum(weight.numel() for weight in part.parameters() if weight.requires_grad)
        counted[kind] = trained, sum(weight.numel() for weight in part.parameters()) - trained
    return counted


class _Loader:
    """A loader of given batches; Lightning takes a list for several loaders."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def fit(module: pl.LightningModule, batches: Sequence[Any], section: TrainSection, recorder: StepRecorder) -> None:
    """Run batches through a module under the trainer that `vilavt train` makes, with the recorder listening."""
    # float16 has the memory and the rate of bfloat16, and no loss scaler is needed for numbers without values.
    precision: Any = "bf16-mixed" if section.precision == "16-mixed" else section.precision
    # Its averages of what is shown in a progress bar would have to be copied, and there is no bar.
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make_trainer(
            replace(section, precision=precision, accelerator="cpu", devices=1, nodes=1, strategy="auto"),
            World(),
            logger=False,
            enable_progress_bar=False,
            callbacks=[RecordingCallback(recorder, fuse_optimizers=recorder.rates.is_gpu)],
        )
        trainer.fit(module, _Loader(batches))


def summarise(recorder: StepRecorder, parameters: dict[str, tuple[int, int]], times: Mapping[int, int]) -> Simulation:
    """Return what a whole step takes, if micro-batch i stands for times[i] micro-batches."""
    phases = {phase: Cost() for phase in (FORWARD, BACKWARD, STEP)}
    for (phase, number), cost in recorder.costs.items():
        # The optimizer's step comes behind the last micro-batch, once.
        phases.setdefault(phase, Cost()).add(cost, 1 if phase == STEP else times.get(number, 1))
    total = Cost()
    for cost in phases.values():
        total.add(cost)
    return Simulation(parameters, recorder.memory.peaks, total, phases)
