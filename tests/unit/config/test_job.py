"""Jobs: overrides, secrets, combinations; every mistake is found before a host is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmctl.controller.config.job import job_for_record, load_job, resolve
from llmctl.controller.config.models import JobFile
from llmctl.controller.config.overrides import JobOverrides, parse_shape
from llmctl.controller.config.secrets import looks_secret
from llmctl.controller.config.types import Host, Inventory, RunConfig
from llmctl.controller.plan.plan import recipe_spec
from llmctl.errors import ConfigError

INVENTORY = Inventory(
    path="hosts.yaml",
    pools={
        "main": (Host(name="a", addr="10.0.0.1", slots=8), Host(name="b", addr="10.0.0.2")),
        "spare": (Host(name="c", addr="10.0.0.3"),),
    },
)

RECIPE = {"version": 1, "name": "demo", "pool": "main", "data": {"uri": "hdfs://nn/corpus"}}


def job(**more: object) -> JobFile:
    return JobFile.model_validate({**RECIPE, **more})


def script_job(**more: object) -> JobFile:
    values = {"version": 1, "name": "demo", "pool": "main", "code": {}, "train": {"script": "train.py"}}
    return JobFile.model_validate({**values, **more})


def run_config(
    file: JobFile,
    base: Path = Path("/nowhere"),
    environ: dict[str, str] | None = None,
    default_pool: str | None = None,
    **overrides: object,
) -> RunConfig:
    return resolve(
        file,
        INVENTORY,
        overrides=JobOverrides(**overrides),  # type: ignore[arg-type]
        environ=environ or {},
        base=base,
        default_pool=default_pool,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "train.py").touch()
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/finetune.py").touch()
    return tmp_path


def test_a_plain_job_uses_the_whole_pool() -> None:
    """Without overrides the job and all hosts of its pool are taken as written."""
    config = run_config(job())
    assert [host.name for host in config.hosts] == ["a", "b"]
    assert config.job.name == "demo"
    assert config.base == "/nowhere"


def test_shape_sets_nodes_and_ranks() -> None:
    """`-j 1x4` takes one host and starts four ranks on it, whatever its slots say."""
    nodes, nproc = parse_shape("1x4")
    (host,) = run_config(job(), nodes=nodes, nproc=nproc).hosts
    assert (host.name, host.slots) == ("a", 4)


@pytest.mark.parametrize("text", ["2", "x4", "0x4", "2x", "2×4", "-1x2", "2x4x8", ""])
def test_a_wrong_shape_is_refused(text: str) -> None:
    """Anything but NODESxRANKS is an error with an example."""
    with pytest.raises(ConfigError, match="such as 2x4"):
        parse_shape(text)


def test_set_is_typed_by_the_model() -> None:
    """`--set` text becomes a number, bool, list or text as the key wants, sections made as needed."""
    changed = run_config(
        job(),
        set=(
            "recipe.steps=50",
            "recipe.optimizer.lr=1e-4",
            "recipe.optimizer.betas=[0.8, 0.9]",
            "recipe.tensorboard=false",
            "name=123",
            "checkpoint.uri=/ckpt",
            "recipe.steps=60",
        ),
    ).job
    assert (changed.recipe.steps, changed.recipe.optimizer.lr) == (60, 1e-4)
    assert (changed.recipe.optimizer.betas, changed.recipe.tensorboard) == ([0.8, 0.9], False)
    assert (changed.name, changed.checkpoint.uri) == ("123", "/ckpt")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("recipe.stepz=5", "--set recipe.stepz: unknown key `stepz` in `recipe`; did you mean `steps`?"),
        ("recipe.steps=many", '--set recipe.steps: `recipe.steps` must be a whole number, found text "many"'),
        ("recipe.steps=", "--set recipe.steps: `recipe.steps` must be a whole number"),
        ("chekpoint.every=1", "--set chekpoint.every: unknown key `chekpoint` in the job"),
        ("name.first=x", "--set name.first: `name` has no keys below it"),
        ("recipe..steps=1", "--set recipe..steps: an empty name"),
        ("recipe.steps", "--set wants KEY=value"),
        ("recipe=[", "--set recipe:2:1: not YAML"),
        ("nodes=0", "--set nodes: `nodes` must be at least 1"),
    ],
)
def test_a_wrong_set_is_told_like_a_wrong_file(assignment: str, expected: str) -> None:
    """Errors of `--set` have the flag where a file's have the line."""
    with pytest.raises(ConfigError) as caught:
        run_config(job(), set=(assignment,))
    assert caught.value.line().startswith(expected)


