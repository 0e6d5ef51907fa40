"""Progress messages: where they go, and which ranks report what."""

from __future__ import annotations

import pytest
from tqdm import tqdm

from lola_ds.log import log_to_stderr, logger


@pytest.fixture(autouse=True)
def _shown() -> None:
    log_to_stderr()
    log_to_stderr()  # the second call adds no second handler


def test_a_message_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logger.info("step 3 skipped")
    logger.getChild("data").debug("a detail")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "lola-ds: step 3 skipped\n")


@pytest.mark.parametrize("rank", [0, 1])
def test_other_ranks_report_warnings_only(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    logger.info("progress")
    logger.warning("trouble")
    shown = ["lola-ds: progress"] * (rank == 0) + ["lola-ds: trouble"]
    assert capsys.readouterr().err.splitlines() == shown


def test_messages_lie_above_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=2, desc="training") as bar:
        bar.update()
        logger.info("saved")
        bar.update()
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "lola-ds: saved" in [line.strip() for line in lines]
