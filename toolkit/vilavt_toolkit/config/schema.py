"""The keys of a recipe: what may stand in one, with types, defaults, ranges and help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vilavt_toolkit.registry import Part
from vilavt_toolkit.settings import part, setting

__all__ = ["EvalSection", "ModelSection", "Part", "RLSection", "Recipe", "StageSection", "TrainSection", "part"]


PartWithWeights = Literal["encoder", "modulator", "inquiry_encoder", "projector", "language_model", "stopping"]
"""A kind of part that can have weights, as `train.freeze` and checkpoints name it."""


PARTS_WITH_WEIGHTS: frozenset[PartWithWeights] = frozenset(get_args(PartWithWeights))
"""All kinds of parts that can have weights; `VisualChatModel.parts` gives their modules."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """What the model is assembled from."""

    checkpoint: str = setting(
        "",
        help="checkpoint of others that it begins as: a folder (relative to the recipe, or to here) or hub name; its "
        "parts are laid under the keys below, its weights loaded",
    )
    source: Part = part("source", "what the originals are", "image")
    encoder: Part = part("encoder", "encodes regions")
    modulator: list[Part] = part("modulator", "changes the encoder's blocks under the inquiry", "none", True)
    integration: Literal["all", "early", "late", "late2", "late3", "sparse"] | list[int] = setting(
        "late", help="which blocks are modulated: a named choice, or a list of block indices"
    )
    inquiry_encoder: Part = part("inquiry_encoder", "turns inquiries into features", "language_model")
    projector: Part = part("projector", "takes the encoder's width to the language model's", "mlp")
    language_model: Part = part("language_model", "reads, thinks, asks and answers")
    dialogue: Part = part("dialogue", "prompts and turn grammar", "native")
    stopping: list[Part] = part(
        "stopping",
        "when to stop looking; the first policy in the list that does not say go on decides",
        ("model_decides", "max_turns"),
        True,
    )


@dataclass(frozen=True, kw_only=True)
class StageSection:
    """What both training stages have."""

    optimizer: Part = part("optimizer", "makes the steps", "adamw")
    warmup_steps: int = setting(0, help="optimizer steps over which the learning rate rises from zero", minimum=0)
    schedule: Literal["linear", "cosine", "constant"] = setting(
        "linear", help="how the learning rate falls after warm-up"
    )
    gradient_clip: float | None = setting(1.0, help="largest norm of the gradient; null: any", minimum=0)
    max_skipped: int = setting(
        10, help="optimizer steps left out because loss or gradient is no finite number before the run stops", minimum=0
    )
    freeze: list[PartWithWeights] = setting(help="parts that are not trained", factory=list)

    @property
    def frozen(self) -> list[str]:
        """All parts that the stage does not train."""
        return list(self.freeze)

    def __post_init__(self) -> None:
        if self.gradient_clip == 0:
            raise ValueError(
                "gradient_clip 0 would leave nothing of the gradient; give a larger norm, or null for any."
            )


@dataclass(frozen=True, kw_only=True)
class TrainSection(StageSection):
    """Supervised training; how and where numbers are computed holds for reinforcement too."""

    steps: int = setting(help="optimizer steps", minimum=1)
    init_from: str = setting(
        "",
        help="run or checkpoint whose weights the stage starts from (empty: new or pretrained ones)",
        formerly=("start",),
    )
    batch_size: int = setting(help="dialogues an optimizer step learns from", minimum=1)
    micro_batch: int | None = setting(
        None, help="dialogues in memory at once, a divisor of batch_size; null: all", minimum=1
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = setting(
        "32-true", help="number format of weights and activations, in Lightning's words"
    )
    workers: int = setting(0, help="processes that make samples ready; 0: the training process", minimum=0)
    preprocess: Literal["ahead", "stream"] = setting(
        "stream",
        help="'ahead' preprocesses every sample once before the first step, 'stream' does it during training",
        formerly=("prepare",),
    )
    max_samples: int | None = setting(
        None, help="training samples used (null: all of the task's)", minimum=1, formerly=("examples",)
    )
    checkpoint_every: int = setting(500, help="steps between checkpoints", minimum=1)
    log_every: int = setting(10, help="steps between logged metrics", minimum=1)
    gradient_checkpointing: bool = setting(
        False, help="compute the encoder's blocks again in the backward pass: slower, in less memory"
    )
    compile: bool = setting(
        False, help="compile the encoder's blocks with torch.compile: slow to start, then faster; needs a C++ compiler"
    )
    threads: int | None = setting(None, help="CPU threads torch uses; null: its own choice", minimum=1)
    accelerator: str = setting("auto", help="Lightning accelerator: auto, cpu, gpu")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} is no divisor of batch_size {self.batch_size}.")


@dataclass(frozen=True, kw_only=True)
class RLSection(StageSection):
    """Reinforcement; precision, accelerator, threads and gradient checkpointing are those of `train`."""

    steps: int = setting(help="rounds of rollouts, each followed by inner_epochs optimizer steps", minimum=1)
    prompts_per_step: int = setting(help="prompts of a step", minimum=1, formerly=("prompts",))
    group_size: int = setting(
        help="rollouts of every prompt, which are compared with each other: at least two",
        minimum=2,
        formerly=("group",),
    )
    init_from: str = setting(
        "",
        help="run or checkpoint that the stage starts from (empty: the recipe's run, or model.checkpoint without one)",
        formerly=("start",),
    )
    run: str = setting("", help="folder of the run; empty: that of the recipe's run with -rl behind")
    split: str = setting("train", help="split of the task that prompts come from")
    rewards: list[Part] = part(
        "reward", "what is rewarded; each has a weight, and their weighted sum counts", "answer", True
    )
    advantage: Part = part("advantage", "what a reward is worth beside those of its prompt group", "grpo")
    policy_loss: Part = part("policy_loss", "turns advantages into a loss", "ppo_clip")
    kl: float = setting(0.0, help="weight of the k3 divergence from the weights it starts from; 0: none", minimum=0)
    temperature: float = setting(1.0, help="sampling temperature, of the update's log-probabilities too", minimum=0)
    max_new_tokens: int = setting(64, help="longest turn, in tokens", minimum=1)
    truncated_rollouts: Literal["score", "mask"] = setting(
        "score",
        help="rollouts whose answer had to be demanded, or that filled the context: learn from them, or leave them out",
        formerly=("over_turn",),
    )
    rollout_batch: int = setting(64, help="rollouts that run at once", minimum=1)
    inner_epochs: int = setting(1, help="optimizer steps taken on the same rollouts", minimum=1)
    micro_batch: int | None = setting(None, help="rollouts in an update's memory at once; null: all", minimum=1)
    max_resamples: int = setting(
        3, help="how often a step asks other prompts while none of its groups teaches anything", minimum=0
    )
    reward_seconds: float = setting(60.0, help="after how long without a reward's score the run stops", minimum=0.1)
    checkpoint_every: int = setting(50, help="optimizer steps between checkpoints", minimum=1)
    log_every: int = setting(1, help="optimizer steps between logged metrics", minimum=1)
    save_rollouts_every: int = setting(
        50, help="steps between rollouts saved as pictures (0: none)", minimum=0, formerly=("draw_every",)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature == 0:
            raise ValueError("temperature 0 makes all rollouts of a prompt the same; give a positive one, like 1.")

    @property
    def frozen(self) -> list[str]:
        """All parts that the stage does not train: stopping policies learn from traces only."""
        return [*super().frozen, "stopping"]


@dataclass(frozen=True, kw_only=True)
class EvalSection:
    """Evaluation of a run."""

    split: str = setting("test", help="split of the task")
    items: int | None = setting(None, help="items asked; null: the whole split", minimum=1)
    arms: list[Literal["blind", "single_pass", "modulated", "unmodulated", "shuffled"]] = setting(
        help="what is compared",
        factory=lambda: ["blind", "single_pass", "modulated", "unmodulated", "shuffled"],
    )
    batch_size: int = setting(64, help="dialogues that run at once", minimum=1)
    max_new_tokens: int = setting(64, help="longest turn, in tokens", minimum=1)

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("arms is empty; name at least one arm.")
        twice = next((arm for arm in self.arms if self.arms.count(arm) > 1), None)
        if twice is not None:
            raise ValueError(f"arms names {twice} twice; name every arm once.")
        if "shuffled" in self.arms and "modulated" not in self.arms:
            raise ValueError("arms: `shuffled` permutes the inquiries of `modulated`; add that arm.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run is made from."""

    seed: int = setting(0, help="seed of weights, data order and sampling", minimum=0, maximum=2**32 - 1)
    run: str = setting("", help="folder of the run; empty: runs/<name of the recipe>")
    plugins: list[str] = setting(
        help="modules, or .py files beside the recipe, that bring components; added to inherited ones",
        factory=list,
    )
    model: ModelSection = setting(help="what the model is assembled from")
    task: Part = part("task", "the data set or benchmark")
    train: TrainSection = setting(help="supervised training")
    rl: RLSection | None = setting(None, help="reinforcement, for `vilavt rl`; null: none")
    eval: EvalSection = setting(help="evaluation", factory=EvalSection)
