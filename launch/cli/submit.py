"""`lola-ds submit`: one command from configuration to a finished job."""

from __future__ import annotations

from collections.abc import Sequence

from lola_ds.cli.common import make_parser, parse_arguments

HELP = """Submits a training, sweep or pipeline to Slurm, or runs it here.

Takes the overrides of `lola-ds train`, and those of cluster, compute and pipeline. A job saves and
stops before its time limit and is requeued until the training is complete; after the loss of a
rank or node it resumes from the newest checkpoint. The same command submits again what is neither
done nor queued; another compute.nodes= resumes on another number of nodes. Several values of one
key make an array with one run each, in RUN/<override>.

flags:
  --dry-run   print the batch script (RUN/launch/job.sh) and do nothing else
  --local     run here, without Slurm

keys (all others are those of `lola-ds train`):
  cluster=NAME          partition, account, time, containers, …: configs/cluster/NAME.yaml
  cluster.KEY=VALUE     one of its values, such as cluster.time=02:00:00
  compute.nodes=1       the number of nodes
  compute.gpus=1        GPUs per node, with one rank each
  pipeline=paper        all stages of configs/pipeline/paper.yaml, each after those it needs
  pipeline.KEY=VALUE    one of its values; root and source are required

examples:
  lola-ds submit task=autoencoder dataset=euler_periodic data=SHARDS run=runs/ae \\
      cluster=h100 cluster.account=physics compute.nodes=2 compute.gpus=4
  lola-ds submit task=autoencoder data=SHARDS run=runs/ae optim.learning_rate=1e-4,3e-4 --dry-run
  lola-ds submit task=autoencoder data=SHARDS run=runs/ae compute.gpus=2 --local
  lola-ds submit pipeline=paper dataset=euler_periodic pipeline.source=WELL pipeline.root=OUT"""


def main(argv: Sequence[str]) -> None:
    """Makes and checks all jobs, then submits, runs or shows them."""
    parser = make_parser("submit", HELP)
    parser.add_argument("--dry-run", action="store_true", help="print the script, do nothing")
    parser.add_argument("--local", action="store_true", help="run here, without Slurm")
    args, overrides = parse_arguments(parser, argv)

    from launch import submission
    from launch.stages import make_stages

    config, stages = make_stages(overrides)
    if args.dry_run:
        print(submission.show(stages, config["cluster"]), end="")
    elif args.local:
        raise SystemExit(submission.run_here(stages, config["cluster"]))
    else:
        submission.submit(stages, config["cluster"])