def test_flag_beats_environment_beats_file() -> None:
    """Name, pool and nodes: flag, then LLMCTL_ variable, then the file; the settings' pool comes last."""
    env = {"LLMCTL_NODES": "1", "LLMCTL_NAME": "from-env"}
    assert len(run_config(job(nodes=2), environ=env).hosts) == 1
    assert run_config(job(), environ=env).job.name == "from-env"
    assert run_config(job(), environ=env, name="flag", nodes=2).job.name == "flag"
    assert run_config(job(), environ={"LLMCTL_POOL": "spare"}).hosts[0].name == "c"
    assert run_config(job(), default_pool="spare").hosts[0].name == "a"
    assert run_config(job(pool=None), default_pool="spare").hosts[0].name == "c"


def test_a_wrong_variable_is_named() -> None:
    """LLMCTL_NODES=two is told with the variable's name."""
    with pytest.raises(ConfigError, match="LLMCTL_NODES: `nodes` must be a whole number"):
        run_config(job(), environ={"LLMCTL_NODES": "two"})


def test_environment_of_the_ranks() -> None:
    """`set` is taken, `pass` where the shell has it, flags win, and nothing else is forwarded."""
    file = job(env={"set": {"A": "1"}, "pass": ["B", "C", "D"]})
    config = run_config(file, environ={"B": "2", "D": "old", "PATH": "/bin"}, env={"D": "new", "A": "3"})
    assert config.env == {"A": "3", "B": "2", "D": "new"}
    assert config.secrets == {}


def test_secrets_come_from_the_shell_and_stay_hidden() -> None:
    """A secret's value is in `secrets` only: not in the job, not in the env, not in any repr."""
    config = run_config(job(env={"secrets": ["HF_TOKEN"]}), environ={"HF_TOKEN": "hf_abc"})
    assert config.secrets == {"HF_TOKEN": "hf_abc"}
    assert "hf_abc" not in repr(config)


