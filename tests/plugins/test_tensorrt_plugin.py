"""The plugin's registration, types, shapes and launch, in the real TensorRT 11.4 bindings over stubbed libraries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plugins.contract import Settings
from plugins.tensorrt_plugin import node_attributes

SCRIPT = Path(__file__).with_name("build_plugin.py")


def build(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def told(tensorrt_environment: dict[str, str]) -> dict[str, Any]:
    done = build(tensorrt_environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_registry_makes_a_plugin_with_its_kernel_compiled_ahead(told: dict[str, Any]) -> None:
    assert told["plugin"] == "_TemplateAOTPlugin"
    assert told["kernel"] == ["kernel", "PTX"]


def test_type_and_shape_follow_the_queries_and_the_size_of_the_values(told: dict[str, Any]) -> None:
    assert told["types"] == ["HALF"]
    assert told["shape"] == [2, 8, 130, 32]
    assert told["constant"] == [False, True, False, True]


def test_the_tensors_of_one_node_have_one_type_and_the_tables_are_float32(told: dict[str, Any]) -> None:
    for kind in ("FLOAT", "HALF", "BF16"):
        assert [kind, kind, kind, "FLOAT", "FLOAT", kind, "INT32", kind] in told["combinations"]
    assert len(told["combinations"]) == 3


def test_the_kernel_is_asked_for_what_the_node_says(told: dict[str, Any]) -> None:
    (asked,) = told["asked"]
    assert "Settings(scale=0.125, softcap=30.0, causal_kind=2, window=0, rotary_embedding_dim=64" in asked
    assert "heads=8, kv_heads=4, head_size=64, value_size=32, dtype='fp16'" in asked
    assert asked.endswith(", 90)")


def test_the_launch_covers_the_rows_and_passes_the_lengths_in_the_kernels_order(told: dict[str, Any]) -> None:
    assert told["launch"] == {"grid_x": 3, "grid_y": 16, "grid_z": 1, "block_x": 128, "shared_mem": 4096}
    assert told["integers"] == [[size, "SymInt32"] for size in (130, 7, 512, 1, 8, 1)]


def test_the_integers_stand_where_the_kernel_takes_them() -> None:
    pytest.importorskip("triton", reason="NOT RUN: Triton is not installed")
    from plugins.kernels.attention import rotary_attention as kernel

    dynamic = [name for name in kernel.arg_names if not name.isupper()]
    assert dynamic[:7] == ["q", "k", "v", "cos", "sin", "bias", "lengths"]
    assert dynamic[7:13] == ["queries", "keys", "positions", "bias_batches", "bias_heads", "bias_rows"]
    assert dynamic[13:] == ["out"]


def test_heads_that_change_between_calls_are_refused(tensorrt_environment: dict[str, str]) -> None:
    done = build(tensorrt_environment, "--changing-heads")
    assert done.returncode != 0
    assert "The size H of a RotaryAttention changes between calls; only B, S and T may." in done.stderr


def test_the_node_names_its_plugin() -> None:
    attributes = node_attributes(Settings(0.125))
    assert attributes["plugin_namespace"] == "attnproof"
    assert attributes["plugin_version"] == "1"
    assert attributes["aot"] == 1
