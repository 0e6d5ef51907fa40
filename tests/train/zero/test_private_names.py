"""The names of DeepSpeed's internals that `lola_ds.train.zero` relies on.

DeepSpeed documents none of them, so a new version may rename or remove any.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import run_ranks

import lola_ds.train.zero

WORKER = Path(__file__).with_name("private_names_worker.py")
# The names by the stage of an engine that has them; `optimizer` is the engine's.
PRIVATE = {
    "0": [
        "deepspeed.utils.set_z3_leaf_modules",
        "engine.optimizer",
        "engine.zero_optimization_stage",
        "engine.zero_use_cpu_optimizer",
    ],
    "2": [
        "optimizer.optimizer",
        "optimizer.override_loss_scale",
        "optimizer.averaged_gradients",
        "optimizer.single_partition_of_fp32_groups",
        "parameter._hp_mapping.lp_fragment_address.start",
        "parameter._hp_mapping.lp_fragment_address.numel",
        "parameter._hp_mapping.hp_fragment_address.start",
        "parameter._hp_mapping.param_group_index",
    ],
    "2_offload": [
        "optimizer.norm_for_param_grads",
        "adam.ds_opt_adam",
        "cpu_adam.adam_update",
        "cpu_adam.destroy_adam",
    ],
    "3": [
        "optimizer.optimizer",
        "optimizer.override_loss_scale",
        "optimizer.averaged_gradients",
        "optimizer.fp32_partitioned_groups_flat",
        "optimizer.grad_position",
        "optimizer.get_param_id",
        "parameter.ds_tensor.ds_numel",
        "parameter.ds_numel",
        "parameter.ds_shape",
    ],
    "3_offload": [
        "optimizer.norm_for_param_grads",
        "optimizer.fp16_partitioned_groups_flat",
        "optimizer.grad_partitions_flat_buffer",
        "optimizer.param_groups_fp16_flat_cpu_memory",
        "optimizer._unflatten_partitioned_parameters",
        "optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition",
    ],
}
# What DeepSpeed documents, and what every module and optimizer of torch has.
PUBLIC = {"DeepSpeedCPUAdam", "initialize", "init_distributed", "backward", "step", "train"}
PUBLIC |= {"module", "named_parameters", "device", "param_groups", "values"}
PUBLIC |= {"register_step_pre_hook", "register_step_post_hook", "clear", "utils", "get"}
CASES = [f"{stage}:{name}" for stage, names in PRIVATE.items() for name in names]
LISTED = {part for names in PRIVATE.values() for name in names for part in name.split(".")[1:]}
# The variables of `lola_ds.train.zero` that hold objects of DeepSpeed.
OBJECTS = {"deepspeed", "engine", "_engine", "zero", "hp_mapping"}


def functions() -> Iterator[tuple[str, ast.AST]]:
    """The functions of `lola_ds.train.zero`, with their qualified names."""
    for path in sorted(Path(*lola_ds.train.zero.__path__).glob("*.py")):
        for top in ast.parse(path.read_text()).body:
            methods = top.body if isinstance(top, ast.ClassDef) else [top]
            prefix = f"{top.name}." if isinstance(top, ast.ClassDef) else ""
            for node in methods:
                if isinstance(node, ast.FunctionDef):
                    yield f"{path.stem}.{prefix}{node.name}", node


def users(attribute: str) -> list[str]:
    """Our functions that read an attribute of this name."""
    return [
        name
        for name, function in functions()
        if any(isinstance(n, ast.Attribute) and n.attr == attribute for n in ast.walk(function))
    ]


@pytest.fixture(scope="module")
def missing() -> set[str]:
    """The listed names that real engines do not have."""
    (output,) = run_ranks([str(WORKER), *CASES], 1)
    return set(json.loads(output.splitlines()[-1]))


@pytest.mark.ranks
@pytest.mark.parametrize("case", CASES)
def test_deepspeed_has_the_name(case: str, missing: set[str]) -> None:
    name = case.partition(":")[2]
    relying = users(name.rpartition(".")[2])
    assert relying, f"{name} is used no longer: remove it from the list"
    version = importlib.metadata.version("deepspeed")
    assert case not in missing, (
        f"DeepSpeed {version} has no {name} at ds_configs/zero{case.partition(':')[0]}.json; "
        f"this breaks {', '.join(relying)} of lola_ds.train.zero"
    )


def test_no_other_private_name_is_used() -> None:
    unlisted = {
        f"{name} uses {ast.unparse(node)}"
        for name, function in functions()
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr not in LISTED | PUBLIC
        if holds_deepspeed(node.value) or node.attr.startswith(("ds_", "_DeepSpeed", "_hp_"))
        if node.attr != "_engine"
    }
    assert not unlisted


def holds_deepspeed(node: ast.expr) -> bool:
    """Whether an expression is an object of DeepSpeed, or an attribute of one."""
    while isinstance(node, ast.Attribute):
        if node.attr in OBJECTS:
            return True
        if node.attr == "module":
            return False
        node = node.value
    return isinstance(node, ast.Name) and node.id in OBJECTS
