"""Supervised training of a small Qwen2.5-VL, ours beside TRL's SFTTrainer: the same weights and data, one CPU thread.

pip install trl                     # not a dependency of the toolkit
python benchmarks/sft.py            # every side five times by turns, each in a process of its own, float32
python benchmarks/sft.py --precision bf16
python benchmarks/sft.py --quick    # small sizes, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _measure import Row, Spread, describe_machine, format_table, measurement_facts
from _script import write_json

SIDES = ("ours", "ours, joint_attention", "TRL", "TRL by length")
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>")
MARKS += ("<|vision_end|>",)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("red", "blue", "green", "square", "circle", "left", "right", "above", "below", "small", "large", "seven")
RATE, BATCH, MICRO = 1e-4, 8, 4
# Rows of about as many dialogues as a micro-batch of TRL, whose memory the length of a row sets.
PACK = 768
# (our side, TRL's side): least ratio of supervised tokens per second, in float32 and in bf16.
TARGETS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("ours", "TRL"): (1.8, 1.5),
    ("ours", "TRL by length"): (1.6, 1.5),
    ("ours, joint_attention", "TRL"): (1.65, 1.5),
}
MEMORY_TARGET = 0.35


@dataclass(frozen=True)
class Size:
    """The sizes of a measurement."""

    samples: int
    steps: int
    rounds: int
    width: int
    layers: int
    vocabulary: int
    longest: int
    """Words of the longest dialogue."""


FULL, QUICK = Size(256, 12, 5, 256, 6, 16_384, 600), Size(24, 2, 1, 64, 2, 1_024, 60)


def main() -> None:
    """Measure the sides by turns and print a table, or be one side in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="use small sizes, to see that it runs")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else FULL
    if options.side:
        train = train_ours if options.side.startswith("ours") else train_trl
        print(json.dumps(train(options.side, options.folder, size, options.precision)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "weights", size)
        write_data(Path(folder), size)
        found = measure_by_turns(Path(folder), size, options)
    rows = compare(found, options.precision)
    print(f"{describe_machine('cpu')}\n\n{format_table(rows)}")
    facts = measurement_facts("cpu", " ".join(["python benchmarks/sft.py", *sys.argv[1:]]))
    write_json(options.json, {**facts, "sides": found})


def measure_by_turns(folder: Path, size: Size, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Run every side several times; return what each run found."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(size.rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
            command += ["--precision", options.precision, *["--quick"] * options.quick]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(side, found[side][-1], file=sys.stderr, flush=True)
    return found


def compare(found: Mapping[str, list[dict[str, float]]], precision: str) -> list[Row]:
    """Return the rows of the table: speed by ratio within each round, and net memory."""
    rows = []
    for (ours, peer), least in TARGETS.items():
        rates = [[run["tokens"] / run["seconds"] for run in found[side]] for side in (ours, peer)]
        ratio = Spread.from_values([mine / theirs for mine, theirs in zip(*rates, strict=True)])
        target = least[precision == "bf16"]
        texts = [
            f"{side}: {Spread.from_values(values).to_text('.1f')}"
            for side, values in zip((ours, peer), rates, strict=True)
        ]
        rows.append(Row("cpu", f"supervised tokens per second, {precision}", f"{ratio.to_text()} x", *texts,
                        f"at least {target:g} x", ratio.median >= target))  # fmt: skip
        memory = [max(run["memory"] for run in found[side]) / 2**20 for side in (ours, peer)]
        share = memory[0] / memory[1]
        rows.append(Row("cpu", f"peak memory above that before training, {precision}", f"{share:.2f} x",
                        f"{ours}: {memory[0]:.0f} MiB", f"{peer}: {memory[1]:.0f} MiB",
                        f"at most {MEMORY_TARGET:g} x", share <= MEMORY_TARGET))  # fmt: skip
    return rows


# --- What both sides train on -----------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, size: Size) -> None:
    """Write a Qwen2.5-VL checkpoint with random weights, its tokenizer and its processor."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = build_tokenizer()
    text = {"hidden_size": size.width, "intermediate_size": 3 * size.width, "num_hidden_layers": size.layers}
    text |= {"num_attention_heads": size.width // 32, "num_key_value_heads": 2, "vocab_size": size.vocabulary}
    text |= {"max_position_embeddings": 8_192, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}}
    vision = {"depth": size.layers, "hidden_size": size.width, "intermediate_size": 2 * size.width, "num_heads": 4}
    vision |= {"out_hidden_size": size.width, "fullatt_block_indexes": [size.layers - 1]}
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **{key: ids[mark] for key, mark in names.items()})
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_tokenizer() -> Any:
    """Return a byte-level tokenizer that knows the words of the data and Qwen's marks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate([*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    core.add_tokens([AddedToken(f" {word}", normalized=False) for word in WORDS])
    make: Any = PreTrainedTokenizerFast  # untyped
    return make(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


def write_data(folder: Path, size: Size) -> None:
    """Write dialogues of one to six images, mostly short ones, as the file that both sides read."""
    from PIL import Image

    generator, rows = random.Random(0), []
    for number in range(size.samples):
        images = [f"{number}-{index}.png" for index in range(generator.randint(1, 6))]
        for name in images:
            sides = [28 * generator.randint(2, 6) for _ in range(2)]
            Image.effect_noise((sides[0], sides[1]), 64).convert("RGB").save(folder / name)
        count = int(20 * (size.longest / 20) ** generator.random())
        question, answer = (" ".join(generator.choices(WORDS, k=part)) for part in (count // 2, count - count // 2))
        turns = [{"from": "human", "value": "<image>" * len(images) + question}, {"from": "gpt", "value": answer}]
        rows.append({"images": images, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(rows))


# --- The sides --------------------------------------------------------------------------------------------------------


def train_ours(side: str, folder: Path, size: Size, precision: str) -> dict[str, float]:
    """Train with the toolkit on packed rows, and return tokens, seconds and net memory."""
    import pytorch_lightning as pl

    from vilavt_toolkit.checkpoints.loading import build_model
    from vilavt_toolkit.config.recipe import load_recipe
    from vilavt_toolkit.training.supervised.data import build_step_loader
    from vilavt_toolkit.training.supervised.module import SupervisedModule

    recipe_file = folder / "recipe.yaml"
    modulator = "joint_attention" if "joint" in side else "none"
    model = {"checkpoint": str(folder / "weights"), "modulator": modulator}
    model["encoder"] = {"overview_total": None, "overview_pixels": 10**6, "zoom_pixels": 10**6, "min_pixels": 784}
    task = {"name": "conversations", "files": str(folder / "data.json"), "root": str(folder), "val_share": 0.0}
    train = {"steps": size.steps, "batch_size": BATCH, "pack_tokens": PACK, "long_samples": "alone"}
    train |= {"optimizer": {"lr": RATE}, "schedule": "constant", "accelerator": "cpu"}
    recipe_file.write_text(json.dumps({"model": model, "task": task, "train": train}))
    recipe = load_recipe(recipe_file)
    section, built = recipe.recipe.train, build_model(recipe)
    module = SupervisedModule(built, section.optimizer.build(), section)
    counts: list[int] = []

    def count_tokens(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            counts.append(batch.produced_tokens)
            yield batch

    loader = count_tokens(iter(build_step_loader(built, recipe.recipe.task.build(), section, 0)))
    trainer = pl.Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        max_steps=size.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return measure(lambda: trainer.fit(module, loader), lambda: sum(counts))


def train_trl(side: str, folder: Path, size: Size, precision: str) -> dict[str, float]:
    """Train with TRL's SFTTrainer by its defaults, and return tokens, seconds and net memory."""
    from datasets import Dataset, Image
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from trl import SFTConfig, SFTTrainer

    tokenizer = build_tokenizer()
    pixels = {"min_pixels": 784, "max_pixels": 10**6}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels), chat_template=CHATML
    )
    rows = json.loads((folder / "data.json").read_text())
    table = Dataset.from_list([_to_trl(row, folder) for row in rows]).cast_column("images", [Image()])
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "weights", dtype=torch.float32)
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=size.steps,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=BATCH // MICRO,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        bf16=precision == "bf16",
        gradient_checkpointing=False,
        max_length=None,
        train_sampling_strategy="group_by_length" if "length" in side else "random",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer: Any = SFTTrainer(model=model, args=config, train_dataset=table, processing_class=processor)
    counts, collate = [], trainer.data_collator

    def count_tokens(samples: Any) -> Any:
        batch = collate(samples)
        counts.append(int((batch["labels"] != -100).sum()))
        return batch

    trainer.data_collator = count_tokens
    # What is collated ahead of the last step is not learned from.
    return measure(trainer.train, lambda: sum(counts[: size.steps * BATCH // MICRO]))


def _to_trl(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    question, answer = (turn["value"].replace("<image>", "") for turn in row["conversations"])
    content: list[dict[str, Any]] = [{"type": "image", "text": None} for _ in row["images"]]
    content.append({"type": "text", "text": question})
    return {
        "prompt": [{"role": "user", "content": content}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        "images": [str(folder / name) for name in row["images"]],
        "length": len(question.split()) + len(answer.split()) + 16 * len(row["images"]),
    }


def measure(train: Callable[[], object], count_tokens: Callable[[], int]) -> dict[str, float]:
    """Run the training; return its supervised tokens, its seconds, and its peak of memory above that before it."""
    with watched_memory() as peak:
        start = time.perf_counter()
        train()
        seconds = time.perf_counter() - start
    return {"tokens": count_tokens(), "seconds": seconds, "memory": float(peak[0])}


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Yield a list whose first item becomes the most bytes that the process held above those at the beginning."""
    before, stopped, peak = _resident_bytes(), threading.Event(), [0]

    def watch() -> None:
        while not stopped.wait(0.02):
            peak[0] = max(peak[0], _resident_bytes() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


def _resident_bytes() -> int:
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return 1024 * int(fields[0])


if __name__ == "__main__":
    main()
