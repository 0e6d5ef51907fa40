"""`lola-ds runs` and `lola-ds logs`, from folders as runs leave them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Timer

import pytest

from launch import attempt_log
from launch.cli import logs
from launch.cli import runs as runs_command
from launch.job import Task
from launch.runs import find_runs, follow, read_run, table


def make_run(folder: Path, *events: tuple[str, dict], step: int = 30) -> Path:
    (folder / "logs").mkdir(parents=True)
    train = "train: {epochs: 10, epoch_size: 40, batch_size: 8}\n"
    (folder / "config.yaml").write_text(train)
    lines = [{"step": s, "samples_per_second": 4.0, "train/loss": 1.0} for s in range(1, step + 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 31, "tra')
    (folder / "logs" / "rank_00000.log").write_text("fine\n10%\r20%\r30%\n")
    (folder / "logs" / "rank_00001.log").write_text("x\nRuntimeError: no more memory\nbye\n")
    for event, details in events:
        attempt_log.record(folder / "launch", event, **details)
    return folder


BEGIN = ("begin", {"attempt": 1, "job": "7", "pid": 1, "step": 0})
SUBMIT = ("submit", {"words": ["a=b"]})
END = {"job": "7", "step": 30, "reason": "x"}


@pytest.mark.parametrize(
    ("events", "step", "state"),
    [
        ([], 30, "stopped"),
        ([], 50, "complete"),
        ([SUBMIT], 0, "never started"),
        ([SUBMIT, BEGIN], 30, "lost"),
        ([BEGIN, ("end", END | {"status": 79, "again": False})], 30, "failed"),
        ([BEGIN, ("end", END | {"status": 75, "again": True})], 30, "stopped"),
        ([BEGIN, ("end", END | {"status": 0, "again": False})], 50, "complete"),
        ([("begin", {"job": "local", "pid": os.getpid(), "step": 0})], 30, "running"),
    ],
)
def test_state(events: list, step: int, state: str, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", *events, step=step), {})
    assert run.state == state
    assert run.done == 8 * step
    assert run.total == 400
    assert bool(run.error) == (state in ("failed", "lost"))


def test_queue_decides(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", SUBMIT, BEGIN)
    Task(folder, ("a=b",)).note_job("7", 1)
    assert read_run(folder, {"7": [("0", "RUNNING")]}).state == "lost"  # another task of the array
    run = read_run(folder, {"7": [("1", "RUNNING")]})
    assert run.state == "running"
    assert run.left == (400 - 240) / 4
    queue = {"7": [("0", "RUNNING"), ("1", "PENDING")]}
    assert read_run(folder, queue).state == "queued"


def test_table_and_error(tmp_path: Path) -> None:
    end = END | {"status": 79, "again": False}
    make_run(tmp_path / "a" / "ae", BEGIN, ("end", end))
    make_run(tmp_path / "b")
    folders = find_runs(tmp_path)
    text = table([read_run(folder, {}) for folder in folders], tmp_path)
    assert [line.split()[0] for line in text.splitlines()] == ["run", "a/ae", "b"]
    assert "60% of 400" in text
    assert "RuntimeError: no more memory" in text


def test_a_task_is_done_only_with_the_same_words(tmp_path: Path) -> None:
    task = Task(tmp_path, ("a=b",))
    assert not task.done()
    task.note_submission()
    attempt_log.begin(task.attempts)
    assert not task.done()
    attempt_log.end(task.attempts, 0, 0)
    assert task.done()
    assert not Task(tmp_path, ("a=c",)).done()
    task.note_submission()
    assert not task.done()


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "ae", BEGIN)
    runs_command.main([str(tmp_path)])
    assert "ae" in capsys.readouterr().out
    logs.main([str(run)])
    assert capsys.readouterr().out.splitlines()[1:] == ["fine", "30%"]
    logs.main([str(run), "--rank", "1", "--lines", "1"])
    assert capsys.readouterr().out.splitlines()[1:] == ["bye"]
    with pytest.raises(FileNotFoundError, match=r"rank_00002.log is missing \(ranks there: 0, 1\)"):
        logs.main([str(run), "--rank", "2"])
    with pytest.raises(FileNotFoundError, match="no output of a job"):
        logs.main([str(run), "--job"])


def test_follow_shows_what_is_added(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("older\nold\n")
    pieces = follow(path, 1)
    assert next(pieces) == "old\n"
    with path.open("a") as file:
        Timer(0.2, lambda: print("new", file=file, flush=True)).start()
        assert next(pieces) == "new\n"


def test_output_of_an_array_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [Task(tmp_path / name, ("a=b",)) for name in ("x", "y")]
    (tmp_path / "launch").mkdir()
    for index, task in enumerate(tasks):
        for event, details in (SUBMIT, BEGIN, ("end", END | {"status": 1})):
            attempt_log.record(task.attempts, event, **details)
        task.note_job("7", index)
        (tmp_path / "launch" / f"job_7_{index}.out").write_text(f"ValueError: {index}\n")
    assert read_run(tasks[1].folder, {}).error == "ValueError: 1"
    logs.main([str(tasks[1].folder), "--job"])
    assert "ValueError: 1" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="try --job"):
        logs.main([str(tasks[1].folder)])
