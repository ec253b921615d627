"""Steps whose loss or gradient is no number: left out whole, counted, their samples named; too many end the run."""

from __future__ import annotations

import logging

import pytest
import torch

from vilavt_toolkit.checkpoints.loading import build, load
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import TrainingError
from vilavt_toolkit.training.losses import target_logprobs_and_hits
from vilavt_toolkit.training.supervised import module as sft
from vilavt_toolkit.training.supervised.data import build_step_sampler
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.supervised.run import run_supervised


def poisoned(recipe, monkeypatch, steps: tuple[int, ...]) -> list[str]:
    """Let one sample of each of some steps lose its likelihood; their ids."""
    sections, model = load_recipe(recipe).recipe, build(recipe)
    task = sections.task.build()
    samples = [
        task.sample("train", build_step_sampler(task, sections.train, sections.seed).step_indices(s)[5]) for s in steps
    ]
    bad = [build_trace_session(model, sample).trajectory.ids for sample in samples]

    def lossless(language_model, states, batch):
        logprobs, hits = target_logprobs_and_hits(language_model, states, batch)
        lengths = batch.documents or batch.mask.sum(1).tolist()
        dialogues = [part.tolist() for part in torch.split(batch.ids[batch.mask], list(lengths))]
        is_bad = torch.zeros(batch.ids.numel(), dtype=torch.bool)
        is_bad[batch.mask.flatten()] = torch.tensor([ids in bad for ids in dialogues for _ in ids])
        return logprobs.where(~is_bad[batch.targets], float("nan")), hits

    monkeypatch.setattr(sft, "target_logprobs_and_hits", lossless)
    return [sample.id for sample in samples]


@pytest.mark.parametrize("setting", ["train.precision=32-true", "train.precision=bf16-mixed", "train.pack_tokens=400"])
def test_a_step_that_is_no_number_is_left_out_and_its_sample_named(tiny_recipe, tmp_path, monkeypatch, caplog, setting):
    (name,) = poisoned(tiny_recipe, monkeypatch, (2,))
    rows = [] if "pack_tokens" in setting else ["train.micro_batch=4"]
    settings = [f"run={tmp_path / 'run'}", setting, *rows]
    with caplog.at_level(logging.WARNING):
        run = run_supervised(load_recipe(tiny_recipe, settings))
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told == [f"step 2 is left out: its loss or gradient is NaN or infinite, with samples {name}."]
    assert all(weight.isfinite().all() for weight in load(run).parameters())


def test_a_step_left_out_changes_neither_weights_nor_the_optimizers_memory(tiny_recipe, tmp_path, monkeypatch):
    poisoned(tiny_recipe, monkeypatch, (3,))
    kept = []
    on_step = SupervisedModule.end_step

    def watched(self, optimizer, loss, culprits):
        if self.step == 3:
            kept.append({name: weight.clone() for name, weight in self.model.named_parameters()})
            kept.append([value.clone() for state in optimizer.state.values() for value in state.values()])
        on_step(self, optimizer, loss, culprits)
        if self.step == 4:
            assert all(torch.equal(weight, kept[0][name]) for name, weight in self.model.named_parameters())
            after = [value for state in optimizer.state.values() for value in state.values()]
            assert len(after) == len(kept[1]) and all(map(torch.equal, after, kept[1]))
            kept.append("looked")

    monkeypatch.setattr(SupervisedModule, "end_step", watched)
    run_supervised(load_recipe(tiny_recipe, [f"run={tmp_path / 'run'}"]))
    assert kept[-1] == "looked"


def test_too_many_steps_left_out_end_the_run_over_a_restart_too(tiny_recipe, tmp_path, monkeypatch):
    settings = [f"run={tmp_path / 'run'}", "train.max_skipped=1"]
    names = poisoned(tiny_recipe, monkeypatch, (0, 3))
    run_supervised(load_recipe(tiny_recipe, [*settings, "train.steps=2", "train.schedule=constant"]))
    with pytest.raises(TrainingError, match=rf"2 steps .*step 3: .*samples {names[1]}\. .*raise train\.max_skipped"):
        run_supervised(load_recipe(tiny_recipe, [*settings, "train.schedule=constant"]), resume=True)


def test_a_gradient_that_overflows_names_all_samples_of_its_step(tiny_recipe, tmp_path, monkeypatch, caplog):
    begun = SupervisedModule.begin_step

    def overflowing(self):
        optimizer = begun(self)
        if self.step == 1:
            weight = next(self.model.projector.parameters())
            handle = weight.register_hook(lambda gradient: handle.remove() or gradient * float("inf"))
        return optimizer

    monkeypatch.setattr(SupervisedModule, "begin_step", overflowing)
    run = run_supervised(load_recipe(tiny_recipe, [f"run={tmp_path / 'run'}", "train.batch_size=10"]))
    assert "step 1 is left out" in caplog.text and "and 2 more" in caplog.text
    assert all(weight.isfinite().all() for weight in load(run).parameters())
