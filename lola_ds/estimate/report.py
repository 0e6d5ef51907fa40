"""What `lola-ds plan` reports: plain numbers, and the tables that are printed from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from lola_ds.estimate.settings import Setting, SettingSearch
from lola_ds.hardware import GIB

__all__ = ["make_report", "report_text"]

WORLD_SIZES = [2**n for n in range(11)]


def make_report(search: SettingSearch, steps: int, gpus: int, group: str) -> dict[str, Any]:
    """Everything that is printed, as plain numbers.

    Arguments:
        search: The search over settings.
        steps: The optimizer steps of the training.
        gpus: The number of GPUs to recommend a setting for.
        group: The configuration group of the network.
    """
    first = search.workloads[0]
    best = [search.best(world_size) for world_size in sorted({*WORLD_SIZES, gpus})]
    return {
        "parameters": first.parameters,
        "flops_per_sample": search.sequence * first.flops,
        "sequence_parallel": search.sequence,
        "activation_bytes_per_sample": {w.policy: w.sample_bytes for w in search.workloads},
        "gpus": gpus,
        "memory": list(_memory_rows(search, gpus)),
        "steps": steps,
        "scaling": [_scaling_row(setting, steps, group) for setting in best if setting is not None],
    }


def _memory_rows(search: SettingSearch, gpus: int) -> Iterator[dict[str, Any]]:
    for workload in search.workloads:
        for stage in search.stages:
            empty = search.memory(workload, stage, world_size=gpus, micro_batch=0)
            yield {
                "policy": workload.policy,
                "deepspeed": stage,
                "states": empty.on_gpu,
                "host": empty.host,
                "nvme": empty.nvme,
                "largest_micro_batch": search.largest_micro_batch(workload, stage, gpus),
            }


def _scaling_row(setting: Setting, steps: int, group: str) -> dict[str, Any]:
    days = steps * setting.seconds * setting.world_size / 86400
    return {
        **asdict(setting),
        "peak": setting.memory.on_gpu,
        "gpu_days": days,
        "overrides": setting.overrides(group),
    }


def report_text(
    report: dict[str, Any],
    search: SettingSearch,
    *,
    shape: Sequence[int],
    group: str,
    gpu: str,
    network: str,
) -> str:
    """The report as text.

    Arguments:
        report: The numbers, as returned by `make_report`.
        search: The search that they come from.
        shape: The shape of a frame, :math:`(C, *S)`.
        group: The configuration group of the network.
        gpu: The name of the GPU.
        network: The name of the network between nodes.
    """
    sections = (
        _network_lines(report, shape, group),
        _memory_lines(report, search, gpu),
        _scaling_lines(report, search, network),
        _recommendation(report, search),
    )
    return "\n\n".join(sections)


def _network_lines(report: dict[str, Any], shape: Sequence[int], group: str) -> str:
    frame = "×".join(map(str, shape))
    sharing = report["sequence_parallel"]
    shared = f", on each of {sharing} GPUs that share it" if sharing > 1 else ""
    activations = report["activation_bytes_per_sample"].items()
    parts = ", ".join(f"{policy} {size / GIB:.3f}" for policy, size in activations)
    return (
        f"network       {group}, frames of {frame}, {report['parameters'] / 1e6:.1f} M parameters\n"
        f"compute       {report['flops_per_sample'] / 1e9:.1f} GFLOP per sample, forward and "
        f"backward\nactivations   GiB per sample{shared}: {parts}"
    )


def _memory_lines(report: dict[str, Any], search: SettingSearch, gpu: str) -> str:
    rows = pd.DataFrame(report["memory"])
    policies = [workload.policy for workload in search.workloads]
    table = rows.pivot(index="deepspeed", columns="policy", values="largest_micro_batch")[policies]
    states = rows[rows["policy"] == policies[0]].set_index("deepspeed")
    sizes = states[["states", "host", "nvme"]] / GIB
    sizes.columns = ["GPU", "host", "NVMe"]
    table = sizes.join(table).loc[list(search.stages)]
    return (
        f"{report['gpus']} × {gpu} of {search.gpu.memory:.0f} GiB: GiB of states on the GPU, in "
        "host memory and on NVMe;\nthe largest micro-batch under each checkpointing policy\n"
        + table.rename_axis(None).to_string(float_format="{:.1f}".format)
    )


def _scaling_lines(report: dict[str, Any], search: SettingSearch, network: str) -> str:
    title = f"{report['steps']} steps of {search.batch_size} samples, {network} between nodes\n"
    rows = pd.DataFrame(report["scaling"])
    if rows.empty:
        return title + "no setting fits"
    table = pd.DataFrame(
        {
            "GPUs": rows["world_size"],
            "deepspeed": rows["deepspeed"],
            "checkpointing": rows["policy"],
            "micro-batch": rows["micro_batch"],
            "passes": rows["accumulation"],
            "GiB": (rows["peak"] / GIB).map("{:.1f}".format),
            "sent GB": (rows["comm_bytes"] / 1e9).map("{:.2f}".format),
            "ms/step": (1e3 * rows["seconds"]).map("{:.1f}".format),
            "samples/s": (search.batch_size / rows["seconds"]).map("{:.1f}".format),
            "days": (rows["gpu_days"] / rows["world_size"]).map("{:.2f}".format),
            "GPU-days": rows["gpu_days"].map("{:.2f}".format),
        }
    )
    return title + table.to_string(index=False)


def _recommendation(report: dict[str, Any], search: SettingSearch) -> str:
    gpus = report["gpus"]
    groups = gpus // search.sequence
    if search.batch_size % groups:
        return (
            f"train.batch_size={search.batch_size} does not divide over {groups} ranks; choose a "
            f"multiple of {groups}"
        )
    for row in report["scaling"]:
        if row["world_size"] == gpus:
            return f"for {gpus} GPUs: {row['overrides']}"
    return (
        f"no setting fits: one sample needs more memory than {gpus} GPUs have; choose larger ones"
    )
