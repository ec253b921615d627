"""The chat's benchmark of single tokens: their share of the memory bandwidth, and transformers' `generate` beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from _chat_cases import ChatBench
from _chat_loops import ScriptedLoop
from _chat_models import Script, noise_image, open_session
from _measure import Row, Spread, compare_sides, time_interleaved, with_cudnn_attention

from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.models.meta import assign_weights, meta_parameters

_CUDNN = "cuDNN attention off, beside on"
_FEW = 8
"""Tokens of the short runs: the difference to the long runs leaves out what beginning costs."""


def measure_decoding(bench: ChatBench) -> list[Row]:
    """Measure a token of one chat beside the memory bandwidth of the same run and beside transformers' `generate`."""
    bench.model.forget_views()
    size, device = bench.size, bench.device
    session = open_session(bench.model, noise_image((size.side, size.side)))
    prompt, many = len(session.trajectory.ids), _FEW + size.decoded
    sides: dict[str, Callable[[], object]] = {}
    for count in (_FEW, many):
        sides[f"ours {count}"] = _decode_with_ours(bench, Script(session, [_long_reply(bench, count)]))
        sides[f"generate {count}"] = _decode_with_transformers(bench, prompt, count)
    source = torch.empty(size.copied // 4, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    sides["copy"] = lambda: target.copy_(source)
    seconds = time_interleaved(sides, device, size.repeats, warm=2)
    ours: list[float] = []
    theirs: list[float] = []
    for found, name in ((ours, "ours"), (theirs, "generate")):
        pairs = zip(seconds[f"{name} {many}"], seconds[f"{name} {_FEW}"], strict=True)
        found += [(long - short) / size.decoded for long, short in pairs]
    bandwidth = Spread.from_values([2 * size.copied / s for s in seconds["copy"]])
    read = _bytes_per_token(bench.model.language_model, prompt + _FEW + size.decoded / 2)
    share = Spread.from_values([100 * read / s / bandwidth.median for s in ours])
    ratio = Spread.from_values([b / a for a, b in zip(ours, theirs, strict=True)])
    return [
        *_decoding_rows(bench, share, ratio, read, bandwidth, (ours, theirs)),
        *_measure_cudnn(bench, session, many),
    ]


def _measure_cudnn(bench: ChatBench, session: Session, count: int) -> list[Row]:
    """Compare a dialogue without cuDNN's attention, as is the default, with one that uses it, on a GPU."""
    if bench.device.type != "cuda":
        return []
    work = _decode_with_ours(bench, Script(session, [_long_reply(bench, count)]))
    sides = {f"cuDNN {name}": with_cudnn_attention(work, name == "on") for name in ("off", "on")}
    return [compare_sides(bench.device, f"prefill and {count} tokens, batch 1: {_CUDNN}", sides, bench.size.repeats)]


def _decoding_rows(
    bench: ChatBench,
    share: Spread,
    ratio: Spread,
    read: float,
    bandwidth: Spread,
    seconds: tuple[list[float], list[float]],
) -> list[Row]:
    real = bench.device.type == "cuda"
    ours, theirs = (Spread.from_values([1e3 * s for s in side]) for side in seconds)
    what = f"decoding, batch 1, {bench.size.decoded} tokens, {str(next(bench.model.parameters()).dtype)[6:]}"
    mine = f"{ours.to_text()} ms a token"
    return [
        Row(
            bench.device.type,
            f"{what}: share of the memory bandwidth",
            f"{share.to_text('.1f')}%",
            f"{mine}, {read / 1e9:.2f} GB each",
            f"copying: {bandwidth.median / 1e9:.0f} GB a second",
            "at least 60%, aim 70%" if real else "",
            share.median >= 60 if real else None,
            {"share": asdict(share), "bytes": read, "bandwidth": asdict(bandwidth), "ms": asdict(ours)},
        ),
        Row(
            bench.device.type,
            f"{what}: beside transformers' `generate`, same weights",
            f"{ratio.to_text()} x",
            mine,
            f"generate: {theirs.to_text()} ms a token",
            "at least 2 x" if real else "",
            ratio.median >= 2 if real else None,
            {"ratio": asdict(ratio), "ms": asdict(ours), "generate_ms": asdict(theirs)},
        ),
    ]


def _long_reply(bench: ChatBench, count: int) -> list[int]:
    """Make a reply of so many tokens, of which only the last ends the turn."""
    model = bench.model
    word = model.language_model.tokenizer.encode(" look")
    tail = model.language_model.tokenizer.encode("<answer>12</answer>")
    return [*(word * count)[: count - len(tail)], *tail]


def _decode_with_ours(bench: ChatBench, script: Script) -> Callable[[], object]:
    return ScriptedLoop(bench.model, [script]).run_one_by_one


def _decode_with_transformers(bench: ChatBench, prompt: int, count: int) -> Callable[[], object]:
    """Make a call that writes `count` tokens after a prompt of `prompt` tokens with transformers' own loop."""
    twin = _transformers_twin(bench)
    weight = next(bench.model.parameters())
    embeddings = torch.randn(1, prompt, bench.model.language_model.width, device=weight.device, dtype=weight.dtype)
    mask = torch.ones(1, prompt, dtype=torch.long, device=weight.device)

    lengths = {"min_new_tokens": count, "max_new_tokens": count}

    def run() -> Any:
        with torch.inference_mode():
            return twin.generate(inputs_embeds=embeddings, attention_mask=mask, do_sample=False, **lengths)

    return run


def _transformers_twin(bench: ChatBench) -> Any:
    """Build transformers' causal model of the same shape on the same weights; for text its RoPE is the same."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    language_model: Any = bench.model.language_model
    text = language_model.model.config
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    same += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
    settings = {name: getattr(text, name) for name in same}
    with meta_parameters():
        twin = Qwen2ForCausalLM(Qwen2Config(**settings, tie_word_embeddings=False, pad_token_id=0, eos_token_id=None))
    weights = {f"model.{name}": value for name, value in language_model.model.named_parameters()}
    missing = assign_weights(twin, {**weights, "lm_head.weight": language_model.lm_head.weight})
    assert not missing, f"transformers' model has no {missing[0]} from ours"
    twin.generation_config.eos_token_id = None
    return twin.to(bench.device).eval()


def _bytes_per_token(language_model: Any, columns: float) -> float:
    """Return the bytes that a token must read: all weights but the embeddings, and the KV cache of so many tokens."""
    table = language_model.model.get_input_embeddings().weight
    weights = sum(weight.nbytes for weight in language_model.parameters() if weight is not table)
    text = language_model.model.config
    width = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    return float(weights + 2 * text.num_hidden_layers * width * table.element_size() * columns)


def missing_decoding_rows(device: str) -> list[Row]:
    """Return the rows of a device that is not available."""
    return [
        Row(device, "decoding, batch 1, bfloat16: share of the memory bandwidth", target="at least 60%, aim 70%"),
        Row(device, "decoding, batch 1, bfloat16: beside transformers' `generate`", target="at least 2 x"),
        Row(device, f"prefill and tokens, batch 1, bfloat16: {_CUDNN}"),
    ]
