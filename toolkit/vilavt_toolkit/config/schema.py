"""The keys of a recipe, with types, defaults, ranges and help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vilavt_toolkit.config.learning_schema import LoraSection, Rate
from vilavt_toolkit.config.limits import describe_bad_path
from vilavt_toolkit.config.policy_schema import PolicySettings
from vilavt_toolkit.registry import Part
from vilavt_toolkit.settings import part, setting

__all__ = ["EvalSection", "ModelSection", "Part", "RLSection", "Recipe", "StageSection", "TrainSection", "part"]


PartWithWeights = Literal["encoder", "modulator", "inquiry_encoder", "projector", "language_model", "stopping"]
"""A kind of part that can have weights, as `train.freeze` and checkpoints name it."""


PARTS_WITH_WEIGHTS: frozenset[PartWithWeights] = frozenset(get_args(PartWithWeights))
"""All kinds of parts that can have weights; `VisualChatModel.parts` gives their modules."""

STRATEGIES = ("auto", "replicated", "fsdp2")
"""The ways in which several devices share a model."""


TrackerName = Literal["tensorboard", "csv", "wandb", "mlflow", "trackio"]
"""A tracker of metrics, as `train.trackers` names it."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The components of the model."""

    checkpoint: str = setting(
        "",
        help="checkpoint in another project's format to start from: a folder (relative to the recipe or here) or hub "
        "name, which gives the weights and the defaults of all keys of `model`",
    )
    source: Part = part("source", "kind of the originals", "image")
    encoder: Part = part("encoder", "encoder of regions")
    modulator: list[Part] = part("modulator", "change of the encoder's blocks under the inquiry", "none", True)
    integration: Literal["all", "early", "late", "late2", "late3", "sparse"] | list[int] = setting(
        "late", help="blocks that are modulated: a named choice, or a list of block indices"
    )
    inquiry_encoder: Part = part("inquiry_encoder", "encoder of inquiries", "language_model")
    projector: Part = part("projector", "map from the encoder's width to the language model's", "mlp")
    language_model: Part = part("language_model", "model that reads, thinks, asks and answers")
    dialogue: Part = part("dialogue", "prompts and turn grammar", "native")
    stopping: list[Part] = part(
        "stopping",
        "when to stop looking: the first policy of the list that does not say go on decides",
        ("model_decides", "max_turns"),
        True,
    )
    cudnn_attention: bool = setting(
        False, help="let torch choose cuDNN's attention on CUDA, which has known faults and is slow on new shapes"
    )


@dataclass(frozen=True, kw_only=True)
class StageSection:
    """Settings that both training stages have."""

    optimizer: Part = part("optimizer", "optimizer of the weights", "adamw")
    warmup_steps: int = setting(0, help="optimizer steps over which the learning rate rises from zero", minimum=0)
    schedule: Literal["linear", "cosine", "constant"] = setting(
        "linear", help="course of the learning rate after warm-up"
    )
    gradient_clip: float | None = setting(1.0, help="largest norm of the gradient (null: no limit)", minimum=0)
    keep_checkpoints: int = setting(
        2, help="newest checkpoints that are kept, beside the newest sound one and the best one", minimum=1
    )
    save_in_background: bool = setting(
        False, help="copy what a checkpoint holds to the CPU's memory, and write it while training goes on"
    )
    max_skipped: int = setting(
        10,
        help="optimizer steps with a NaN or infinite loss or gradient that are skipped before the run stops",
        minimum=0,
    )
    freeze: list[str] = setting(
        help="weights that are not trained: parts, or patterns of names such as language_model.model.layers.[0-3].*",
        factory=list,
    )
    unfreeze: list[str] = setting(
        help="weights that are trained although `freeze` names them: parts, or patterns of names", factory=list
    )
    freeze_new: bool = setting(
        False, help="allow that weights of a modulator or projector that no checkpoint has trained are frozen"
    )
    lora: LoraSection | None = setting(
        None, help="adapters of low rank on linear layers, in place of training their parts in full (null: none)"
    )
    frozen_dtype: Literal["same", "bfloat16"] = setting(
        "same", help="number format of frozen weights; bfloat16 halves their memory and needs precision bf16-mixed"
    )
    rates: dict[str, Rate] = setting(
        help="learning rate and weight decay of parts, or of weights by patterns of their names; a pattern comes "
        "before a part",
        factory=dict,
    )

    @property
    def frozen(self) -> list[str]:
        """All parts of the model that the stage does not train."""
        return list(self.freeze)

    def __post_init__(self) -> None:
        if self.gradient_clip == 0:
            raise ValueError("gradient_clip 0 would remove every gradient. Write a larger norm, or null for no limit.")


