"""Batch scripts: accepted by bash and shellcheck, and nothing in them is taken for code."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.job import Job, Task
from launch.script import render
from launch.stages import make_stages, override
from lola_ds.config import compose, compose_submission, expand_sweep

WORDS = ["task=autoencoder", "data=shards", "train.batch_size=64"]


@functools.cache
def cluster(*words: str) -> dict[str, Any]:
    return compose_submission(words)["cluster"]


def job(*words: str, tasks: int = 1, command: str = "train") -> Job:
    made = [Task(Path(f"/runs/{i}"), words) for i in range(tasks)]
    return Job("a job", Path("/runs/launch"), command, made, nodes=2, gpus=4)


CLUSTERS = [
    ["cluster=local"],
    ["cluster=h100", "cluster.partition=a", "cluster.account=b", "cluster.qos=c"],
    ["cluster=h100", "cluster.constraint='h100&ib'", "cluster.exclude='n[1-3,5]'"],
    ["cluster=h100", "cluster.gpu_request=gres", "cluster.interface=ib0"],
    ["cluster=h100", 'cluster.modules=[cuda/12.4,"it is"]', "+cluster.environment.A='x y'"],
    [
        "cluster=h100",
        "cluster.container=apptainer",
        "cluster.image='/i m.sif'",
        "cluster.mounts=[/a]",
    ],
    [
        "cluster=h100",
        "cluster.container=pyxis",
        "cluster.image='nvcr.io#a:1'",
        "cluster.interface=ib0",
    ],
    ["cluster.options=[--exclusive,'--comment=a \"b\"']", "cluster.at_once=2"],
]


@pytest.mark.parametrize("words", CLUSTERS)
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_bash_and_shellcheck_accept_it(
    words: list[str], tasks: int, command: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.sh"
    path.write_text(
        render(job("a=it's", 'b="$x"', tasks=tasks, command=command), cluster(*words), tmp_path)
    )
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=5))
def test_words_survive_the_shell(words: list[str]) -> None:
    script = render(job("first", *words), cluster(), Path("/tmp"))
    start, end = script.index("folder="), script.index("# The address")
    program = script[start:end] + 'printf "%s\\0" "${arguments[@]}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == ["first", *words]


@pytest.mark.parametrize(
    "value", ["a;b", "$(reboot)", "`x`", "a b", "a\\nb", 'a"b', "a'b", "a\nb", "-c 'x'"]
)
@pytest.mark.parametrize("key", ["partition", "account", "qos", "exclude", "time"])
def test_slurm_names_hold_no_code(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"cluster.{key}"):
        render(job("a=b"), {**cluster(), key: value}, Path("/tmp"))


@pytest.mark.parametrize("option", ["-A x", "x; reboot", "--a\nreboot", "#SBATCH --x", ""])
def test_options_hold_no_code(option: str) -> None:
    with pytest.raises(ValueError, match=r"cluster\.options"):
        render(job("a=b"), {**cluster(), "options": [option]}, Path("/tmp"))


def test_modules_hold_no_code(tmp_path: Path) -> None:
    """They are loaded as written, or the job ends; their functions may read unset variables."""
    names = ["gcc/12.2", "a; touch code", "$(touch code)"]
    script = render(job("a=b"), {**cluster(), "modules": names}, tmp_path)
    lines = script[script.index("set -u") : script.index("export OMP")]
    module = 'module() { echo "$UNSET$*" >> loaded; [ "$2" != missing ]; }\n'
    subprocess.run(["bash", "-c", module + lines], cwd=tmp_path, check=True)
    assert (tmp_path / "loaded").read_text().splitlines() == [f"load {name}" for name in names]
    lines = lines.replace("gcc/12.2", "missing")
    assert subprocess.run(["bash", "-c", module + lines], cwd=tmp_path, check=False).returncode == 1
    assert not (tmp_path / "code").exists()


def test_variables_and_paths_hold_no_code() -> None:
    with pytest.raises(ValueError, match="not the name of a variable"):
        render(job("a=b"), {**cluster(), "environment": {"A;reboot": "1"}}, Path("/tmp"))
    with pytest.raises(ValueError, match="control character"):
        render(job("a=b"), cluster(), Path("/tmp/a\n#SBATCH --wrap=x"))


def test_resources() -> None:
    script = render(job("a=b"), cluster("cluster=h100", "cluster.account=physics"), Path("/tmp"))
    for line in (
        "--account=physics",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=h100:4",
        "--cpus-per-task=64",
        "--signal=USR2@300",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "partition" not in script


def test_array_has_a_folder_and_words_for_each_task() -> None:
    words = [*WORDS, "run=/r/ae", "optim.learning_rate=1e-4,3e-4", "seed=0,1"]
    _, (stage,) = make_stages(words)
    folders = [task.folder.name for task in stage.job.tasks]
    assert folders[0] == "optim.learning_rate=0.0001,seed=0"
    assert len(set(folders)) == 4
    for task in stage.job.tasks:
        config = compose(task.arguments)
        assert config["run"] == str(task.folder)
        assert f"seed={config['seed']}" in config["run"]
    script = render(stage.job, cluster(), Path("/tmp"))
    assert "#SBATCH --array=0-3\n" in script
    assert "#SBATCH --array=0-3%2\n" in render(
        stage.job, cluster("cluster.at_once=2"), Path("/tmp")
    )


def test_commas_in_brackets_are_no_sweep() -> None:
    words = ["ae.hid_channels=[1,2]", "run='a,b'"]
    assert expand_sweep(words) == [words]


@pytest.mark.parametrize("run", ["/a b/c", "/it's/$x", '/"q"/a,b', "/a=b/{c}"])
def test_any_folder_survives_hydra(run: str) -> None:
    _, (stage,) = make_stages([*WORDS, override("run", run)])
    assert compose(stage.job.tasks[0].arguments)["run"] == run


def test_relative_paths_lie_where_the_cluster_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, (stage,) = make_stages([*WORDS, "run=a"])
    assert stage.job.tasks[0].folder == tmp_path / "a"
    _, (stage,) = make_stages(
        [*WORDS, "run=a", "cluster.runs=/scratch/r", "cluster.data=/scratch/d"]
    )
    config = compose(stage.job.tasks[0].arguments)
    assert (config["run"], config["data"]) == ("/scratch/r/a", "/scratch/d/shards")


def test_what_the_job_would_refuse_is_refused_now() -> None:
    with pytest.raises(ValueError, match="does not divide into 3 ranks"):
        make_stages([*WORDS, "run=a", "compute.nodes=3"])
    with pytest.raises(ValueError, match=r"unknown key 'optim\.lr'"):
        make_stages([*WORDS, "run=a", "optim.lr=1"])
    with pytest.raises(ValueError, match=r"unknown key 'cluster\.acount'"):
        make_stages([*WORDS, "run=a", "cluster.acount=x"])
    for time in ("43200", "12h", "1:2:3:4", "12:0"):
        with pytest.raises(ValueError, match=f"cluster.time={time}: write hours:minutes:seconds"):
            make_stages([*WORDS, "run=a", f"cluster.time={time}"])
    for time in ("12:00:00", "90:00", "1-12", "2-00:30", "2-00:30:00"):
        make_stages([*WORDS, "run=a", f"cluster.time={time}"])
    with pytest.raises(ValueError, match=r"cluster\.at_once=0"):
        make_stages([*WORDS, "run=a", "cluster.at_once=0"])


def test_pipeline_stages_are_in_order(tmp_path: Path) -> None:
    words = ["pipeline=paper", "dataset=euler_open", f"pipeline.root={tmp_path}/a b"]
    _, stages = make_stages([*words, "pipeline.source=well", "pipeline.tasks=4", "compute.nodes=2"])
    jobs = {stage.job.name: stage for stage in stages}
    assert list(jobs) == [
        "prepare", "autoencoder", "convert_autoencoder", "encode", "surrogate", "diffusion",
        "convert_surrogate", "convert_diffusion", "evaluate",
    ]  # fmt: skip
    assert [len(stage.job.tasks) for stage in stages] == [4, 1, 1, 3, 1, 1, 1, 1, 2]
    assert jobs["prepare"].job.tasks[3].arguments[-1] == "task=3/4"
    assert jobs["surrogate"].needs == ("encode",)
    assert (jobs["surrogate"].job.nodes, jobs["encode"].job.nodes) == (2, 1)
    training = compose(jobs["diffusion"].job.tasks[0].arguments)
    assert training["dataset"]["name"] == "euler_open"
    assert training["ae_run"] == f"{tmp_path}/a b/weights/autoencoder"
