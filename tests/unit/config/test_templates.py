"""What `llmctl init` lays down is valid, and its comments don't lie about the models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmctl.controller.config.inventory import load_inventory
from llmctl.controller.config.job import load_job, resolve
from llmctl.controller.config.models import ModelSection
from llmctl.controller.config.templates import TEMPLATES, lay_down, template_dir
from llmctl.controller.transport.tree import scan
from llmctl.errors import ConfigError
from llmctl.wire.model import SIZES


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_loads_and_resolves(name: str, tmp_path: Path) -> None:
    """A job can be planned from each template as it is laid down."""
    paths = lay_down(name, tmp_path, values={"PYTHON": "/usr/bin/python3"})
    assert len(paths) == len(TEMPLATES[name])
    inventory = load_inventory(tmp_path / "hosts.yaml")
    config = resolve(load_job(tmp_path / "job.yaml"), inventory, environ={}, base=tmp_path)
    assert len(config.hosts) == 2
    assert not re.search(r"@[A-Z]+@", "".join(path.read_text() for path in paths))


@pytest.mark.parametrize("name", TEMPLATES)
def test_commented_keys_are_keys(name: str, tmp_path: Path) -> None:
    """Every commented-out key in the YAML loads when its `# ` is removed."""
    lay_down(name, tmp_path, values={"PYTHON": "python3"})
    for file, load in (("hosts.yaml", load_inventory), ("job.yaml", load_job)):
        path = tmp_path / file
        text = path.read_text()
        optional = re.compile(r"^( *)# ([a-z_]+: )", re.MULTILINE)
        path.write_text(optional.sub(r"\1\2", text))
        assert load(path)


def test_scripts_compile() -> None:
    """Python files among the templates have no syntax error."""
    paths = list(template_dir().rglob("*.py"))
    assert paths
    assert all(compile(path.read_text(), str(path), "exec") for path in paths)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    """A second `init` refuses, `force` replaces, `keep` leaves what is there."""
    lay_down("recipe", tmp_path)
    (tmp_path / "job.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="is already there"):
        lay_down("recipe", tmp_path)
    assert lay_down("recipe", tmp_path, keep=True) == ()
    assert (tmp_path / "job.yaml").read_text() == "mine"
    lay_down("recipe", tmp_path, force=True)
    assert load_job(tmp_path / "job.yaml").name == "recipe"


def test_an_unknown_template_names_the_known(tmp_path: Path) -> None:
    """A wrong name is answered with the right ones."""
    with pytest.raises(ConfigError) as caught:
        lay_down("recipee", tmp_path)
    assert "recipe, script, text, image, speech, demo" in str(caught.value.hint)


def test_the_job_can_name_every_size() -> None:
    """The job may name exactly the sizes that the recipe can build, in their order."""
    choices = ModelSection.model_json_schema()["properties"]["size"]["enum"]
    assert choices == list(SIZES)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file where the folder should be is an error with its path."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        lay_down("recipe", tmp_path / "file")


def test_results_are_not_pushed_as_code(tmp_path: Path) -> None:
    """What `init` lays down keeps pulled runs and shards out of the tree, and a package `shards` in it."""
    lay_down("script", tmp_path)
    for folder in ("llmctl-runs/a", "llmctl-demo", "shards", "src/shards"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").touch()
    paths = {entry.path for entry in scan(tmp_path, cache_dir=tmp_path / "shards").entries}
    assert paths == {".llmctlignore", "hosts.yaml", "job.yaml", "train.py", "src/shards/file"}
