"""`lola-ds train`: one process, or all ranks under `deepspeed --module lola_ds.cli.train`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lola_ds.cli.common import exit_at_once, fail, make_parser, parse_arguments, run_command
from lola_ds.log import logger

if TYPE_CHECKING:
    from lola_ds.distributed import Ranks

HELP = """Trains an autoencoder, a surrogate or a diffusion model.

The same command again resumes.

SIGTERM, SIGUSR1 or SIGUSR2 to any rank: all finish their step, save and exit with status 75.

task=autoencoder learns to compress states; task=surrogate and task=diffusion learn to continue a
trajectory, in latent space when ae_run= names an autoencoder, else in pixel space.

keys (Hydra overrides; --print-config shows all of them with their values):
  task=autoencoder|surrogate|diffusion     what is trained
  run=FOLDER                               where config, metrics and checkpoints go
  data=SHARDS                              SHARDS/<physics>/<split>
  dataset=euler_periodic|euler_open|euler_all
  ae=… surrogate=… denoiser=…              the network
  ae_run=FOLDER                            the autoencoder of latent emulators
  deepspeed=zero0|zero1|zero2|zero3        ZeRO stage (ds_configs/*.json)
  deepspeed=zero1_offload|zero2_offload|zero3_offload   optimizer (and weights: 3) in host memory
  deepspeed=zero3_nvme deepspeed.nvme_path=FOLDER       and both on a local drive
  optim=adamw|soap|psgd|muon|schedule_free (all but adamw: deepspeed=zero0)
  optim.learning_rate=1e-4 precision=auto|bf16|fp16|fp32 tf32=true deterministic=false seed=0
  train.epochs train.epoch_size train.batch_size train.accumulation
  trajectory.length trajectory.stride trajectory.context.law
  ae.checkpointing=none|selective|n|full|offload   recompute (also surrogate., denoiser.)
  sequence_parallel=2                      ranks that share a sample's tokens (transformers)
  watch.patience watch.spike watch.timeout bad steps and hangs; profile.steps=10-15: a trace
  fork.run=FOLDER                          start from these weights
  experiment=NAME                          a preset of configs/experiment/
  'experiment=[SYSTEM,SPACE,TASK]'         a model of the paper: euler|rayleigh_benard|
                                           gravity_cooling, c64|c16|c4|pixel, the task;
  variant=lola                             as its published code has it

examples:
  lola-ds train task=autoencoder dataset=euler_periodic data=SHARDS run=runs/ae
  deepspeed --num_gpus 2 --module lola_ds.cli.train task=diffusion data=LATENTS \\
      ae_run=runs/ae run=runs/dm deepspeed=zero2
  lola-ds train task=surrogate data=SHARDS run=runs/sm --print-config"""


def main(argv: Sequence[str]) -> None:
    """Composes the configuration, trains, and returns when the configured samples are done."""
    parser = make_parser("train", HELP)
    parser.add_argument("--print-config", action="store_true", help="show the configuration, exit")
    parser.add_argument("--local_rank", type=int, help="set by the deepspeed launcher; ignored")
    args, words = parse_arguments(parser, argv)
    from lola_ds.train.stop import EXIT_STOPPED, StopRequest

    stop = StopRequest()
    if not args.print_config:
        stop.listen()  # before the slow imports: an early signal counts

    from lola_ds.config import compose, fill_deepspeed

    config = compose(words)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    ds_config = fill_deepspeed(config, world_size)
    if args.print_config:
        import yaml

        print(yaml.safe_dump({**config, "deepspeed": ds_config}, sort_keys=False), end="")
        return

    from lola_ds.distributed import leave_process_group
    from lola_ds.train.failures import LostRankError, explained
    from lola_ds.train.zero import join_process_group

    ranks = join_process_group(config["device"])
    try:
        from lola_ds.build.training import build_training
        from lola_ds.estimate.trace import count_flops

        trainer = build_training(config, ranks, stop, count_flops)
        if trainer.step >= trainer.schedule.total_steps:
            logger.info(f"{config['run']} is complete ({trainer.step} steps)")
        trainer.fit()
        if trainer.stopping:
            logger.info(f"stopped at step {trainer.step}, saved; the same command resumes")
        trainer.close()
    except Exception as error:
        told = explained(error, config["run"], lambda: _suggest(config, ranks))
        if told is error or os.environ.get("LOLA_DEBUG"):
            raise
        if isinstance(told, LostRankError):
            fail(str(told), status=1)  # retryable
        raise told from error
    finally:
        leave_process_group()
    if trainer.stopping and trainer.step < trainer.schedule.total_steps:
        raise SystemExit(EXIT_STOPPED)


def _suggest(config: dict[str, Any], ranks: Ranks) -> str:
    """The setting for the memory there is; imported only when a training runs out of it."""
    from lola_ds.estimate.search import suggest_setting

    return suggest_setting(config, ranks.device, ranks.world_size)


if __name__ == "__main__":
    exit_at_once(lambda: run_command(main, sys.argv[1:]))
