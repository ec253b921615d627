"""Training runs: exact resuming, precisions, what is frozen, what a failed start leaves behind."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
import weakref
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from rich.console import Console
from safetensors.torch import load_file

from vilavt_toolkit.checkpoints.exporting import export
from vilavt_toolkit.checkpoints.loading import build, load
from vilavt_toolkit.checkpoints.training_state import load_training_state
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.errors import InputError, RunError, TrainingError, UsageError
from vilavt_toolkit.evaluation import run as evaluation_run
from vilavt_toolkit.evaluation.run import choose_dtype
from vilavt_toolkit.models import saved_activations
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.training import trainer
from vilavt_toolkit.training.callbacks import progress_bar as bar
from vilavt_toolkit.training.callbacks.interruption import Interruption
from vilavt_toolkit.training.losses import target_logprobs_and_hits
from vilavt_toolkit.training.supervised import data
from vilavt_toolkit.training.supervised import module as sft
from vilavt_toolkit.training.supervised import run as run_module
from vilavt_toolkit.training.supervised.data import build_step_loader, build_step_sampler
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.supervised.run import run_supervised
from vilavt_toolkit.vision import dynamic_encoder


def run_of(recipe: Path, run: Path, *overrides: str, resume: bool = False, allow_changes: bool = False) -> Path:
    return run_supervised(load_recipe(recipe, [f"run={run}", *overrides]), resume, allow_changes)


def tensors(run: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("prepare", ["ahead", "stream"])
def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(tiny_recipe, tmp_path, prepare):
    """With dropout, so that the random numbers count; the optimizer and they agree too."""
    settings = [f"train.preprocess={prepare}", "model.language_model.config.attention_dropout=0.2"]
    whole = run_of(tiny_recipe, tmp_path / "whole", *settings)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step-00000004")
    torch.randn(7)
    run_of(tiny_recipe, broken, *settings, resume=True)
    assert not torch.equal(*(next(iter(tensors(whole, step).values())) for step in (2, 4)))
    for name in ("model", "resume"):
        assert_equal(tensors(broken, 4, name), tensors(whole, 4, name))


def test_a_run_can_begin_with_the_weights_of_another(tiny_recipe, tiny_run, tmp_path):
    begun = run_of(
        tiny_recipe, tmp_path / "more", f"train.init_from={tiny_run}", "train.steps=1", "train.optimizer.lr=0"
    )
    assert_equal(tensors(begun, 1), tensors(tiny_run, 4))
    with pytest.raises(UsageError, match="lies in"):
        run_of(tiny_recipe, begun, f"train.init_from={begun}")
    assert_equal(tensors(begun, 1), tensors(tiny_run, 4))


def test_a_run_says_what_it_cost(tiny_run):
    cost = json.loads((tiny_run / "cost.json").read_text())
    model = load(tiny_run)
    assert cost["parameters"]["encoder"] == sum(weight.numel() for weight in model.vision.backbone.parameters())
    assert cost["parameters"]["all"] == sum(weight.numel() for weight in model.parameters())
    assert cost["parameters"].keys() == {*model.parts(), "all"} and cost["parameters"]["inquiry_encoder"] > 0
    assert sum(cost["parameters"].values()) == 2 * cost["parameters"]["all"], "parts share nothing here"
    assert cost["steps"] == 4 and 0 < cost["seconds_per_step"] < 60
    assert cost["device"] == "cpu" and cost["threads"] >= 1


def test_workers_change_nothing(tiny_recipe, tiny_run, tmp_path):
    for prepare in ("ahead", "stream"):
        run = run_of(tiny_recipe, tmp_path / prepare, f"train.preprocess={prepare}", "train.workers=1")
        assert_equal(tensors(run, 4), tensors(tiny_run, 4))


def test_training_changes_every_part_that_learns(tiny_recipe, tiny_run, _tiny_folder):
    before = dict(build(_tiny_folder / "tiny.yaml").named_parameters())
    after = dict(load(tiny_run).named_parameters())
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    for part in ("vision.backbone.", "vision.modulators.", "projector.", "language_model."):
        assert any(name.startswith(part) for name in changed), part


def test_the_run_keeps_its_recipe_its_versions_and_its_metrics_by_step(tiny_run, tmp_path):
    assert load_recipe(tiny_run / "recipe.yaml").recipe.train.steps == 4
    assert json.loads((tiny_run / "versions.json").read_text())["torch"] == torch.__version__.split("+")[0]
    assert [path.name for path in sorted((tiny_run / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]
    losses = logged(tiny_run)
    assert [step for step, _ in losses] == [0, 1, 2, 3]
    assert all(0 < loss < 100 for _, loss in losses)
    resumed = Path(shutil.copytree(tiny_run, tmp_path / "resumed"))
    shutil.rmtree(resumed / "logs")
    run_supervised(load_recipe(resumed / "recipe.yaml", [f"run={resumed}", "train.steps=6"]), resume=True)
    assert [step for step, _ in logged(resumed)] == [4, 5], "a resumed run's curve goes on"


def test_metrics_are_logged_at_the_same_steps_in_a_run_that_was_resumed(tiny_recipe, tmp_path):
    settings = ["train.log_every=3", "train.schedule=constant"]
    whole = run_of(tiny_recipe, tmp_path / "whole", *settings, "train.steps=7")
    assert [step for step, _ in logged(whole)] == [2, 5]
    broken = run_of(tiny_recipe, tmp_path / "broken", *settings, "train.steps=4")
    run_of(tiny_recipe, broken, *settings, "train.steps=7", resume=True)
    assert logged(broken) == logged(whole)


def logged(run: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_a_new_run_sets_the_old_one_aside_and_loses_nothing(tiny_recipe, tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "mine.txt").write_text("notes")
    for number in (1, 2):
        run_of(tiny_recipe, run, "train.steps=1")
        aside = tmp_path / f"run.old-{number}"
        assert aside.is_dir() and [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000001"]
    assert (tmp_path / "run.old-1" / "mine.txt").read_text() == "notes"
    load(tmp_path / "run.old-1")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_precision_trains_and_loads_on_a_cpu(tiny_recipe, tmp_path, precision):
    settings = [f"train.precision={precision}", "train.batch_size=4"]
    run = run_of(tiny_recipe, tmp_path / "run", *settings, "train.steps=2", "train.checkpoint_every=1")
    wanted = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {tensor.dtype for tensor in tensors(run, 2).values() if tensor.is_floating_point()} == {wanted}
    assert all(tensor.isfinite().all() for tensor in tensors(run, 2).values())
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    run_of(tiny_recipe, run, *settings, "train.steps=2", resume=True)
    computed = torch.float32 if precision == "32-true" else torch.bfloat16
    assert dtypes(load(run)) == {computed}
    assert dtypes(load(run, dtype="float32")) == {torch.float32}
    # Exports hold what is saved, and evaluations compute as training did.
    assert dtypes(load(export(run, tmp_path / "exported", "native"), dtype="float64")) == {torch.float64}
    stored = load_file(tmp_path / "exported" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {wanted}
    assert (choose_dtype(load_recipe(run / "recipe.yaml")) or wanted) == computed
    assert choose_dtype(load_recipe(run / "recipe.yaml", ["eval.dtype=float32"])) is torch.float32


def test_training_in_bfloat16_reaches_the_loss_of_float32_and_keeps_the_other_half(tiny_recipe, tmp_path, monkeypatch):
    losses: dict[str, list[float]] = {}

    def noted(self, values, **_):
        losses[precision] = [*losses.get(precision, []), *(float(values[key]) for key in ("loss",) if key in values)]

    monkeypatch.setattr(SupervisedModule, "log_metrics", noted)
    for precision in ("32-true", "bf16-true"):
        run = run_of(tiny_recipe, tmp_path / precision, "train.steps=16", f"train.precision={precision}")
    full, half = (sum(values[-4:]) / 4 for values in losses.values())
    assert half == pytest.approx(full, rel=0.02) and full < 0.9 * losses["32-true"][0]
    state = load_file(run / "checkpoints" / "step-00000016" / "resume.safetensors")
    halves = {name: value for name, value in state.items() if name.endswith(".remainder")}
    assert len(halves) > 20 and {value.dtype for value in halves.values()} == {torch.int16}


def dtypes(model) -> set[torch.dtype]:
    return {weight.dtype for weight in model.parameters()}


def test_a_bf16_mixed_run_answers_in_bf16_as_under_the_autocast_of_its_training(tiny_recipe, tmp_path, tiny_task):
    run = run_of(tiny_recipe, tmp_path / "run", "train.precision=bf16-mixed", "train.steps=2", "train.batch_size=4")
    exact, loaded = load(run, dtype="float32"), load(run)
    session = build_trace_session(exact, tiny_task.sample("train", 0))
    batch = collate([session.trajectory], [session.views], exact.language_model)
    with torch.no_grad():
        full, found = exact(batch), loaded(batch).float()
        with torch.autocast("cpu", torch.bfloat16):
            trained = exact(batch).float()
    full, found, trained = (logits.softmax(-1) for logits in (full, found, trained))
    # The error of both against float32 is the rounding of bfloat16.
    assert 0 < (found - full).abs().mean() < 4 * (trained - full).abs().mean()


def test_an_evaluation_of_a_run_computes_in_the_format_of_its_training(tiny_recipe, tmp_path, monkeypatch):
    run = run_of(tiny_recipe, tmp_path / "run", "train.precision=bf16-mixed", "train.steps=1", "train.batch_size=4")
    seen, evaluate = [], evaluation_run.evaluate_arms

    def note(model, *arguments, **settings):
        seen.append(dtypes(model))
        return evaluate(model, *arguments, **settings)

    monkeypatch.setattr(evaluation_run, "evaluate_arms", note)
    for overrides in ([], ["eval.dtype=float32"]):
        evaluation_run.evaluate_run(run, ["eval.items=1", "eval.arms=[single_pass]", *overrides], Console(quiet=True))
    assert seen == [{torch.bfloat16}, {torch.float32}]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.precision=16-mixed", "16-mixed needs a CUDA GPU"),
        ("train.accelerator=abacus", "train.accelerator 'abacus'"),
        ("train.freeze=[encoder,modulator,inquiry_encoder,projector,language_model]", "nothing to train"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_old_run_in_its_place(
    tiny_recipe, tiny_run, tmp_path, override, words
):
    if "16-mixed" in override and torch.cuda.is_available():
        pytest.skip("it can be trained here")
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    settings = [] if "accelerator" in override else ["train.accelerator=cpu"]
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=words) as error:
        run_of(tiny_recipe, run, *settings, override)
    assert "\n" not in str(error.value)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def fitted(recipe: Path, *overrides: str, plugins=()) -> SupervisedModule:
    """A module after its steps, with the gradients of the last one in `grads`."""
    torch.manual_seed(0)
    sections = load_recipe(recipe, overrides).recipe
    model, task = build(recipe), sections.task.build()
    optimizer = sections.train.optimizer.build()
    module = Observed(model, optimizer, sections.train)
    trainer = pl.Trainer(
        accelerator="cpu",
        plugins=list(plugins),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, build_step_loader(model, task, sections.train, 0))
    return module


class Observed(SupervisedModule):
    """Keeps the gradients of the last step, unclipped."""

    def on_before_optimizer_step(self, optimizer):
        named = self.model.named_parameters()
        self.grads = {name: weight.grad.clone() for name, weight in named if weight.grad is not None}
        super().on_before_optimizer_step(optimizer)


def test_loss_scaling_trains_in_half_precision(tiny_recipe):
    """16-mixed as on a GPU, with the loss scale taken out once, before clipping."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    settings = ["train.batch_size=2", "train.steps=1"]
    scaled = fitted(tiny_recipe, *settings, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    plain = fitted(tiny_recipe, *settings)
    assert scaled.step == plain.step == 1
    assert float(scaled._norm) == pytest.approx(float(plain._norm), rel=0.05), "of the gradient, not of the scaled one"
    moved = [
        (a - b).abs().max() for a, b in zip(scaled.model.parameters(), build(tiny_recipe).parameters(), strict=True)
    ]
    assert max(moved) > 0


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_a_step_has_the_same_gradient_in_micro_batches(tiny_recipe, micro):
    whole = fitted(tiny_recipe, "train.steps=1")
    split = fitted(tiny_recipe, "train.steps=1", f"train.micro_batch={micro}")
    assert split.grads.keys() == whole.grads.keys()
    for name, expected in whole.grads.items():
        assert (split.grads[name] - expected).abs().max() < 1e-4 * max(1e-2, expected.abs().max()), name
    assert float(split._norm) == pytest.approx(float(whole._norm), rel=1e-4)


def test_the_gradient_is_clipped_to_the_recipes_norm(tiny_recipe):
    small = fitted(tiny_recipe, "train.steps=1", "train.gradient_clip=0.01")
    clipped = torch.stack([w.grad.norm() for w in small.model.parameters() if w.grad is not None]).norm()
    assert float(small._norm) > 0.1 and float(clipped) == pytest.approx(0.01, rel=1e-3)
    free = fitted(tiny_recipe, "train.steps=1", "train.gradient_clip=null")
    assert all(torch.equal(w.grad, free.grads[n]) for n, w in free.model.named_parameters() if w.grad is not None)


def test_parts_that_come_in_evaluation_mode_are_trained_in_training_mode_and_frozen_ones_are_not(tiny_recipe):
    module = fitted(tiny_recipe, "train.steps=1", "train.freeze=[encoder]")
    assert module.model.language_model.model.training and module.model.projector.training
    assert not any(part.training for part in module.model.vision.backbone.modules())


@pytest.mark.parametrize("part", ["encoder", "modulator", "projector", "language_model"])
def test_a_frozen_part_keeps_its_weights_and_the_others_learn(tiny_recipe, tiny_model, tmp_path, part):
    settings = ["train.steps=2", "train.batch_size=4", f"train.freeze=[{part}]", "train.freeze_new=true"]
    run = run_of(tiny_recipe, tmp_path / "run", *settings)
    prefix = {"encoder": "vision.backbone.", "modulator": "vision.modulators."}.get(part, f"{part}.")
    before, after = tiny_model.state_dict(), load(run).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith(prefix) for name in changed)


