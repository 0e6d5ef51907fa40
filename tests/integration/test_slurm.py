"""From `lola-ds submit` to the finished run, on a real Slurm of several nodes on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ranks import ROOT, run_ranks
from reading import assert_same_bits, metrics
from slurm import Slurm, missing_programs, start_slurm
from words import overrides

from launch import attempt_log
from launch.cli import submit as submit_command
from launch.runs import find_runs, read_run
from lola_ds.train.checkpoint.export import find_checkpoint

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(missing_programs()), reason=f"no Slurm: {missing_programs()}"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with start_slurm(tmp_path_factory.mktemp("slurm"), nodes=4) as slurm:
        slurm.env |= {"DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "default"}
        yield slurm


@pytest.fixture
def slurm(cluster: Slurm) -> Iterator[Slurm]:
    """The cluster with every node up; afterwards no job and no process of ours is left."""
    cluster.resume()
    yield cluster
    cluster.run("scancel", "--user=root" if os.getuid() == 0 else f"--user={os.getlogin()}")
    cluster.resume()
    deadline = time.monotonic() + 60
    while left := our_processes():
        assert time.monotonic() < deadline, f"processes are left: {left}"
        time.sleep(0.5)


def our_processes() -> list[str]:
    """Command lines of wrappers, launchers and ranks on this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "launch.node" in line or "launch.rank" in line:
            found.append(line)
    return found


def lola(slurm: Slurm, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "lola_ds.cli.main", *words],
        env=slurm.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def submit(slurm: Slurm, *words: str) -> list[str]:
    """Submits; returns the numbers of the new jobs."""
    said = lola(slurm, "submit", "cluster.time=00:10:00", *words).stderr
    lines = [line for line in said.splitlines() if ": job " in line]
    return [line.rpartition(": job ")[2].split(",")[0] for line in lines]


def output(run: Path) -> str:
    """Everything that jobs and ranks of a run said."""
    files = [*run.glob("launch/job_*.out"), *run.glob("logs/*.log")]
    return "\n".join(f"==> {file}\n{file.read_text(errors='replace')}" for file in files)


def wait_for_steps(run: Path, steps: int, timeout: float = 300) -> None:
    path, deadline = run / "metrics.jsonl", time.monotonic() + timeout
    while not path.is_file() or path.read_text().count("train/loss") < steps:
        assert time.monotonic() < deadline, output(run)
        time.sleep(0.05)


def complete(slurm: Slurm, job: str, run: Path, timeout: float = 600) -> dict[str, str]:
    found = slurm.wait(job, timeout)
    assert found["JobState"] == "COMPLETED", output(run)
    return found


