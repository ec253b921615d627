"""What several parts' tests read: the golden weights as a checkpoint folder, and rollouts as the loop records them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from vilavt_toolkit.contracts import Sample, Trajectory, Turn
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.dialogue.tool_calls import CallError

GOLDEN = Path(__file__).parents[1] / "golden"
MARKS = {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>"}
MARKS |= {990: "<|image_pad|>", 991: "<|video_pad|>", 992: "<|vision_start|>", 993: "<|vision_end|>"}


def _tokenizer():
    """A thousand tokens: the marks at the ids that the vectors were made with, every byte, and names for the rest."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"unused{number}" for number in range(1000))]
    free = iter(plain)
    vocabulary = {MARKS.get(index) or next(free): index for index in range(1000)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True) for text in MARKS.values()])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny golden ViLaVT of integration point `late`, as a folder; tests copy it to change it."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("golden_vilavt")
    shutil.copyfile(GOLDEN / "config_late.json", folder / "config.json")
    late = tuple(f"visual.blocks.{index}." for index in range(4, 8))
    weights = {
        key: value.float()
        for key, value in load_file(GOLDEN / "weights.safetensors").items()
        if ".instruct_" not in key or key.startswith(late)
    }
    assert len(weights) == 171 and json.loads((folder / "config.json").read_text())["model_type"] == "vilavt"
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _tokenizer().save_pretrained(folder)
    return folder


Play = Callable[[Sequence[str]], Trajectory]


@pytest.fixture
def play(tiny_model) -> Play:
    """Turn texts into a trajectory: parsed by the dialogue, calls carried out or refused, on one image of 64 x 64."""
    pixels = np.zeros((64, 64, 3), np.uint8)

    def played(texts: Sequence[str]) -> Trajectory:
        session = Session(tiny_model, [tiny_model.open_source(pixels)])
        session.ask("what?")
        for text in texts:
            ids = tiny_model.language_model.tokenizer.encode(text)
            turn = session.add_sampled_turn(ids, [0.0] * len(ids))
            if turn.call is not None:
                try:
                    session.carry_out(turn.call)
                except CallError as error:
                    session.add_feedback(str(error))
            elif turn.problem:
                session.add_feedback(turn.problem)
        return session.trajectory

    return played


@pytest.fixture
def answering() -> Callable[[str | None], Trajectory]:
    """A trajectory of one good turn with this answer."""

    def made(answer: str | None) -> Trajectory:
        return Trajectory(turns=[Turn("seen", answer=answer)], feedback=[""])

    return made


@pytest.fixture
def ask() -> Callable[..., Sample]:
    """A sample of a kind of answer, with this truth."""

    def made(kind: str, truth: str, **tags: object) -> Sample:
        return Sample("s1", "what?", truth, (), tags={"answer_kind": kind, **tags})

    return made
