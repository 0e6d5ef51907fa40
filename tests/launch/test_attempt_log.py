"""The diary: attempts, reasons, and when another attempt is worth it."""

from __future__ import annotations

import pytest

from launch import attempt_log
from launch.address import PORTS, find_address, find_port


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path / "run" / "launch"


def reach(folder, step):
    (folder.parent / "latest").write_text(f"checkpoints/step_{step:08d}\n")


def test_first_line_is_where_ranks_meet(folder, capsys) -> None:
    attempt_log.main(["begin", str(folder)])
    address, port = capsys.readouterr().out.strip().split(":")
    assert address == find_address()
    assert int(port) in PORTS


def test_jobs_start_from_different_ports() -> None:
    assert len({find_port(job) for job in range(100, 200)}) == 100


def test_unknown_interface_is_named() -> None:
    assert find_address("lo") == "127.0.0.1"
    with pytest.raises(ValueError, match=r"cluster.interface=ib9 .* interfaces: .*lo"):
        find_address("ib9")


@pytest.mark.parametrize(("status", "code"), [(0, 0), (2, 2), (75, 75), (79, 75), (137, 75)])
def test_what_comes_after(folder, status: int, code: int) -> None:
    attempt_log.begin(folder)
    assert attempt_log.end(folder, status, retries=3) == code
    assert attempt_log.read(folder)[-1]["again"] == (code == 75)


def test_gives_up_without_progress(folder) -> None:
    codes = []
    for _ in range(4):
        attempt_log.begin(folder)
        codes.append(attempt_log.end(folder, 79, retries=3))
    assert codes == [75, 75, 75, 79]


def test_progress_earns_new_attempts(folder) -> None:
    for step in range(10, 60, 10):
        attempt_log.begin(folder)
        reach(folder, step)
        assert attempt_log.end(folder, 79, retries=1) == 75
    attempt_log.begin(folder)
    assert attempt_log.end(folder, 79, retries=1) == 75
    attempt_log.begin(folder)
    assert attempt_log.end(folder, 79, retries=1) == 79


def test_a_stop_that_leaves_no_time_for_a_step_is_no_progress(folder) -> None:
    codes = []
    for step in (10, 20, 20, 20):
        attempt_log.begin(folder)
        reach(folder, step)
        codes.append(attempt_log.end(folder, 75, retries=1))
    assert codes == [75, 75, 75, 2]
    assert "cluster.time" in attempt_log.read(folder)[-1]["reason"]


def test_no_place_to_meet_is_a_mistake(folder, capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        attempt_log.main(["begin", str(folder), "--interface", "ib9"])
    assert exit_info.value.code == 2
    assert "cluster.interface=ib9 has no IPv4 address" in capsys.readouterr().err
    assert attempt_log.read(folder)[-1]["status"] == 2


def test_half_a_line_is_passed_over(folder) -> None:
    attempt_log.begin(folder)
    with (folder / attempt_log.FILE).open("a") as file:
        file.write('{"event": "en\n')
    attempt_log.begin(folder)
    assert [line["event"] for line in attempt_log.read(folder)] == ["begin", "end", "begin"]


@pytest.mark.parametrize(
    ("status", "reason"), [(137, "killed by SIGKILL"), (3, "ended with status")]
)
def test_reasons(folder, status: int, reason: str) -> None:
    attempt_log.begin(folder)
    attempt_log.end(folder, status, 0)
    assert reason in attempt_log.read(folder)[-1]["reason"]


def test_an_attempt_without_an_end_is_explained(folder) -> None:
    attempt_log.begin(folder)
    attempt_log.begin(folder)
    events = [line["event"] for line in attempt_log.read(folder)]
    assert events == ["begin", "end", "begin"]
    end, begin = attempt_log.read(folder)[1:]
    assert "node failure" in end["reason"]
    assert begin["attempt"] == 2
    assert begin["waited"] is not None