@dataclass(frozen=True, kw_only=True)
class TrainSection(StageSection):
    """Supervised training. Reinforcement uses its precision, accelerator, threads and gradient checkpointing too."""

    steps: int = setting(help="optimizer steps", minimum=1)
    init_from: str = setting(
        "",
        help="run or checkpoint whose weights the stage starts from (empty: new or pretrained ones)",
        formerly=("start",),
        is_path=True,
    )
    batch_size: int = setting(help="dialogues of an optimizer step", minimum=1)
    micro_batch: int | None = setting(
        None,
        help="dialogues in memory at once, a divisor of batch_size (null: all)",
        minimum=1,
        replaces=("pack_tokens", "pack_patches"),
    )
    pack_tokens: int | None = setting(
        None,
        help="instead of micro_batch: most tokens of a row that dialogues share, without padding",
        minimum=1,
        replaces=("micro_batch",),
    )
    pack_patches: int | None = setting(
        None,
        help="most patches, tokens of the encoder, of such a row (null: no limit)",
        minimum=1,
        replaces=("micro_batch",),
    )
    long_samples: Literal["refuse", "cut", "alone"] = setting(
        "refuse",
        help="samples larger than such a row: refuse them, cut them after the last turn that fits, or give each a row "
        "alone; longer than the model's context: cut them too, or else refuse them",
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = setting(
        "32-true", help="number format of weights and activations, in Lightning's words"
    )
    ema: float | None = setting(
        None,
        help="decay of a running mean of the trained weights, which checkpoints and validations take in place of the "
        "newest weights (null: no mean)",
        minimum=0,
        maximum=1,
    )
    workers: int = setting(0, help="worker processes that prepare samples (0: the training process does)", minimum=0)
    worker_seconds: float = setting(
        600.0, help="seconds that a worker may take for a sample; then the run stops", minimum=0.1
    )
    preprocess: Literal["ahead", "stream"] = setting(
        "stream",
        help="'ahead' prepares all samples that the steps use before the first step, 'stream' does it during training",
        formerly=("prepare",),
    )
    sample_cache: float = setting(
        4.0,
        help="most GiB of samples prepared ahead that are kept for other runs, all together (0: none are kept)",
        minimum=0,
    )
    max_bad_samples: int = setting(
        0,
        help="samples that cannot be read and are left out, each with a warning, before the run stops",
        minimum=0,
    )
    max_samples: int | None = setting(
        None, help="training samples used (null: all of the task's)", minimum=1, formerly=("examples",)
    )
    checkpoint_every: int = setting(500, help="steps between checkpoints", minimum=1)
    log_every: int = setting(10, help="steps between logged metrics", minimum=1)
    validate_every: int | None = setting(
        None, help="steps between validations on split val (null: none); the last step has one too", minimum=1
    )
    validate_samples: int = setting(256, help="samples of a validation's loss, drawn from the split", minimum=1)
    validate_dialogues: int = setting(
        16, help="dialogues of a validation that the model leads and the task scores (0: none)", minimum=0
    )
    best_by: Literal["loss", "accuracy"] = setting(
        "loss", help="metric of validations by which checkpoints/best is chosen, and patience counted"
    )
    patience: int | None = setting(
        None,
        help="validations without a better best_by after which training ends (null: it goes on)",
        minimum=1,
    )
    trackers: list[TrackerName] = setting(
        help="where metrics go, for both stages: tensorboard, csv, wandb, mlflow, trackio",
        factory=lambda: ["tensorboard"],
    )
    peak_tflops: float | None = setting(
        None,
        help="10^12 operations per second that the device can do, for the metric mfu (null: by its name, or measured)",
        minimum=0.001,
        maximum=1e6,
    )
    gradient_checkpointing: bool | int = setting(
        False,
        help="compute all blocks of the encoder (true) or every n-th again in the backward pass: slower, less memory",
        minimum=1,
    )
    language_model_checkpointing: bool | int = setting(
        False, help="compute all layers of the language model (true) or every n-th again, in both stages", minimum=1
    )
    offload_activations: bool = setting(
        False, help="keep what the backward pass needs in the CPU's memory, pinned, on a GPU: slower, in less memory"
    )
    compile: bool = setting(
        False, help="compile the encoder's blocks with torch.compile: a slow start, then faster (needs a C++ compiler)"
    )
    threads: int | None = setting(None, help="CPU threads of torch (null: its own choice)", minimum=1)
    accelerator: str = setting("auto", help="Lightning's accelerator: auto, cpu or gpu")
    devices: int = setting(1, help="devices of a node that train together, each with a process of its own", minimum=1)
    nodes: int = setting(1, help="machines that train together, each with `devices` devices", minimum=1)
    strategy: str = setting(
        "auto",
        help="several devices: replicated (all weights on each), fsdp2 (weights, gradients and moments sharded), or "
        "auto: replicated if all that takes at most 70% of a device's memory",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_strategy(self.strategy)
        if self.ema in (0, 1):
            raise ValueError(f"ema {self.ema:g} is no mean. Write a number between 0 and 1, such as 0.999, or null.")
        if self.strategy == "fsdp2" and self.precision == "16-mixed":
            raise ValueError(
                "16-mixed needs a loss scale, which was never tried with the sharded gradients of fsdp2. Write "
                "precision bf16-mixed."
            )
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}. Write a divisor of it."
            )
        _check_pack_patches(self)
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts validations, and there are none. Set validate_every too.")
        if self.best_by == "accuracy" and not self.validate_dialogues:
            raise ValueError("best_by accuracy needs dialogues. Raise validate_dialogues, or write best_by: loss.")


