"""What all sections of YAML files stand on: refusal of unknown keys, and the kinds of words."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

NAME = r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$"
HOST_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$"
ADDR = r"^[^\s\x00@,;'\"/\\-][^\s\x00@,;'\"/\\]*$"
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
LABEL_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$"
LABEL_VALUE = r"^[A-Za-z0-9._-]{1,64}$"
HANG = r"^(auto|off|[0-9]+(\.[0-9]+)?[smh])$"
TEXT = r"^[^\x00]*$"
FILLED = r"^[^\x00]+$"
PYTHON_VERSION = r"^3\.[0-9]{1,2}$"
TORCH_BUILD = r"^(auto|default|cpu|xpu|cu[0-9]{3}|rocm[0-9]\.[0-9]{1,2})$"

PATTERN_WORDS = {
    NAME: "lower-case letters, digits and `-` (1 to 48)",
    HOST_NAME: "letters, digits, `.`, `_` and `-` (1 to 64), a letter or digit first and last",
    ADDR: "an address or alias, without user, port or spaces",
    ENV_NAME: "the name of an environment variable: letters, digits and `_`, no digit first",
    LABEL_VALUE: "letters, digits, `.`, `_` and `-` (1 to 64); a number in quotes",
    HANG: "auto, off, or a time such as 90s, 5m or 1h",
    TEXT: "text without a NUL character",
    FILLED: "text that is not empty, without a NUL character",
    PYTHON_VERSION: "a minor version of Python 3 in quotes, such as '3.12'",
    TORCH_BUILD: "auto, default, cpu, xpu, or a build such as cu128 or rocm6.4",
}
"""What an error says of a text that does not fit its pattern."""

Name = Annotated[str, StringConstraints(pattern=NAME)]
HostName = Annotated[str, StringConstraints(pattern=HOST_NAME)]
Addr = Annotated[str, StringConstraints(pattern=ADDR)]
EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME)]
Text = Annotated[str, StringConstraints(pattern=TEXT)]
"""Any text that can be an argument, a path or a variable's value: those end at a NUL."""
LabelName = Annotated[str, StringConstraints(pattern=LABEL_NAME)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE)]
Filled = Annotated[str, StringConstraints(pattern=FILLED)]


class Strict(BaseModel):
    """An unknown key is an error; a value of the wrong type is not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
