"""The process that renders a chat template of somebody else: a JSON request in, a JSON line for each dialogue out.

It runs as a file of its own, so that it loads only the template library. A template is a program: it may compute for
ever or fill the memory, and inside one operation on a large integer or text no Python code can stop it. Only the system
can, which is asked to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

LONGEST = 100_000
"""Most characters that a template may write for a dialogue of a few words."""
SECONDS = 2
"""CPU time that it may take."""
MEMORY = 512 << 20
"""Address space that it may take, in bytes."""


def render_dialogues(
    template: str, special: Mapping[str, str], dialogues: Sequence[Sequence[Mapping[str, str]]]
) -> Iterator[dict[str, str]]:
    """Render dialogues with a generation prompt, each to {"text": ..}, or to {"problem": ..} if that fails.

    `special` holds the tokenizer's special tokens by their names, as `bos_token`.
    """
    try:
        compiled = _build_environment().from_string(template)
    # A template is code: reading it may already compute, and raise anything.
    except Exception as error:
        yield from [{"problem": _describe(error)}] * len(dialogues)
        return
    for dialogue in dialogues:
        try:
            text = compiled.render(
                messages=[dict(message) for message in dialogue],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **special,
            )
        except Exception as error:
            yield {"problem": _describe(error)}
        else:
            yield {"text": text} if len(text) <= LONGEST else {"problem": f"it writes more than {LONGEST:,} characters"}


def _build_environment() -> Any:
    """Return the environment in which transformers renders chat templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        # {% generation %} marks what a model is trained on, and writes what is in it.
        tags = {"generation"}  # noqa: RUF012 - a set in jinja2

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _describe(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MEMORY >> 20} MiB of memory"
    text = " ".join(str(error).split())
    return text[:200].rstrip(".") or type(error).__name__


def _limit_resources() -> None:
    # Some systems have no such limits, or have set lower ones.
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    """Render what the standard input asks for."""
    template, special, dialogues = json.load(sys.stdin)
    _limit_resources()
    for found in render_dialogues(template, special, dialogues):
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
