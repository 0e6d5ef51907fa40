"""`lola-ds logs`: what a run said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lola_ds.cli.common import fail, make_parser, parse_arguments

HELP = """Shows the end of a run's log: of a rank or of its last job.

examples:
  lola-ds logs runs/ae                  the first rank: progress, losses, errors
  lola-ds logs runs/ae --rank 3         another rank
  lola-ds logs runs/ae --job            the batch job: modules, srun, lost ranks, requeues
  lola-ds logs runs/ae --follow         go on showing what is added, until Ctrl-C"""


def main(argv: Sequence[str]) -> None:
    """Prints the last lines."""
    parser = make_parser("logs", HELP)
    parser.add_argument("--rank", type=int, default=0, help="number of the rank (default: 0)")
    parser.add_argument("--job", action="store_true", help="the batch job instead of a rank")
    parser.add_argument("--lines", type=int, default=30, help="how many (default: 30)")
    parser.add_argument("--follow", action="store_true", help="go on, until Ctrl-C")
    args, words = parse_arguments(parser, argv)
    if len(words) != 1:
        fail("expected one RUN (see lola-ds logs --help)")

    from launch.runs import follow, tail

    path = _find(Path(words[0]), args.rank, args.job)
    print(f"==> {path} <==")
    if args.follow:
        for piece in follow(path, args.lines):
            print(piece, end="", flush=True)
    for line in tail(path, args.lines):
        print(line)


def _find(run: Path, rank: int, job: bool) -> Path:
    """The file.

    Raises:
        FileNotFoundError: there is none; the message says which there are.
    """
    if job:
        from launch.job import Task

        files = Task(run.absolute(), ()).outputs()
        if not files:
            raise FileNotFoundError(f"{run}/launch holds no output of a job")
        return files[-1]
    path = run / "logs" / f"rank_{rank:05d}.log"
    if not path.is_file():
        known = [int(file.stem.removeprefix("rank_")) for file in run.glob("logs/rank_*.log")]
        there = f"ranks there: {', '.join(map(str, sorted(known)))}" if known else "try --job"
        raise FileNotFoundError(f"{path} is missing ({there})")
    return path