@dataclass(frozen=True, kw_only=True)
class RLSection(StageSection, PolicySettings):
    """Reinforcement learning. Precision, accelerator, threads and gradient checkpointing are those of `train`."""

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
        is_path=True,
    )
    run: str = setting("", help="folder of the run (empty: the folder of the recipe's run, with -rl after it)")
    split: str = setting("train", help="split of the task that prompts come from")
    rewards: list[Part] = part("reward", "rewards, of which the weighted sum counts", "answer", True)
    advantage: Part = part("advantage", "comparison of a reward with those of its prompt group", "grpo")
    policy_loss: Part = part("policy_loss", "loss from advantages", "ppo_clip")
    temperature: float = setting(1.0, help="sampling temperature, also of the update's log-probabilities", minimum=0)
    max_new_tokens: int = setting(64, help="longest turn, in tokens", minimum=1)
    truncated_rollouts: Literal["score", "mask"] = setting(
        "score",
        help="rollouts whose answer had to be demanded, or that filled the context: learn from them, or leave them out",
        formerly=("over_turn",),
    )
    rollout_batch: int = setting(64, help="rollouts that run at once", minimum=1)
    inner_epochs: int = setting(1, help="optimizer steps taken on the same rollouts", minimum=1)
    micro_batch: int | None = setting(
        None,
        help="rollouts in memory at once in an update (null: all)",
        minimum=1,
        replaces=("pack_tokens", "pack_patches"),
    )
    pack_tokens: int | None = setting(
        None,
        help="instead of micro_batch: most tokens of a row that rollouts share in an update, without padding",
        minimum=1,
        replaces=("micro_batch",),
    )
    pack_patches: int | None = setting(
        None,
        help="most patches, tokens of the encoder, of such a row (null: no limit)",
        minimum=1,
        replaces=("micro_batch",),
    )
    share_prompts: bool = setting(True, help="such a row holds a prompt once for all of its rollouts")
    max_resamples: int = setting(
        3, help="times that a step samples other prompts while no group has different rewards", minimum=0
    )
    reward_seconds: float = setting(
        60.0, help="seconds without a reward's score after which the run stops", minimum=0.1
    )
    checkpoint_every: int = setting(50, help="optimizer steps between checkpoints", minimum=1)
    log_every: int = setting(1, help="optimizer steps between logged metrics", minimum=1)
    save_rollouts_every: int = setting(
        50, help="steps between rollouts saved as pictures (0: none)", minimum=0, formerly=("draw_every",)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        PolicySettings.__post_init__(self)
        _check_run(self.run)
        _check_pack_patches(self)
        if self.temperature == 0:
            raise ValueError("temperature 0 makes all rollouts of a prompt the same. Write a positive one, like 1.")

    @property
    def frozen(self) -> list[str]:
        """All parts that the stage does not train: stopping policies learn from traces only."""
        return [*super().frozen, "stopping"]


@dataclass(frozen=True, kw_only=True)
class EvalSection:
    """Evaluation of a run."""

    split: str = setting("test", help="split of the task")
    items: int | None = setting(None, help="items of the split that are asked (null: all)", minimum=1)
    arms: list[Literal["blind", "single_pass", "modulated", "unmodulated", "shuffled"]] = setting(
        help="arms that are compared",
        factory=lambda: ["blind", "single_pass", "modulated", "unmodulated", "shuffled"],
    )
    dtype: Literal["trained", "float32", "bfloat16", "float16"] = setting(
        "trained", help="type of the weights; trained: the one that training computed in, so bfloat16 for bf16-mixed"
    )
    batch_size: int = setting(64, help="dialogues that run at once", minimum=1)
    max_new_tokens: int = setting(64, help="longest turn, in tokens", minimum=1)

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("arms is empty. Name at least one arm.")
        twice = next((arm for arm in self.arms if self.arms.count(arm) > 1), None)
        if twice is not None:
            raise ValueError(f"arms names {twice} twice. Name every arm once.")
        if "shuffled" in self.arms and "modulated" not in self.arms:
            raise ValueError("arms: `shuffled` permutes the inquiries of `modulated`. Add `modulated` to the arms.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All keys of a recipe."""

    seed: int = setting(0, help="seed of weights, data order and sampling", minimum=0, maximum=2**32 - 1)
    run: str = setting("", help="folder of the run (empty: runs/<name of the recipe>)")
    plugins: list[str] = setting(
        help="modules, or .py files beside the recipe, that bring components, in addition to inherited ones",
        factory=list,
    )
    model: ModelSection = setting(help="components of the model")
    task: Part = part("task", "data set or benchmark")
    train: TrainSection = setting(help="supervised training")
    rl: RLSection | None = setting(None, help="reinforcement learning, for `vilavt rl` (null: none)")
    eval: EvalSection = setting(help="evaluation", factory=EvalSection)

    def __post_init__(self) -> None:
        _check_run(self.run)


def _check_strategy(strategy: str) -> None:
    if strategy.startswith("deepspeed"):
        raise ValueError(
            f"strategy {strategy!r} is not supported: DeepSpeed keeps gradients where clipping, skipping of bad steps "
            "and checkpoints do not find them. Write fsdp2, which shards as its ZeRO-3 does."
        )
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is not known. Write one of {', '.join(STRATEGIES)}.")


def _check_pack_patches(section: TrainSection | RLSection) -> None:
    if section.pack_patches is not None and section.pack_tokens is None:
        raise ValueError("pack_patches limits rows of pack_tokens, which is not set. Set pack_tokens too.")


def _check_run(run: str) -> None:
    # A folder that is to be made has no place beside the recipe, so that it is not looked for as other paths are.
    if wrong := describe_bad_path(run):
        raise ValueError(f"run: {wrong}")