def test_accounts_of_the_jobs_stores_travel_as_a_secret(tmp_path: Path) -> None:
    """Of stores.yaml, what the job's URIs name is sent, and none of its secrets is recorded or shown."""
    stores = tmp_path / "llmctl" / "stores.yaml"
    stores.parent.mkdir()
    stores.touch(mode=0o600)
    stores.write_text("ours: {type: s3, key: k3y-abc, secret: s3cr3t}\nother: {type: s3, secret: x}\n")
    file = job(checkpoint={"uri": "ours://bucket/ckpt"})
    config = run_config(file, environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert json.loads(config.secrets["LLMCTL_STORES"]) == {
        "ours": {"type": "s3", "key": "k3y-abc", "secret": "s3cr3t"}
    }
    assert {"k3y-abc", "s3cr3t"} <= set(config.secrets.to_hide())
    assert "s3cr3t" not in repr(config) + json.dumps(job_for_record(config.job))
    assert run_config(job(), environ={"XDG_CONFIG_HOME": str(tmp_path)}).secrets == {}


@pytest.mark.parametrize("environ", [{}, {"HF_TOKEN": ""}])
def test_a_missing_secret_is_an_error(environ: dict[str, str]) -> None:
    """A secret that the shell does not have is named before anything starts."""
    with pytest.raises(ConfigError, match="the secret HF_TOKEN is not set") as caught:
        run_config(job(env={"secrets": ["HF_TOKEN"]}), environ=environ)
    assert "export HF_TOKEN" in str(caught.value.hint)


def test_what_looks_secret_is_kept_as_one() -> None:
    """A password in `set` or `pass` never reaches node.json: it becomes a secret, with a note."""
    file = job(
        env={"set": {"DB_PASSWORD": "s3cret", "MODE": "x"}, "pass": ["API_KEY", "TOKENIZERS_PARALLELISM"]}
    )
    config = run_config(file, environ={"API_KEY": "k3y", "TOKENIZERS_PARALLELISM": "0"})
    assert config.secrets == {"DB_PASSWORD": "s3cret", "API_KEY": "k3y"}
    assert config.env == {"MODE": "x", "TOKENIZERS_PARALLELISM": "0"}
    assert any("DB_PASSWORD" in note for note in config.notes)
    assert "s3cret" not in config.job.model_dump_json()


def test_an_unset_pass_that_looks_secret_is_skipped() -> None:
    """`pass` means: if the shell has it; a secret-looking name is no exception."""
    assert run_config(job(env={"pass": ["WANDB_API_KEY"]})).secrets == {}


def test_the_recorded_job_has_names_only_and_loads_back() -> None:
    """The record is a valid job without one secret value, even for a job that was never resolved."""
    file = job(env={"set": {"HF_TOKEN": "hf_abc", "A": "1"}, "secrets": ["B_KEY"]}, recipe={"steps": 5})
    record = job_for_record(file)
    assert "hf_abc" not in json.dumps(record)
    assert record["env"] == {"set": {"A": "1"}, "pass": [], "secrets": ["B_KEY", "HF_TOKEN"]}
    assert JobFile.model_validate(record).recipe.steps == 5


@pytest.mark.parametrize("section", ["set", "pass", "secrets"])
def test_what_the_launch_sets_is_refused(section: str) -> None:
    """A job can't set RANK or LLMCTL_RUN_ID: it could not work."""
    values: object = {"RANK": "0"} if section == "set" else ["RANK"]
    with pytest.raises(ConfigError, match=f"`env.{section}` has RANK"):
        run_config(job(env={section: values}), environ={"RANK": "0"})


def test_the_recipe_needs_data() -> None:
    """Without a script and without data there is nothing to train on; the hint says how to make some."""
    with pytest.raises(ConfigError, match=r"needs `data\.uri`") as caught:
        run_config(job(data=None))
    assert "llmctl data shard" in str(caught.value.hint)


def test_arguments_need_a_script() -> None:
    """Arguments that nobody would read are refused, not dropped."""
    with pytest.raises(ConfigError, match=r"arguments without `train\.script`"):
        run_config(job(), script_args=("--lr", "1"))


def test_script_arguments_are_added(tree: Path) -> None:
    """What stands after `--` follows the file's own arguments, untouched."""
    file = script_job(train={"script": "train.py", "args": ["--a"]})
    assert run_config(file, tree, script_args=("--b", "1 2")).job.train.args == ["--a", "--b", "1 2"]


@pytest.mark.parametrize(
    ("script", "expected", "hint"),
    [
        ("trian.py", "script trian.py does not exist in ", "did you mean train.py?"),
        ("finetune.py", "does not exist in ", "did you mean pkg/finetune.py?"),
        ("pkg", "script pkg is a folder", None),
        ("../train.py", "is outside", None),
        ("/etc/passwd", "is outside", None),
    ],
)
def test_a_script_must_be_in_what_is_pushed(tree: Path, script: str, expected: str, hint: str | None) -> None:
    """A script that the hosts would not have is refused here, with the nearest file that they would have."""
    with pytest.raises(ConfigError, match=expected) as caught:
        run_config(script_job(train={"script": script}), tree)
    assert hint is None or caught.value.hint == hint


def test_a_script_needs_code(tree: Path) -> None:
    """`train.script` without `code` pushes nothing; the hint is the line to add."""
    with pytest.raises(ConfigError, match="needs `code`"):
        run_config(script_job(code=None), tree)
    with pytest.raises(ConfigError, match="is not a folder"):
        run_config(script_job(code={"path": "nope"}), tree)


def test_a_script_may_have_a_recipe(tree: Path) -> None:
    """A script that trains by `worker.prepare` is given settings; one that names none is not."""
    assert run_config(script_job(recipe={"steps": 5}), tree).job.script_has_recipe
    assert run_config(script_job(parallel={"tp": 2}), tree).job.script_has_recipe
    assert not run_config(script_job(), tree).job.script_has_recipe


def test_relative_uris_become_absolute(tmp_path: Path) -> None:
    """The job's folder means nothing on a host: plain paths become absolute, URIs and `~` stay."""
    config = run_config(job(data={"uri": "shards"}, checkpoint={"uri": "s3://b/c"}), tmp_path)
    assert config.job.data is not None
    assert config.job.data.uri == str(tmp_path / "shards")
    assert config.job.checkpoint.uri == "s3://b/c"


def test_the_uris_of_a_mixture_are_checked_like_one(tmp_path: Path) -> None:
    """Each relative path becomes absolute, a password is refused by its place, weights stay."""
    mix = [{"uri": "a", "weight": 2}, {"uri": "s3://b/c"}]
    config = run_config(job(data={"mix": mix}), tmp_path)
    assert config.job.data is not None
    assert [(entry.uri, entry.weight) for entry in config.job.data.corpora] == [
        (str(tmp_path / "a"), 2),
        ("s3://b/c", 1),
    ]
    with pytest.raises(ConfigError, match=r"`data\.mix\[1\]\.uri` has a password in it"):
        run_config(job(data={"mix": [{"uri": "a"}, {"uri": "s3://k:p@h/x"}]}))


@pytest.mark.parametrize("data", [{}, {"mix": []}, {"uri": "a", "mix": [{"uri": "b"}]}])
def test_data_names_one_corpus_or_a_mixture(tmp_path: Path, data: dict[str, object]) -> None:
    """Neither or both can't mean anything; the error says what is needed."""
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({"version": 1, "name": "demo", "data": data}))
    with pytest.raises(ConfigError, match=r"`data`: needs `uri`, or `mix`"):
        load_job(path)