def test_a_frozen_part_keeps_its_running_statistics_too(tiny_recipe, tmp_path):
    stem = ["model.encoder.stem={channels: [8, 16], strides: [2, 4], norm: batchnorm2d}", "train.freeze=[encoder]"]
    before = build(tiny_recipe, stem[:1]).state_dict()
    run = run_of(tiny_recipe, tmp_path / "run", "train.steps=2", "train.batch_size=4", *stem)
    after = load(run).state_dict()
    statistics = [name for name in before if "running_" in name]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)


def test_resuming_what_was_never_trained_or_trained_otherwise_is_one_sentence(tiny_recipe, tiny_run, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        run_of(tiny_recipe, tmp_path / "none", resume=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no checkpoint"):
        run_of(tiny_recipe, tmp_path / "empty", resume=True)
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    with pytest.raises(RunError, match=r"train\.freeze"):
        run_of(tiny_recipe, run, "train.steps=6", "train.freeze=[encoder]", resume=True)
    with pytest.raises(
        RunError, match=r"of another architecture \(mis-shaped: projector.* Set `model` as in .*recipe"
    ) as told:
        run_of(tiny_recipe, run, "train.steps=6", "model.projector.hidden_dim=48", resume=True, allow_changes=True)
    assert len(str(told.value)) < 600
    with pytest.raises(RunError, match=r"of another architecture \(missing: vision.*; unexpected: vision"):
        run_of(
            tiny_recipe, tmp_path / "eye", f"train.init_from={tiny_run}", "train.steps=1", "model.encoder=timm_stages"
        )
    (run / "checkpoints" / "step-00000004" / "resume.json").unlink()
    with pytest.raises(RunError, match="no training state"):
        run_of(tiny_recipe, run, "train.steps=6", resume=True)


def test_gradient_checkpointing_trains_the_same_weights(tiny_recipe, tiny_run, tmp_path, monkeypatch):
    saved, checkpoint = [], dynamic_encoder.checkpoint
    monkeypatch.setattr(dynamic_encoder, "checkpoint", lambda *a, **k: saved.append(1) or checkpoint(*a, **k))
    run = run_of(tiny_recipe, tmp_path / "run", "train.gradient_checkpointing=true", "train.steps=4")
    assert len(saved) == 4 * 2, "every block of every step"
    found, expected = tensors(run, 4), tensors(tiny_run, 4)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_layers_of_the_language_model_computed_again_train_the_same_weights(
    tiny_recipe, tiny_run, tmp_path, monkeypatch
):
    saved, checkpoint = [], saved_activations.checkpoint
    monkeypatch.setattr(saved_activations, "checkpoint", lambda *a, **k: saved.append(1) or checkpoint(*a, **k))
    settings = ("train.language_model_checkpointing=2", "train.offload_activations=true", "train.steps=4")
    run = run_of(tiny_recipe, tmp_path / "run", *settings)
    assert len(saved) == 4, "every second layer of two, of every step"
    found, expected = tensors(run, 4), tensors(tiny_run, 4)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.nightly
def test_compiled_blocks_train_the_same_weights_under_the_same_names(tiny_recipe, tiny_run, tmp_path, monkeypatch):
    compiled, compile_blocks = [], dynamic_encoder.DynamicEncoder.compile_blocks
    monkeypatch.setattr(
        dynamic_encoder.DynamicEncoder,
        "compile_blocks",
        lambda self: compiled.append(1) or compile_blocks(self, backend="eager"),
    )
    run = run_of(tiny_recipe, tmp_path / "run", "train.compile=true", "train.steps=4")
    assert compiled == [1]
    found, expected = tensors(run, 4), tensors(tiny_run, 4)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_a_finished_run_is_not_trained_again(tiny_recipe, tiny_run, tmp_path, caplog):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    run_of(tiny_recipe, run, resume=True)
    assert "all 4 steps" in caplog.text
    assert_equal(tensors(run, 4), tensors(tiny_run, 4))


def refused_resume(recipe: Path, run: Path, *overrides: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError):
        run_of(recipe, run, *overrides, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_cannot_or_need_not_be_resumed_is_left_as_it_was(tiny_recipe, tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for override in ("train.freeze=[encoder]", "model.projector.hidden_dim=48"):
        refused_resume(tiny_recipe, run, "train.steps=6", override)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for steps in (1, 3, 4):
        run_of(tiny_recipe, run, f"train.steps={steps}", "train.checkpoint_every=1", resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_refused_before_a_sample_is_made(tiny_recipe, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    monkeypatch.setattr(run_module, "build_model", None)
    monkeypatch.setattr(run_module, "build_step_loader", None)
    with pytest.raises(RunError, match="holds files that are no run"):
        run_of(tiny_recipe, tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_run_may_be_named_from_the_home_folder(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_of(tiny_recipe, Path("~/run"), "train.steps=1") == tmp_path / "run"
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()


def test_an_optimizer_that_torch_refuses_leaves_the_old_run_in_its_place(tiny_recipe, tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    with pytest.raises(UsageError, match=r"Invalid beta parameter.*Change train\.optimizer"):
        run_of(tiny_recipe, run, "train.optimizer.betas=[1.0, 0.9]")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "tiny.yaml"}


def test_metrics_are_exact_in_bf16_too(tiny_recipe, monkeypatch):
    """Four hundred tokens and more, of which bf16 would know only every second or fourth number."""
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(SupervisedModule, "log_metrics", lambda self, values, **kwargs: logged.update(values))
    sections = load_recipe(tiny_recipe, ["train.batch_size=32", "train.micro_batch=16", "train.steps=1"]).recipe
    model, task = build(tiny_recipe), sections.task.build()
    module = SupervisedModule(model, sections.train.optimizer.build(), sections.train)
    monkeypatch.setattr(sft, "target_logprobs_and_hits", all_but_one_right)
    trainer = pl.Trainer(
        accelerator="cpu", precision="bf16-true", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = build_step_loader(model, task, sections.train, 0)
    produced = next(iter(loader)).produced_tokens
    trainer.fit(module, loader)
    assert produced > 400 and float(logged["tokens"]) == produced
    assert float(logged["token_accuracy"]) == pytest.approx((produced - 2) / produced, rel=1e-6)
    assert float(logged["learning_rate"]) == pytest.approx(1e-3, rel=1e-6)


def all_but_one_right(language_model, states, batch):
    logprobs, hits = target_logprobs_and_hits(language_model, states, batch)
    return logprobs, torch.arange(len(hits)) > 0


def test_the_progress_of_training_is_told_where_there_is_no_terminal(tiny_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bar, "_SECONDS_PER_LINE", 0.0)
    run_of(tiny_recipe, tmp_path / "run", "train.steps=3")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training: 1/3 steps, loss " in captured.err and "training: 2/3 steps" in captured.err
    assert "token_accuracy" in captured.err and "3/3" in captured.err.splitlines()[-1]


UNREADABLE, DEAD, STUCK, DEFECT = "unreadable", "dead", "stuck", "defect"


@pytest.fixture
def spoiled(tiny_recipe, monkeypatch):
    """Let the first sample of step 2 fail in some way; what is returned mends it."""
    sections = load_recipe(tiny_recipe).recipe
    (index, *_) = build_step_sampler(sections.task.build(), sections.train, sections.seed).step_indices(2)
    prepare = data.TraceDataset.__getitem__

    def spoil(how):
        def prepare_spoiled(self, asked):
            if asked == index and how == UNREADABLE:
                raise InputError("sample 7: its image is gone.")
            if asked == index and how == DEFECT:
                raise KeyError("a defect of a task")
            if asked == index and how == DEAD:
                os.kill(os.getpid(), signal.SIGKILL)
            if asked == index and how == STUCK:
                threading.Event().wait()
            if asked == index:
                how(asked)
            return prepare(self, asked)

        monkeypatch.setattr(data.TraceDataset, "__getitem__", prepare_spoiled)
        return lambda: monkeypatch.setattr(data.TraceDataset, "__getitem__", prepare)

    return spoil


@pytest.mark.parametrize(
    ("how", "workers", "error"),
    [
        (UNREADABLE, 0, InputError),
        (UNREADABLE, 2, InputError),
        (DEFECT, 1, KeyError),
        (DEAD, 2, TrainingError),
        (STUCK, 1, TrainingError),
    ],
)
def test_the_last_whole_step_is_saved_before_an_error_of_the_data_is_told(
    tiny_recipe, tiny_run, tmp_path, spoiled, how, workers, error
):
    settings = [f"train.workers={workers}", "train.worker_seconds=0.5", "train.checkpoint_every=100"]
    mend = spoiled(how)
    with pytest.raises(error):
        run_of(tiny_recipe, tmp_path / "run", *settings)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    mend()
    run = run_of(tiny_recipe, tmp_path / "run", *settings, resume=True)
    for name in ("model", "resume"):
        assert_equal(tensors(run, 4, name), tensors(tiny_run, 4, name))


def test_an_error_before_the_first_step_of_a_resumed_run_leaves_its_checkpoint(tiny_recipe, tmp_path, spoiled):
    run = run_of(tiny_recipe, tmp_path / "run", "train.steps=2", "train.schedule=constant")
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    spoiled(UNREADABLE)
    with pytest.raises(InputError, match="its image is gone"):
        run_of(tiny_recipe, run, "train.schedule=constant", resume=True)
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, None), (signal.SIGTERM, 143), (signal.SIGHUP, 143)], ids=str
)
def test_a_signal_that_comes_while_a_sample_is_waited_for_saves_the_last_step(
    tiny_recipe, tiny_run, tmp_path, spoiled, number, code
):
    def ask_to_end(index):
        os.kill(os.getppid(), number)
        threading.Event().wait()

    settings = ["train.workers=1", "train.checkpoint_every=100"]
    mend = spoiled(ask_to_end)
    with pytest.raises(KeyboardInterrupt if code is None else SystemExit) as told:
        run_of(tiny_recipe, tmp_path / "run", *settings)
    assert code is None or told.value.code == code
    assert signal.getsignal(number) is not None and multiprocessing.active_children() == []
    mend()
    run = run_of(tiny_recipe, tmp_path / "run", *settings, resume=True)
    assert_equal(tensors(run, 4), tensors(tiny_run, 4))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
def test_a_signal_while_samples_are_made_ready_ends_the_workers_and_leaves_nothing(
    tiny_recipe, tmp_path, spoiled, number
):
    def ask_to_end(index):
        os.kill(os.getppid(), number)
        threading.Event().wait()

    spoiled(ask_to_end)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        run_of(tiny_recipe, tmp_path / "run", "train.workers=2", "train.preprocess=ahead", "train.sample_cache=0")
    assert multiprocessing.active_children() == []
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_terminal_that_is_gone_does_not_end_a_run(tiny_recipe, tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(bar, "Console", lambda stderr: Console(file=Gone(), force_terminal=True))
    run = run_of(tiny_recipe, tmp_path / "run", "train.steps=2")
    assert tensors(run, 2)


def test_nohup_keeps_a_run_deaf_to_the_end_of_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption, interruption.deferred():
            signal.raise_signal(signal.SIGHUP)
            assert not interruption.is_requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_interrupt_is_not_waited_for():
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption, interruption.deferred():
        signal.raise_signal(signal.SIGINT)
        assert interruption.is_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_resumed_run_lets_go_of_the_optimizers_state_that_it_read(tiny_recipe, tiny_run, tmp_path, monkeypatch):
    """It is as large as the model twice, and would otherwise stay in memory to the end."""
    run, held = Path(shutil.copytree(tiny_run, tmp_path / "run")), []

    def watched(folder):
        state = load_training_state(folder)
        held.append(weakref.ref(state))
        return state

    monkeypatch.setattr(trainer, "load_training_state", watched)
    taken = SupervisedModule.end_step

    def end_step(self, *arguments):
        taken(self, *arguments)
        held.append(held[0]())

    monkeypatch.setattr(SupervisedModule, "end_step", end_step)
    run_of(tiny_recipe, run, "train.steps=5", resume=True)
    assert held[1:] == [None]
