"""The text around turns: read off any chat template once, within limits, and kept with a run."""

from __future__ import annotations

import json

import pytest

from vilavt_components.language_models import chat_templates
from vilavt_components.language_models.chat_templates import read_turn_template
from vilavt_components.language_models.hf_causal import HFCausal, HFCausalConfig
from vilavt_components.language_models.tokenizer import HFTokenizer, load_tokenizer
from vilavt_toolkit.errors import InputError

QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system role') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ m['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\n{% elif m['role'] == 'user' %}"
    "USER: {{ m['content'] }}\n{% else %}ASSISTANT: {{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
# template, the token that ends a turn, whether there is a system role
TEMPLATES = {
    "qwen": (QWEN, "<|im_end|>", True),
    "llama": (LLAMA, "<|eot_id|>", True),
    "gemma": (GEMMA, "<end_of_turn>", False),
    "vicuna": (VICUNA, "</s>", True),
}
LLAMA_SETTINGS = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
MESSAGES = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
THINKS = MESSAGES + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
DATED = "Today is {{ strftime_now('%d %b %Y %H:%M:%S.%f') }}\n" + MESSAGES
# As templates of published models are written: macros, namespaces, slices, loop controls, undefined names.
ELABORATE = (
    "{%- macro show(m) -%}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim }}<|im_end|>\n{%- endmacro -%}"
    "{%- set ns = namespace(system='', n=0) %}{% if messages[0].role == 'system' %}"
    "{% set ns.system = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}"
    "{{ bos_token }}{{ ns.system }}{% for m in messages %}{% if m is undefined %}{% continue %}{% endif %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ show(m) }}{% endgeneration %}{% else %}{{ show(m) }}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ {'turns': ns.n} | tojson }}"
    "{% if enable_thinking is defined and not enable_thinking %}no{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("name", [*TEMPLATES, "thinks", "elaborate"])
def test_a_template_is_rendered_as_transformers_renders_it(name, make_backend):
    template = {"thinks": THINKS, "elaborate": ELABORATE}.get(name) or TEMPLATES[name][0]
    tokenizer = make_backend(template)
    found = chat_templates._render(template, tuple(tokenizer.special_tokens_map.items()))
    expected = []
    for dialogue in chat_templates._DIALOGUES:
        try:
            expected.append(tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True))
        except Exception:
            expected.append("")
    assert list(found) == expected