@pytest.mark.parametrize("uri", ["s3://key:pass@host/b", "simplecache::ftp://u:p@h/x"])
def test_a_password_in_a_uri_is_refused(uri: str) -> None:
    """URIs are stored and shown, so a password in one is refused without repeating it."""
    with pytest.raises(ConfigError, match=r"`data\.uri` has a password in it") as caught:
        run_config(job(data={"uri": uri}))
    assert "pass@" not in str(caught.value) + str(caught.value.hint)


def test_load_job_reports_the_file(tmp_path: Path) -> None:
    """The two halves meet: a file on disk, its path and line in the message."""
    (tmp_path / "job.yaml").write_text("version: 1\nname: demo\nnodes: two\n")
    with pytest.raises(ConfigError, match=r"job.yaml:3: `nodes` must be a whole number"):
        load_job(tmp_path / "job.yaml")


def test_a_secret_that_is_written_empty_stays_empty() -> None:
    """`env.set: {MY_API_KEY: ""}` sends the empty text, never the operator's own key."""
    config = run_config(job(env={"set": {"MY_API_KEY": ""}}), environ={"MY_API_KEY": "mine"})
    assert config.secrets == {"MY_API_KEY": ""}


@pytest.mark.parametrize("name", ["PGPASSWORD", "GH_PAT", "SENTRY_DSN", "HTTP_AUTH", "MYTOKEN", "hf_token"])
def test_names_of_secrets(name: str) -> None:
    """Secrets are known by a word of their name or by how a word ends."""
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["DATABASE_URL", "MAX_TOKENS", "PATH", "TOKENIZERS_PARALLELISM", "PATTERN"])
def test_names_of_no_secrets(name: str) -> None:
    """A word that only begins like a secret's is none."""
    assert not looks_secret(name)


@pytest.mark.parametrize("code", [".", "..", "pkg/.."])
def test_a_secret_in_a_file_that_is_pushed_is_refused(tree: Path, code: str) -> None:
    """A job.yaml inside `code.path` is copied to every host, and the value with it."""
    script = "train.py" if code != ".." else f"{tree.name}/train.py"
    file = script_job(code={"path": code}, train={"script": script}, env={"set": {"HF_TOKEN": "hf_abc"}})
    with pytest.raises(ConfigError, match="HF_TOKEN stands in the job file") as caught:
        run_config(file, tree)
    assert "env.secrets" in str(caught.value.hint)
    assert "hf_abc" not in str(caught.value)


def test_a_secret_that_no_push_carries_is_taken(tree: Path) -> None:
    """From `--env`, or in a job file outside `code.path`, a secret's value is sent as one."""
    assert run_config(script_job(), tree, env={"HF_TOKEN": "x"}).secrets == {"HF_TOKEN": "x"}
    (tree / "pkg/train.py").touch()
    outside = script_job(code={"path": "pkg"}, env={"set": {"HF_TOKEN": "y"}})
    assert run_config(outside, tree).secrets == {"HF_TOKEN": "y"}


def test_a_home_of_nobody_is_told(tree: Path) -> None:
    """`~nouser` in `code.path` is the user's mistake, not a crash."""
    with pytest.raises(ConfigError, match="no home folder is known for ~no-such-user"):
        run_config(script_job(code={"path": "~no-such-user/x"}), tree)


def test_odd_scripts_get_no_odd_suggestion(tree: Path) -> None:
    """A folder is not answered with some file's name, and an empty script is called empty."""
    (tree / "train").mkdir()
    with pytest.raises(ConfigError, match="script train is a folder") as caught:
        run_config(script_job(train={"script": "train"}), tree)
    assert caught.value.hint is None
    with pytest.raises(ConfigError, match=r"`train\.script` is empty"):
        run_config(script_job(train={"script": ""}), tree)


def test_how_checkpoints_are_saved_reaches_the_ranks() -> None:
    """Every key of `checkpoint`, `async` by that name, is in the recipe's settings and in the record."""
    given = {
        "every": 7,
        "keep": 2,
        "keep_every": 50,
        "async": False,
        "on_failure": "stop",
        "verify_upload": False,
    }
    made = job(checkpoint=given)
    spec = recipe_spec(made)
    assert (spec.checkpoint_every, spec.keep, spec.keep_every) == (7, 2, 50)
    assert (spec.checkpoint_async, spec.checkpoint_on_failure, spec.verify_upload) == (False, "stop", False)
    assert job_for_record(made)["checkpoint"] == given
    assert recipe_spec(job()).checkpoint_async