def ranks_of(run: Path) -> list[psutil.Process]:
    """The processes of a run's ranks."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line[2:4] == ["-m", "launch.rank"] and f"run={run}" in line:
            found.append(process)
    return found


def test_two_nodes_train_like_one_machine(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    """Submitted twice: the second time there is nothing to do."""
    run, local = tmp_path / 'it\'s #1; "$HOME" `a` & 100% é', tmp_path / "local"
    words = ["deepspeed=zero2", "train.epochs=2", "wandb.mode=offline"]
    quoted = [w for w in overrides("autoencoder", shards, run, *words) if not w.startswith("run=")]
    quoted.append("run='" + str(run).replace("'", "\\'") + "'")
    (job,) = submit(slurm, *quoted, "compute.nodes=2")
    run_ranks(["-m", "lola_ds.cli.train", *overrides("autoencoder", shards, local, *words)], 2)
    complete(slurm, job, run)
    assert_same_bits(run, local)
    assert "world_size 2" in (run / "environment.txt").read_text()
    assert [line["event"] for line in attempt_log.read(run / "launch")] == [
        "submit",
        "begin",
        "end",
    ]
    assert len(list(run.glob("logs/rank_*.log"))) == 2
    assert submit(slurm, *quoted, "compute.nodes=2") == []
    assert "complete" in lola(slurm, "runs", str(tmp_path)).stdout
    assert "autoencoder: 100%" in lola(slurm, "logs", str(run)).stdout


PIPELINE = ["pipeline=paper", "dataset=euler_open", "pipeline.source=/well"]


@pytest.mark.parametrize(
    ("scripts", "words"),
    [
        (1, ["compute.nodes=4", "compute.gpus=2", "cluster.at_once=1"]),
        (1, ["cluster=h100", "cluster.gpu_type=null", "cluster.cpus_per_gpu=2"]),
        (1, ["cluster.gpu_request=gres", "cluster.exclude='node[2-3]'", "cluster.time=1-00"]),
        (1, ["cluster.account=physics", "cluster.signal=USR1", "cluster.partition=main"]),
        (1, ["cluster.options=[--exclusive,'--comment=it\\'s \"this\"']", "cluster.memory=1G"]),
        (9, ["pipeline.root='/out put'", "compute.nodes=2", "cluster.account=physics"]),
    ],
)
def test_sbatch_accepts_every_script(
    scripts: int,
    words: list[str],
    slurm: Slurm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = overrides("autoencoder", tmp_path / "shards", tmp_path / "run", "seed=0,1")
    submit_command.main(["--dry-run", *(training if scripts == 1 else PIPELINE), *words])
    found = ["#!" + script for script in capsys.readouterr().out.split("#!")[1:]]
    assert len(found) == scripts
    for script in found:
        path = tmp_path / "job.sh"
        path.write_text(script)
        slurm.run("sbatch", "--test-only", str(path))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_four_nodes(stage: str, slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    run, local = tmp_path / "run", tmp_path / "local"
    words = [f"deepspeed={stage}", "train.epochs=2", "ae.dropout=null"]
    (job,) = submit(slurm, *overrides("autoencoder", shards, run, *words), "compute.nodes=4")
    complete(slurm, job, run)
    run_ranks(["-m", "lola_ds.cli.train", *overrides("autoencoder", shards, local, *words)], 1)
    for name in ("train/loss", "valid/loss"):
        assert metrics(run, name) == pytest.approx(metrics(local, name), rel=1e-5)


@pytest.mark.slow
def test_warning_saves_requeues_and_finishes(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    """Two ranks on each of two nodes; bit-equal to a run that nobody has disturbed."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    more = ["deepspeed=zero2", "train.epochs=30", "checkpoint.every=30"]  # no other checkpoint
    words = overrides("autoencoder", shards, run, *more, "wandb.mode=offline")
    (job,) = submit(slurm, *words, "compute.nodes=2", "compute.gpus=2")
    wait_for_steps(run, 5)
    slurm.run("scancel", "--signal=USR2", job)
    slurm.restart(job)
    stopped = attempt_log.read(run / "launch")[2]
    assert stopped["status"] == 75
    assert 5 <= stopped["step"] < 150
    assert int(complete(slurm, job, run)["Restarts"]) == 1
    run_ranks(["-m", "lola_ds.cli.train", *overrides("autoencoder", shards, whole, *more)], 4)
    assert_same_bits(run, whole)
    ends = [line["reason"] for line in attempt_log.read(run / "launch") if line["event"] == "end"]
    assert ends == ["stopped on request and saved", "finished"]
    tracked = [path.name.rpartition("-")[2] for path in run.glob("wandb/offline-run-*")]
    assert tracked == [(run / "wandb" / "id").read_text().strip()] * 2


