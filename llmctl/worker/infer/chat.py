"""Messages of a chat as the text that the model was trained on: its own Jinja template, in a sandbox.

A template comes with the weights, from whoever made them: it can compute text and nothing else.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from llmctl.errors import ConfigError
from llmctl.worker.infer.text import Vocabulary

STAGE = "chat"


class ChatTemplate:
    """The compiled template of a model."""

    def __init__(self, words: Vocabulary) -> None:
        self._special = words.special
        self._source = words.chat_template
        self._template: Any = None

    def render(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
        """The prompt, up to where the assistant speaks.

        Args:
            messages: each with `role` and `content`.
            more: what a request gives the template beside them.

        Raises:
            ConfigError: the model has no template, it can't be compiled, or it refuses these messages.
        """
        if self._source is None:
            raise ConfigError(
                "this model has no chat template", hint="use /v1/completions with a prompt", stage=STAGE
            )
        if find_spec("jinja2") is None:
            raise ConfigError("chat templates need jinja2", hint="pip install jinja2 there", stage=STAGE)
        from jinja2 import TemplateError

        self._template = self._template or _compile(self._source)
        try:
            text: str = self._template.render(
                **{**self._special, "messages": list(messages), "add_generation_prompt": True, **more}
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"the chat template refuses these messages: {error}", stage=STAGE) from None
        return text


def _compile(text: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # The settings that transformers has: templates rely on them.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(text)
    except TemplateError as error:
        raise ConfigError(f"the chat template can't be read: {error}", stage=STAGE) from None


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)
