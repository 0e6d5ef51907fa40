"""`lola-ds --help`: order, width, commands of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from lola_ds.cli import main as command


def usage(capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_commands_stand_in_the_order_of_pyproject(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = text.partition('[project.entry-points."lola_ds.commands"]\n')[2].partition("\n\n")[0]
    names = [line.split(" = ")[0] for line in section.splitlines()]
    lines = usage(capsys)
    first = lines.index("commands:") + 1
    assert [line.split()[0] for line in lines[first : first + len(names)]] == names
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]


def test_broken_command_of_another_package_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [*command.entry_points(group=command.GROUP)]
    broken = [EntryPoint(name, "no_such_package.x", command.GROUP) for name in ("another", "train")]
    monkeypatch.setattr(command, "entry_points", lambda group: [*broken, *known])
    lines = usage(capsys)
    assert "  another     broken: ModuleNotFoundError in no_such_package.x" in lines
    (line,) = (line for line in lines if line.startswith("  train "))
    assert "Trains an autoencoder" in line
    with pytest.raises(SystemExit):
        command.main(["inspect", "--help"])
