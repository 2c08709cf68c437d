"""Errors in a job or inventory say file, line, key and what was meant."""

from __future__ import annotations

import pytest

from llmctl.controller.config.checking import check_document
from llmctl.controller.config.models import HostsFile, JobFile
from llmctl.controller.config.yamlfile import parse_yaml
from llmctl.errors import ConfigError


def problem(body: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_document(JobFile, parse_yaml("version: 1\nname: x\n" + body, "job.yaml"), "the job")
    return caught.value


PLACE = "job.yaml:3: "

SENTENCES = [
    ("chekpoint: {}", PLACE + "unknown key `chekpoint` in the job; did you mean `checkpoint`?"),
    ("steps: 5", PLACE + "unknown key `steps` in the job; did you mean `recipe.steps`?"),
    ("recipe:\n  stepz: 5", "job.yaml:4: unknown key `stepz` in `recipe`; did you mean `steps`?"),
    ("env: {pas: []}", PLACE + "unknown key `pas` in `env`; did you mean `pass`?"),
    ("env: {pass_: []}", PLACE + "unknown key `pass_` in `env`; did you mean `pass`?"),
    ("nodes: two", PLACE + '`nodes` must be a whole number, found text "two"'),
    ("nodes: 1.5", PLACE + "`nodes` must be a whole number, found the number 1.5"),
    ("nodes: true", PLACE + "`nodes` must be a whole number, found `true`"),
    ("nodes: 0", PLACE + "`nodes` must be at least 1, found the number 0"),
    ("recipe:", PLACE + "`recipe` must be a mapping, found nothing"),
    ("recipe: {optimizer: {lr: .nan}}", PLACE + "`recipe.optimizer.lr` must be a finite number"),
    (
        "recipe: {optimizer: {lr: 0}}",
        PLACE + "`recipe.optimizer.lr` must be greater than 0, found the number 0",
    ),
    (
        "recipe: {optimizer: {betas: [0.9]}}",
        PLACE + "`recipe.optimizer.betas` must have at least 2 entries, found 1",
    ),
    ("recipe: {model: {size: 8b}}", PLACE + "`recipe.model.size` must be `tiny`, `small`"),
    (
        "train: {backend: ncl}",
        PLACE + '`train.backend` must be `auto`, `gloo` or `nccl`, found text "ncl"; did you mean `nccl`?',
    ),
    ("train: {args: --lr 1}", PLACE + '`train.args` must be a list, found text "--lr 1"'),
    ("train: {args: [--lr, 1]}", PLACE + "`train.args[1]` must be text, found the number 1"),
    ("env: {set: {DEBUG: 1}}", PLACE + "`env.set.DEBUG` must be text, found the number 1"),
    ("env: {set: {1A: x}}", PLACE + "`1A` in `env.set` must be the name of an environment variable"),
    ("env: {set: {HF_TOKEN: 1}}", PLACE + "`env.set.HF_TOKEN` must be text, found a number"),
    ("pool: Main", PLACE + "`pool` must be lower-case letters"),
    (
        "recipe: {optimizer: {betas: [0.9, 1]}}",
        PLACE + "`recipe.optimizer.betas[1]` must be less than 1, found the number 1",
    ),
    ("recipe: {optimizer: {betas: [-0.1, 0.9]}}", PLACE + "`recipe.optimizer.betas[0]` must be at least 0"),
    (
        "recipe: {model: {heads: 5}}",
        PLACE + "`recipe.model`: `dim` 192 can't be divided by `heads` 5",
    ),
    (
        "recipe: {model: {size: 125m, kv_heads: 5}}",
        PLACE + "`recipe.model`: `heads` 12 can't be divided by `kv_heads` 5",
    ),
    ("recipe: {model: {dim: 18}}", PLACE + "`recipe.model`: `dim` / `heads` is 3; the rotary"),
]


@pytest.mark.parametrize(("body", "expected"), SENTENCES)
def test_the_message_names_line_key_and_remedy(body: str, expected: str) -> None:
    """Each kind of mistake has one sentence that a person can act on without the documentation."""
    assert problem(body).line().startswith(expected)


def test_the_first_line_is_the_message_and_the_rest_the_hint() -> None:
    """Several mistakes are told in the file's order; the first is the message, the others are not lost."""
    error = problem("zzz: 1\nnodes: two\npool: 3\nrecipe: {seed: -1}\ntrain: {grace_s: -1}\n")
    assert error.line().startswith("job.yaml:3: unknown key `zzz`")
    assert error.hint is not None
    assert error.hint.index("job.yaml:4") < error.hint.index("job.yaml:5") < error.hint.index("job.yaml:6")
    assert error.hint.endswith("and 1 more")


def test_a_typo_is_told_before_what_it_makes_missing() -> None:
    """`nmae:` is reported as the typo it is, not as a missing `name`."""
    with pytest.raises(ConfigError) as caught:
        check_document(JobFile, parse_yaml("version: 1\nnmae: x", "job.yaml"), "the job")
    assert caught.value.message.endswith("unknown key `nmae` in the job; did you mean `name`?")
    assert "missing key `name`" in str(caught.value.hint)


@pytest.mark.parametrize("version", ["2", "0"])
def test_another_version_is_told_alone(version: str) -> None:
    """A file of another form is not judged by this form's keys."""
    with pytest.raises(ConfigError, match=f"has version {version}; this llmctl reads version 1"):
        check_document(JobFile, parse_yaml(f"version: {version}\nfuture: 1", "job.yaml"), "the job")


@pytest.mark.parametrize("text", ["- 1", "hello", "3"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    """A list or a bare word is refused before any key is looked for."""
    with pytest.raises(ConfigError, match="the job must be a mapping"):
        check_document(JobFile, parse_yaml(text, "job.yaml"), "the job")


def test_places_inside_lists_and_pools() -> None:
    """A mistake deep in the inventory is found at its own line and path."""
    text = "version: 1\npools:\n  main:\n    hosts:\n      - {name: a, addr: x}\n      - {name: b, adr: y}\n"
    with pytest.raises(ConfigError) as caught:
        check_document(HostsFile, parse_yaml(text, "hosts.yaml"), "the inventory")
    assert (
        caught.value.message
        == "hosts.yaml:6: unknown key `adr` in `pools.main.hosts[1]`; did you mean `addr`?"
    )


@pytest.mark.parametrize(
    "body",
    [
        'train: {args: ["a\\0"]}',
        'train: {script: "a\\0"}',
        'env: {set: {A: "a\\0"}}',
        'data: {uri: "a\\0"}',
        'checkpoint: {uri: "a\\0"}',
        'code: {path: "a\\0"}',
    ],
)
def test_a_nul_is_refused_where_it_could_not_travel(body: str) -> None:
    """Arguments, paths and variables end at a NUL, so one in them is refused, and shown as an escape."""
    line = problem(body).line()
    assert "without a NUL character" in line
    assert line.isprintable()


def test_a_secret_value_is_not_in_the_error() -> None:
    """What is wrong with a secret's value is told without the value."""
    error = problem('env: {set: {HF_TOKEN: "hf_abc\\0"}}')
    assert "without a NUL character, found text" in error.line()
    assert "hf_abc" not in error.line() + str(error.hint)


@pytest.mark.parametrize("key", ["addr", "python", "workdir", "user", "interface"])
def test_an_empty_word_of_a_host_is_refused(key: str) -> None:
    """`python: ""` is a mistake, not the default."""
    values = {"name": "a", "addr": "x", key: ""}
    entry = ", ".join(f'{name}: "{value}"' for name, value in values.items())
    text = f"version: 1\npools: {{p: {{hosts: [{{{entry}}}]}}}}"
    with pytest.raises(ConfigError, match=f"`pools.p.hosts\\[0\\].{key}` must be"):
        check_document(HostsFile, parse_yaml(text, "hosts.yaml"), "the inventory")
