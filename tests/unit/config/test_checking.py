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
        "recipe: {optimizer: {betas: [1]}}",
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
    ("pool: Main", PLACE + "`pool` must be lower-case letters"),
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
