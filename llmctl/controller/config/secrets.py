"""Which environment variables are secret, and how they stay out of everything that is written.

A name that looks secret is treated as one wherever it stands in the job: its value moves to the secrets,
which travel on the agent's stdin only, and the job that is recorded names it without the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from llmctl.controller.config.models import JobFile
from llmctl.controller.config.types import Secrets
from llmctl.errors import ConfigError

_SECRET_WORDS = frozenset(
    (
        "SECRETS",
        "AUTH",
        "PAT",
        "DSN",
        "PASSPHRASE",
        "KEY",
        "APIKEY",
        "CREDENTIAL",
        "CREDENTIALS",
    )
)
_SECRET_ENDINGS = ("PASSWORD", "PASSWD", "TOKEN", "SECRET")


def looks_secret(name: str) -> bool:
    """By words and their ends: `HF_TOKEN` and `PGPASSWORD` are secret, `TOKENIZERS_PARALLELISM` is not."""
    words = name.upper().split("_")
    return any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS) for word in words)


def split_secrets(job: JobFile, environ: Mapping[str, str]) -> tuple[JobFile, Secrets]:
    """The job without one secret value in it, and the values. Raises ConfigError for one that is not set."""
    env = job.env
    written = {name: value for name, value in env.set.items() if looks_secret(name) or name in env.secrets}
    passed = [name for name in env.pass_ if looks_secret(name) and name in environ]
    named = tuple(dict.fromkeys((*env.secrets, *written, *passed)))
    secrets = Secrets()
    for name in named:
        value = written[name] if name in written else environ.get(name)
        if not value and name not in written:  # one that is written empty is meant so
            raise ConfigError(
                f"the secret {name} is not set in your environment",
                hint=f"export {name}=…, or take it out of `env.secrets`",
            )
        secrets[name] = value or ""
    kept = {
        "set": {name: value for name, value in env.set.items() if name not in secrets},
        "pass_": [name for name in env.pass_ if name not in secrets],
        "secrets": list(named),
    }
    return job.model_copy(update={"env": env.model_copy(update=kept)}), secrets


def secret_notes(before: JobFile, after: JobFile) -> tuple[str, ...]:
    """What a person should hear about values that were written into the job file."""
    moved = [name for name in after.env.secrets if name in before.env.set]
    return tuple(
        f"env.set.{name} is treated as a secret: it is sent but never stored; write it in `env.secrets`"
        for name in moved
    )


def refuse_password_in_uri(uri: str, key: str) -> None:
    """URIs are stored and shown everywhere, so a password in one can't stay hidden. Raises ConfigError."""
    for part in uri.split("::"):
        try:
            password = urlsplit(part).password
        except ValueError:
            raise ConfigError(f"`{key}` is not a URI") from None
        if password:
            raise ConfigError(
                f"`{key}` has a password in it; it would be stored with the run",
                hint="give credentials by `env.secrets`, or the store's own configuration on the hosts",
            )
