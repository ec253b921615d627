"""Single tokens: the share of the memory bandwidth that they use, and how often faster than transformers' they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from _chat_cases import Bench
from _chat_loops import Given
from _chat_models import Script, image, opened
from _measure import Row, Spread, interleaved

from vilavt_toolkit.models.meta import assign, weightless

_FEW = 8
"""Tokens that are written in any case: what beginning costs falls out of the difference."""


def decoding(bench: Bench) -> list[Row]:
    """A token of one chat, beside the memory bandwidth of the same run and beside transformers' `generate`."""
    bench.model.forget()
    size, device = bench.size, bench.device
    session = opened(bench.model, image((size.side, size.side)))
    prompt, many = len(session.trajectory.ids), _FEW + size.decoded
    sides: dict[str, Callable[[], object]] = {}
    for count in (_FEW, many):
        sides[f"ours {count}"] = _writing(bench, Script(session, [_endless(bench, count)]))
        sides[f"generate {count}"] = _generating(bench, prompt, count)
    source = torch.empty(size.copied // 4, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    sides["copy"] = lambda: target.copy_(source)
    seconds = interleaved(sides, device, size.repeats, warm=2)
    ours: list[float] = []
    theirs: list[float] = []
    for found, name in ((ours, "ours"), (theirs, "generate")):
        pairs = zip(seconds[f"{name} {many}"], seconds[f"{name} {_FEW}"], strict=True)
        found += [(long - short) / size.decoded for long, short in pairs]
    bandwidth = Spread.of([2 * size.copied / s for s in seconds["copy"]])
    read = _bytes(bench.model.language_model, prompt + _FEW + size.decoded / 2)
    share = Spread.of([100 * read / s / bandwidth.median for s in ours])
    ratio = Spread.of([b / a for a, b in zip(ours, theirs, strict=True)])
    return _rows(bench, share, ratio, read, bandwidth, (ours, theirs))


def _rows(
    bench: Bench, share: Spread, ratio: Spread, read: float, bandwidth: Spread, seconds: tuple[list[float], list[float]]
) -> list[Row]:
    real = bench.device.type == "cuda"
    ours, theirs = (Spread.of([1e3 * s for s in side]) for side in seconds)
    what = f"decoding, batch 1, {bench.size.decoded} tokens, {str(next(bench.model.parameters()).dtype)[6:]}"
    mine = f"{ours.text()} ms a token"
    return [
        Row(
            bench.device.type,
            f"{what}: share of the memory bandwidth",
            f"{share.text('.1f')}%",
            f"{mine}, {read / 1e9:.2f} GB each",
            f"copying: {bandwidth.median / 1e9:.0f} GB a second",
            "at least 60%, aim 70%" if real else "",
            share.median >= 60 if real else None,
            {"share": asdict(share), "bytes": read, "bandwidth": asdict(bandwidth), "ms": asdict(ours)},
        ),
        Row(
            bench.device.type,
            f"{what}: beside transformers' `generate`, same weights",
            f"{ratio.text()} x",
            mine,
            f"generate: {theirs.text()} ms a token",
            "at least 2 x" if real else "",
            ratio.median >= 2 if real else None,
            {"ratio": asdict(ratio), "ms": asdict(ours), "generate_ms": asdict(theirs)},
        ),
    ]


def _endless(bench: Bench, count: int) -> list[int]:
    """A reply of so many tokens, of which only the last ends the turn."""
    model = bench.model
    word = model.language_model.tokenizer.encode(" look")
    tail = model.language_model.tokenizer.encode("<answer>12</answer>")
    return [*(word * count)[: count - len(tail)], *tail]


def _writing(bench: Bench, script: Script) -> Callable[[], object]:
    return Given(bench.model, [script]).alone_each


def _generating(bench: Bench, prompt: int, count: int) -> Callable[[], object]:
    """Writing `count` tokens behind a prompt of as many columns with transformers' own loop."""
    twin = _twin(bench)
    weight = next(bench.model.parameters())
    embeddings = torch.randn(1, prompt, bench.model.language_model.width, device=weight.device, dtype=weight.dtype)
    mask = torch.ones(1, prompt, dtype=torch.long, device=weight.device)

    lengths = {"min_new_tokens": count, "max_new_tokens": count}

    def run() -> Any:
        with torch.inference_mode():
            return twin.generate(inputs_embeds=embeddings, attention_mask=mask, do_sample=False, **lengths)

    return run


def _twin(bench: Bench) -> Any:
    """transformers' causal model of the same shape around the same weights; of text their rotations are the same."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    language_model: Any = bench.model.language_model
    text = language_model.model.config
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    same += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
    settings = {name: getattr(text, name) for name in same}
    with weightless():
        twin = Qwen2ForCausalLM(Qwen2Config(**settings, tie_word_embeddings=False, pad_token_id=0, eos_token_id=None))
    weights = {f"model.{name}": value for name, value in language_model.model.named_parameters()}
    missing = assign(twin, {**weights, "lm_head.weight": language_model.lm_head.weight})
    assert not missing, f"transformers' model has no {missing[0]} from ours"
    twin.generation_config.eos_token_id = None
    return twin.to(bench.device).eval()


def _bytes(language_model: Any, columns: float) -> float:
    """What a token must read: weights but for the table of embeddings, and keys and values of so many columns."""
    table = language_model.model.get_input_embeddings().weight
    weights = sum(weight.nbytes for weight in language_model.parameters() if weight is not table)
    text = language_model.model.config
    width = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    return float(weights + 2 * text.num_hidden_layers * width * table.element_size() * columns)


def missing(device: str) -> list[Row]:
    """What would be measured on a device that is not here."""
    return [
        Row(device, "decoding, batch 1, bfloat16: share of the memory bandwidth", target="at least 60%, aim 70%"),
        Row(device, "decoding, batch 1, bfloat16: beside transformers' `generate`", target="at least 2 x"),
    ]
