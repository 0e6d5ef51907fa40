"""`lola-ds submit`: one command from configuration to a finished job."""

from __future__ import annotations

from collections.abc import Sequence

from lola_ds.cli.common import make_parser, parse_arguments

HELP = """Submits a training, a sweep or a pipeline to Slurm, or runs it here.

The words of `lola-ds train`, and where to run: the job stops before its time limit, saved, and is
requeued until the training is complete; after a lost rank or node it goes on from the newest
checkpoint. The same command again submits what is neither done nor queued, so a run resumes on
another number of nodes by another compute.nodes=. Several values in one word make an array with
one run each, in RUN/<word>.

flags:
  --dry-run   print the batch script (which will be RUN/launch/job.sh) and do nothing
  --local     run here, without Slurm

keys, beside those of `lola-ds train`:
  cluster=NAME          partition, account, time, containers, …: configs/cluster/NAME.yaml
  cluster.KEY=VALUE     one of its values, such as cluster.time=02:00:00
  compute.nodes=1       nodes
  compute.gpus=1        GPUs, and ranks, on each
  pipeline=paper        all steps of configs/pipeline/paper.yaml, each after what it needs
  pipeline.KEY=VALUE    one of its values: root and source must be given

examples:
  lola-ds submit task=autoencoder dataset=euler_periodic data=SHARDS run=runs/ae \\
      cluster=h100 cluster.account=physics compute.nodes=2 compute.gpus=4
  lola-ds submit task=autoencoder data=SHARDS run=runs/ae optim.learning_rate=1e-4,3e-4 --dry-run
  lola-ds submit task=autoencoder data=SHARDS run=runs/ae compute.gpus=2 --local
  lola-ds submit pipeline=paper dataset=euler_periodic pipeline.source=WELL pipeline.root=OUT"""


def main(argv: Sequence[str]) -> None:
    """Plans everything, and only then submits, runs or shows it."""
    parser = make_parser("submit", HELP)
    parser.add_argument("--dry-run", action="store_true", help="print the script, do nothing")
    parser.add_argument("--local", action="store_true", help="run here, without Slurm")
    args, words = parse_arguments(parser, argv)

    from launch import submission
    from launch.stages import plan

    config, links = plan(words)
    if args.dry_run:
        print(submission.show(links, config["cluster"]), end="")
    elif args.local:
        raise SystemExit(submission.run_here(links, config["cluster"]))
    else:
        submission.submit(links, config["cluster"])