@pytest.mark.slow
def test_slurm_warns_before_the_limit(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    """Slurm's own --signal, which comes up to a minute early: saved, and the job is requeued."""
    run = tmp_path / "run"
    words = overrides("surrogate", shards, run, "train.epochs=4000", "checkpoint.every=4000")
    (job,) = submit(slurm, *words, "cluster.time=00:04:00", "cluster.warning=180")
    slurm.wait(job, 60, "RUNNING")
    slurm.wait(job, 300, "PENDING")
    end = attempt_log.read(run / "launch")[-1]
    assert end["status"] == 75
    assert find_checkpoint(run).state["step"] == end["step"] == len(metrics(run, "train/loss"))


@pytest.mark.slow
def test_requeue_that_is_refused_is_no_success(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = overrides("surrogate", shards, run, "train.epochs=60")
    (job,) = submit(slurm, *words)
    wait_for_steps(run, 5)
    slurm.run("scontrol", "update", f"jobid={job}", "requeue=0")
    slurm.run("scancel", "--signal=USR2", job)
    assert slurm.wait(job, 200)["ExitCode"] == "75:0"
    assert "submit it again" in lola(slurm, "logs", str(run), "--job").stdout
    (job,) = submit(slurm, *words)
    complete(slurm, job, run)
    assert len(metrics(run, "train/loss")) == 300


@pytest.mark.slow
def test_mistake_is_made_once(slurm: Slurm, tmp_path: Path) -> None:
    """Both nodes find it, though srun would end the other one as soon as the first has failed."""
    run = tmp_path / "run"
    (job,) = submit(slurm, *overrides("surrogate", tmp_path / "none", run), "compute.nodes=2")
    assert slurm.wait(job, 300)["ExitCode"] == "2:0", output(run)
    assert [line["event"] for line in attempt_log.read(run / "launch")] == [
        "submit",
        "begin",
        "end",
    ]
    assert "does not exist" in read_run(run, {}).error, output(run)


@pytest.mark.slow
def test_lost_node_is_replaced(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = overrides("surrogate", shards, run, "train.epochs=60", "checkpoint.every=1")
    (job,) = submit(slurm, *words, "compute.nodes=2")
    wait_for_steps(run, 12)
    nodes = slurm.job(job)["NodeList"]
    assert nodes == "node[1-2]"
    slurm.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    slurm.restart(job)
    found = complete(slurm, job, run)
    assert "node2" not in found["NodeList"]
    assert int(found["Restarts"]) == 1
    assert len(metrics(run, "train/loss")) == 300
    assert "node failure" in " ".join(
        line["reason"] for line in attempt_log.read(run / "launch") if line["event"] == "end"
    )


def pick_rank(run: Path) -> list[psutil.Process]:
    return ranks_of(run)[-1:]


def pick_launcher(run: Path) -> list[psutil.Process]:
    return [process.parent() for process in pick_rank(run)]  # type: ignore[misc]


def pick_runner(run: Path) -> list[psutil.Process]:
    return [process.parent() for process in pick_launcher(run)]  # type: ignore[misc]


def pick_wrapper(run: Path) -> list[psutil.Process]:
    return [process.parent() for process in pick_runner(run)]  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pick", "retries"),
    [(pick_rank, 3), (pick_launcher, 0), (pick_runner, 0), (pick_wrapper, 0)],
)
def test_killed_process_fails_fast(
    pick: Callable[[Path], list[psutil.Process]],
    retries: int,
    slurm: Slurm,
    shards: Path,
    tmp_path: Path,
) -> None:
    """SIGKILL: the job step fails within a minute, nothing survives, and the job is requeued."""
    run = tmp_path / "run"
    words = overrides("surrogate", shards, run, "train.epochs=60")
    more = [f"cluster.retries={retries}", "compute.nodes=2"]
    (job,) = submit(slurm, *words, *more)
    wait_for_steps(run, 12)
    doomed = pick(run)
    assert doomed
    start = time.monotonic()
    for process in doomed:
        process.kill()
    found = slurm.wait(job, 60, "FAILED" if retries == 0 else "PENDING")
    assert time.monotonic() - start < 60
    assert attempt_log.read(run / "launch")[-1]["status"] not in (0, 75)
    deadline = time.monotonic() + 10
    while our_processes():
        assert time.monotonic() < deadline, our_processes()
        time.sleep(0.2)
    if retries == 0:
        assert found["ExitCode"] != "0:0"
        assert read_run(run, {}).state == "failed"
    else:
        slurm.restart(job)
        complete(slurm, job, run)
        assert len(metrics(run, "train/loss")) == 300


@pytest.mark.slow
def test_two_jobs_share_a_node(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    jobs = [
        submit(slurm, *overrides("surrogate", shards, run), "cluster.exclude='node[3-4]'",
               "compute.nodes=2", "compute.gpus=2")[0]
        for run in runs
    ]  # fmt: skip
    for job, run in zip(jobs, runs):
        assert complete(slurm, job, run)["NodeList"] == "node[1-2]"
    assert metrics(runs[0], "train/loss") == metrics(runs[1], "train/loss")


@pytest.mark.slow
def test_sweep_and_elastic_resume(slurm: Slurm, shards: Path, tmp_path: Path) -> None:
    """An array of two; both cancelled, and resumed on twice the nodes where they had saved."""
    base = tmp_path / "sweep"
    more = ["train.epochs=60", "checkpoint.every=60", "seed=0,1"]
    words = overrides("surrogate", shards, base, *more)
    (job,) = submit(slurm, *words, "cluster.retries=0", "compute.nodes=1")
    runs = [base / "seed=0", base / "seed=1"]
    for run in runs:
        wait_for_steps(run, 12)
    slurm.run("scancel", job)
    slurm.wait(job, 200)
    before = [find_checkpoint(run).state["step"] for run in runs]
    (job,) = submit(slurm, *words, "compute.nodes=2")
    slurm.wait(job, 900)
    for run, step in zip(runs, before):
        assert 0 < step < 300
        assert len(metrics(run, "train/loss")) == 300, output(run)
        assert "world_size 2" in (run / "environment.txt").read_text()
        assert read_run(run, {}).state == "complete"
    assert submit(slurm, *words, "compute.nodes=2") == []
    assert len(find_runs(base)) == 2


def make_well(root: Path) -> None:
    words = ["dataset=euler_periodic", f"out={root}", "resolution=16", "trajectories=16", "steps=9"]
    done = subprocess.run(
        [sys.executable, "-m", "lola_ds.cli.main", "synthesize", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pipeline(slurm: Slurm, tmp_path: Path) -> None:
    """Fails at the autoencoder and stops; goes on when told better; then has nothing left to do."""
    well, root = tmp_path / "well", tmp_path / "out put"
    make_well(well)
    small = [
        w
        for w in overrides("autoencoder", well, root)
        if not w.startswith(("task=", "data=", "run="))
    ]
    sizes = ["hid_channels=16", "hid_blocks=1", "patch_size=[1,1,1]", "attention_heads=2"]
    latent = [f"{group}.{word}" for group in ("surrogate", "denoiser") for word in sizes]
    words = [
        "pipeline=paper", "dataset=euler_periodic", f"pipeline.source={well}",
        f"pipeline.root='{root}'", "pipeline.tasks=2", "pipeline.repeat=2",
        'pipeline.evaluate=["members=2","steps=2"]', "cluster.retries=0",
        *small, *latent, "train.epochs=1",
    ]  # fmt: skip
    jobs = submit(slurm, *words, 'pipeline.autoencoder=["optim.learning_rate=1e9"]')
    assert len(jobs) == 9
    for job in jobs:
        slurm.wait(job, 600)
    assert slurm.states(jobs[1]) == ["FAILED"]
    assert {state for job in jobs[2:] for state in slurm.states(job)} == {"CANCELLED"}
    shutil.rmtree(root / "runs" / "autoencoder")

    jobs = submit(slurm, *words)
    assert len(jobs) == 8  # the shards are there
    for job in jobs:
        slurm.wait(job, 600)
        assert set(slurm.states(job)) == {"COMPLETED"}, output(root / "runs" / "autoencoder")
    for name in ("surrogate", "diffusion"):
        (summary,) = (root / "results" / name).glob("*/summary.json")
        assert json.loads(summary.read_text())
    assert submit(slurm, *words) == []


@pytest.mark.slow
def test_shard_array_survives_a_kill(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight tasks, one killed; run again, the bytes are those of a single process."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "data_prep"))
    from well_files import write_well

    well, root = tmp_path / "well", tmp_path / "array"
    for i in range(11):
        write_well(well / "toy" / "data" / "train" / f"toy_{i:02d}.hdf5", seed=i)
    words = ["pipeline=prepare", "dataset=toy", f"pipeline.source={well}", "cluster.retries=0"]
    words += [f"pipeline.root={root}", "cluster.gpu_request=none"]
    (job,) = submit(slurm, *words)
    kill_task("task=3/8")
    slurm.wait(job, 600)
    assert sorted(slurm.states(job)) == ["COMPLETED"] * 7 + ["FAILED"]
    assert not (root / "shards" / "toy" / "train").exists()
    (job,) = submit(slurm, *words)
    slurm.wait(job, 600)
    assert slurm.states(job) == ["COMPLETED"]  # one task only
    single = tmp_path / "single"
    lola(slurm, "shard", "dataset=toy", f"source={well}", f"out={single}", "workers=1")
    assert files_of(root / "shards") == files_of(single)


def kill_task(word: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if word in line and "lola_ds.cli.main" in line and line[0] == sys.executable:
                process.kill()
                return
        time.sleep(0.01)
    raise AssertionError(f"no process with {word} came")
