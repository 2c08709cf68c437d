"""Text on one side, token ids on the other: the model's tokenizer, its ends of text, its chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmctl.errors import ConfigError
from llmctl.storage.corpus.tokenizer import EOS_NAMES, scrubbed
from llmctl.worker.hf.folder import TOKENIZER

STAGE = "tokenizer"
REPLACEMENT = "\ufffd"
TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of one model.

    Attributes:
        ends: ids that end an answer.
        chat_template: Jinja text; None: the model has none.
        special: what templates may name: `bos_token`, `eos_token` ...
    """

    backend: Any
    ends: tuple[int, ...]
    chat_template: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text. `special`: with what the tokenizer puts around one; chat templates have it."""
        ids: list[int] = self.backend.encode(scrubbed(text), add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        text: str = self.backend.decode(list(ids))
        return text

    def token_text(self, token: int) -> str:
        """One id by itself, special ones included, for log-probabilities."""
        text: str = self.backend.decode([token], skip_special_tokens=False)
        return text


def vocabulary(files: Mapping[str, bytes]) -> Vocabulary:
    """The tokenizer in a model's small files (tokenizer.json, tokenizer_config.json, generation_config.json,
    config.json, chat_template.jinja), as they lie in an exported folder.

    Raises:
        ConfigError: there is none that can be read.
    """
    from tokenizers import Tokenizer

    if TOKENIZER not in files:
        raise ConfigError(
            f"the model has no {TOKENIZER}", hint="send token ids, or add the file to it", stage=STAGE
        )
    try:
        backend = Tokenizer.from_str(files[TOKENIZER].decode())
    # The binding raises a bare Exception for every document that it can't use.
    except Exception as error:  # noqa: BLE001
        raise ConfigError(f"{TOKENIZER} is not readable: {error}", stage=STAGE) from None
    backend.no_truncation()
    backend.no_padding()
    config = _json(files, "tokenizer_config.json")
    special = {key: _content(value) for key, value in config.items() if key.endswith("_token") and value}
    return Vocabulary(
        backend=backend,
        ends=_ends(files, backend, special),
        chat_template=_template(files, config),
        special=special,
    )


def _ends(files: Mapping[str, bytes], backend: Any, special: Mapping[str, str]) -> tuple[int, ...]:
    """What ends a text: as generation_config.json says it, else config.json, else the tokenizer."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _json(files, name).get("eos_token_id")
        found += [value] if isinstance(value, int) else list(value or ())
        if found:
            break
    if "eos_token" in special:
        found += [backend.token_to_id(special["eos_token"])]
    if not found:
        found += [backend.token_to_id(name) for name in EOS_NAMES]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    """From its own file, else from tokenizer_config.json, where several have names."""
    if TEMPLATE_FILE in files:
        return files[TEMPLATE_FILE].decode()
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _content(value: Any) -> str:
    """A special token as text: written plainly, or as an object with `content`."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        document = json.loads(files.get(name, b"{}"))
    except ValueError:
        raise ConfigError(f"{name} is not JSON", stage=STAGE) from None
    return document if isinstance(document, dict) else {}


class Detokenizer:
    """Text of ids as they come, never cutting a character that several tokens make up.

    A tokenizer may write the same token differently by what stands before it, so a few earlier ids are
    decoded again each time, and only what they add is new. Ids are taken one by one: where bytes are no
    UTF-8, the text must not depend on how many came at once.
    """

    def __init__(self, words: Vocabulary) -> None:
        self._words = words
        self._ids: list[int] = []
        self._from, self._shown = 0, 0

    def add(self, ids: Sequence[int]) -> str:
        """The text that has become certain."""
        shown = []
        for token in ids:
            self._ids.append(token)
            shown.append(self._take(final=False))
        return "".join(shown)

    def finish(self) -> str:
        """What was held back: bytes that are no whole character show as U+FFFD."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._words.decode(self._ids[self._from : self._shown])
        now = self._words.decode(self._ids[self._from :])
        if len(now) <= len(before) or (now.endswith(REPLACEMENT) and not final):
            return ""
        self._from, self._shown = self._shown, len(self._ids)
        return now[len(before) :]


class StopStrings:
    """Ends a text before the first of some strings, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.hit = False

    def add(self, text: str) -> str:
        """What may be shown of the text so far and is new. `hit` is set where a stop string has come."""
        if self.hit:
            return ""
        self._held += text
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            self.hit = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = self._beginning()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        shown, self._held = self._held, ""
        return shown

    def _beginning(self) -> int:
        """Characters at the end that begin a stop string."""
        longest = max(map(len, self._stops), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