def test_a_thought_that_the_template_opens_is_counted_as_written(make_backend):
    frames, _ = read_turn_template(make_backend(THINKS))
    assert frames.opened == "<think>" and frames.reply.endswith("<|im_start|>assistant\n<think>\n")
    assert frames.text_to_write("<think>a</think><answer>7</answer>") == "a</think><answer>7</answer>"
    assert frames.text_to_write("<answer>7</answer>") == "</think>\n<answer>7</answer>", "an empty thought is closed"
    plain, _ = read_turn_template(make_backend(MESSAGES))
    assert plain.opened == "" and plain.text_to_write("<think>a</think>") == "<think>a</think>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 9 ** (9 ** 9) }}", "CPU time"),
        ("{{ 'a' * 10 ** 10 }}", "memory"),
        ("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "memory"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
        ("{{ 'a' * 10 ** 6 }}", "more than 100,000 characters"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{% if %}", "Expected an expression"),
        ("{{ x | nosuch }}", "No filter named"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('no\x1b[2J' + 'x' * 5000) }}", "no"),
        ("{% for m in messages %}x{% endfor %}", "leaves out messages"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_sentence(template, reason, make_backend):
    with pytest.raises(InputError, match=r"the chat template of .* cannot be used \(") as caught:
        read_turn_template(make_backend(template))
    message = str(caught.value)
    assert reason in message and "\n" not in message and len(message) < 500
    assert message.endswith("Name another `tokenizer`, or set `chat_template` to plain.")


def test_of_several_templates_a_setting_names_one_and_none_is_guessed(make_backend):
    several = make_backend(None)
    several.chat_template = {"rag": MESSAGES, "tool_use": THINKS}
    with pytest.raises(InputError, match=r"no default template. Set `chat_template` to one of rag, tool_use, or to pl"):
        read_turn_template(several)
    with pytest.raises(InputError, match=r"no chat template 'tool'. Did you mean 'tool_use'"):
        read_turn_template(several, "tool")
    assert read_turn_template(several, "tool_use")[0].opened == "<think>"
    assert read_turn_template(several, "plain")[0].reply == "\nAssistant: "
    several.chat_template = {**several.chat_template, "default": MESSAGES}
    assert read_turn_template(several)[0].opened == ""


def test_frames_are_kept_with_a_run_and_do_not_change_with_the_day(tmp_path, make_backend):
    tokenizer = make_backend(DATED)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = HFCausal(HFCausalConfig(config=LLAMA_SETTINGS, tokenizer=str(tmp_path / "tokenizer")))
    (tmp_path / "saved").mkdir()
    model.save_assets(tmp_path / "saved")
    chat_templates._render.cache_clear()
    tomorrow = HFCausal.from_saved(model.config, tmp_path / "saved")
    assert tomorrow.turn_template == model.turn_template and tomorrow.end_of_turn == model.end_of_turn
    again = HFTokenizer(make_backend(DATED), "<|feature|>").turn_template
    assert again.first != model.turn_template.first, "the template does write the time"


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", "null", json.dumps({"first": 1}), "[" * 100_000, '{"end_of_turn": "1", "system": null}'],
)
def test_damaged_frames_of_a_run_are_one_sentence(tmp_path, content):
    (tmp_path / chat_templates.FILE).write_text(content)
    with pytest.raises(InputError, match=r"turn_template.json' is damaged \(.*\). Copy it again"):
        chat_templates.load_turn_template(tmp_path)


def test_a_trained_tokenizer_starts_no_process(monkeypatch):
    monkeypatch.setattr(chat_templates, "_WORKER", "nowhere")
    chat_templates._render.cache_clear()
    model = HFCausal(HFCausalConfig(config=LLAMA_SETTINGS, vocab_size=400))
    model.fit_tokenizer(["what digit?"], [])
    assert model.turn_template.reply == "<|assistant|>"


def conversation(system: str | None) -> list[dict[str, str]]:
    said = [("user", "what is it?"), ("assistant", "a circle"), ("user", "which one?"), ("assistant", "the red one")]
    messages = [{"role": role, "content": content} for role, content in [*said, ("user", "sure?")]]
    return [{"role": "system", "content": system}, *messages] if system else messages


def framed(tokenizer: HFTokenizer, system: str | None) -> str:
    frames, end = tokenizer.turn_template, tokenizer.decode([tokenizer.end_of_turn])
    messages = [m["content"] for m in conversation(None)]
    text = f"{frames.system[0]}{system}{frames.system[1]}" if system else frames.first
    for asked, said in zip(messages[::2], messages[1::2], strict=False):
        text += f"{asked}{frames.reply}{said}{end}{frames.following}"
    return text + messages[-1] + frames.reply


@pytest.mark.parametrize("system", [None, "Be brief."], ids=["no-system", "system"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_frames_and_texts_in_a_row_are_the_templates_own_rendering(name, system, make_backend):
    template, end, has_system = TEMPLATES[name]
    tokenizer = HFTokenizer(make_backend(template), "<|feature|>")
    assert tokenizer.decode([tokenizer.end_of_turn]) == end
    assert (tokenizer.turn_template.system is not None) is has_system
    if system and not has_system:
        return
    rendered = tokenizer.backend.apply_chat_template(conversation(system), tokenize=False, add_generation_prompt=True)
    # Where the template ends no turn, our end-of-text token is all that differs.
    found = framed(tokenizer, system)
    assert (found if end in rendered else found.replace(end, "")) == rendered


def test_without_a_template_turns_are_plain_and_end_with_the_end_of_text(make_backend):
    tokenizer = HFTokenizer(make_backend(None), "<|feature|>")
    assert tokenizer.decode([tokenizer.end_of_turn]) == "</s>"
    assert framed(tokenizer, "Be brief.").startswith("Be brief.\n\nUser: what is it?\nAssistant: a circle</s>\nUser: ")


def damaged(folder, file: str, path: tuple, value):
    content = json.loads((folder / file).read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("tokenizer.json", ("model", "vocab", "a"), -1),
        ("tokenizer.json", ("model", "vocab", "a"), 2**31),
        ("tokenizer.json", ("model", "vocab", "a"), 10**30),
        ("tokenizer.json", ("model", "vocab"), []),
        ("tokenizer.json", ("model", "type"), "Nothing"),
        ("tokenizer.json", ("added_tokens", 0, "id"), -7),
        ("tokenizer.json", ("added_tokens", 0, "content"), None),
        ("tokenizer.json", ("decoder",), {"type": "Strip", "content": "ab"}),
        ("tokenizer_config.json", ("eos_token",), {"a": 1}),
        ("tokenizer_config.json", ("eos_token",), 5),
        ("tokenizer_config.json", ("tokenizer_class",), 3),
        ("tokenizer_config.json", ("model_max_length",), []),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence_or_harmless(make_backend, tmp_path, file, path, value):
    make_backend(MESSAGES).save_pretrained(tmp_path)
    damaged(tmp_path, file, path, value)
    try:
        tokenizer = load_tokenizer(str(tmp_path), "<|feature|>", None, True)
    except InputError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error) and len(str(error)) < 600
    else:
        assert tokenizer.decode(tokenizer.encode("what digit")) == "what digit"
        assert file == "tokenizer_config.json", "a damaged tokenizer.json is refused"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{", b"[" * 100_000])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_no_tokenizer_is_one_sentence(make_backend, tmp_path, file, content):
    make_backend(MESSAGES).save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match="no tokenizer can be loaded from"):
        load_tokenizer(str(tmp_path), "<|feature|>", None, True)
