"""Malformed outputs of a model through both dialogues: each is carried out or refused in words, and the loop goes on.

python benchmarks/attack/outputs.py                      # 10,000 questions for each dialogue, half an hour on one core
python benchmarks/attack/outputs.py --first 17 --count 1 # one case again
"""

from __future__ import annotations

import io
import json
import logging
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from _campaign import Campaign, parse_options
from _malformed_turns import write_malformed_turn

from vilavt_toolkit.chat.answer import build_answer
from vilavt_toolkit.chat.console import ConsolePrinter
from vilavt_toolkit.chat.events import Answered
from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.generation.flops import CostCounter
from vilavt_toolkit.generation.kv_cache import KVCache
from vilavt_toolkit.generation.request import Phase, Request, TurnDraft
from vilavt_toolkit.generation.sampling import Decoding
from vilavt_toolkit.generation.turns import Turns
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.plain_console import PlainConsole

RECIPE = """
model:
  encoder:
    name: timm
    config: {img_size: 32, patch_size: 16, embed_dim: 16, depth: 1, num_heads: 2}
    overview_pixels: 1024
    zoom_pixels: 1024
  integration: all
  language_model:
    name: hf_causal
    vocab_size: 400
    config: {model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
             max_position_embeddings: 8192}
  dialogue: {name: NAME, system: ''}
  stopping: [{name: model_decides}, {name: max_turns, turns: 3}]
task: {name: digit_scenes}
train: {steps: 1, batch_size: 1}
"""
IMAGE = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
LONGEST = 4000
"""Tokens of a turn after which the loop cuts it short."""


class Outputs:
    """Answers questions with given texts, as the loop would if its model wrote them."""

    def __init__(self, model: VisualChatModel) -> None:
        self.model = model
        self._costs = CostCounter(model)
        self._turns = Turns(model, Decoding(LONGEST), self._costs)
        self._cache = KVCache(1, model.device)

    def answer_with(self, chance: random.Random) -> str:
        """Ask a question, let the model write malformed turns until it is over, and return how it ended."""
        shown = io.StringIO()
        printer = ConsolePrinter(PlainConsole(file=shown), self.model)
        session = Session(self.model, [self.model.open_source(IMAGE)])
        session.ask("what digit is on the red square?")
        request = Request(session, emit=printer.print_event)
        while not request.is_over:
            self._write_turn(request, write_malformed_turn(chance))
        if request.error is not None:
            raise request.error
        answer = build_answer(session)
        printer.print_event(Answered(answer))
        # What an evaluation and a saved chat would write of it.
        json.dumps([answer.to_json(), session.trajectory.to_json()], allow_nan=False).encode()
        assert not any(ord(letter) < 32 and letter != "\n" for letter in shown.getvalue()), "controls are printed"
        ended = "answered" if answer.text is not None else answer.why
        return f"{ended}, {'with' if session.calls else 'without'} a zoom"

    def _write_turn(self, request: Request, text: str) -> None:
        """Let a request write a text token by token, as far as its turn takes it."""
        # Texts that no tokenizer gives are for the parser alone.
        self.model.dialogue.parse(text)
        language_model = self.model.language_model
        limit = min(LONGEST, request.session.tokens_left - 1)
        if limit <= 0:
            request.finish("the context is full", cut_short=True)
            return
        phase = Phase.ANSWERING if request.phase is Phase.READING_DEMAND else Phase.WRITING
        request.enter(phase, TurnDraft(limit))
        for token in [*language_model.tokenizer.encode(text), language_model.end_of_turn]:
            self._turns.add_token(request, token, -1.0, self._cache)
            if request.phase is not phase:
                return


def build_outputs(dialogue: str, folder: Path) -> Outputs:
    """Build a small model that speaks a dialogue."""
    recipe = folder / f"{dialogue}.yaml"
    recipe.write_text(RECIPE.replace("NAME", dialogue), encoding="utf-8")
    return Outputs(build(recipe))


def main() -> int:
    """Run the campaign and return its exit code."""
    options = parse_options("Let a model write malformed turns.", 10_000)
    logging.disable(logging.WARNING)
    campaign = Campaign("malformed outputs")
    with tempfile.TemporaryDirectory() as folder:
        for dialogue in ("native", "vilavt"):
            outputs = build_outputs(dialogue, Path(folder))
            for number in range(options.first, options.first + options.count):
                chance = random.Random(f"{options.seed} {number}")
                case = f"{dialogue}, seed {options.seed}, case {number}"
                campaign.run_case(case, lambda chance=chance, outputs=outputs: outputs.answer_with(chance))
                if number % 1000 == 999:
                    print(f"{dialogue}: {number + 1 - options.first} cases: {dict(campaign.outcomes)}", flush=True)
    return campaign.report(options.json)


if __name__ == "__main__":
    sys.exit(main())
