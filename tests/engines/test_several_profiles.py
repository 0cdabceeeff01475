"""One engine for several ranges of sizes: built by the real TensorRT-RTX, chosen by the runner, listed in the JSON."""

from dataclasses import replace
from pathlib import Path

import pytest
from engine_models import DIMS, F16, one

from engines import engine_json, engine_key, graph, profiles, vendor
from engines.build import BuiltEngine, build_engine
from engines.errors import BackendMissingError, UsageError
from engines.flags import Flags
from engines.kernels import attention_kernels
from engines.layers import Layer

try:
    RTX = vendor.load("tensorrt-rtx")
except BackendMissingError as missing:
    pytest.skip(str(missing), allow_module_level=True)

ONE_TOKEN = {"B": (1, 1, 4), "S": (1, 1, 1), "N": (1, 128, 512)}


def built(folder: Path) -> tuple[BuiltEngine, profiles.Profile]:
    import onnx

    path = folder / "model.onnx"
    onnx.save(one(F16), path)
    inputs = {i.name: i.shape for i in graph.read(path).inputs}
    profile = profiles.derive(inputs, DIMS)
    profile = replace(profile, further=(profiles.derive(inputs, ONE_TOKEN),))
    return build_engine(path, folder / "e", vendor="tensorrt-rtx", sm=89, profile=profile), profile


def test_each_profile_gets_kernels_of_its_own(tmp_path: Path) -> None:
    engine, profile = built(tmp_path)
    assert "Constructing optimization profile number 1 [2/2]." in engine.log
    (choice,) = engine.attentions.values()
    assert choice.fused is True
    # The second has one query, for which there is another kernel.
    assert [k.split("_myl")[0] for k in choice.kernels] == [
        "_gemm_mha_v2",
        "_gemv_mha_v1",
    ]
    entry = engine_json.entry(engine)
    assert entry["profile"] == entry["profiles"][0]
    assert [p["dims"]["S"] for p in entry["profiles"]] == [list(DIMS["S"]), [1, 1, 1]]
    path = tmp_path / "model.onnx"
    facts = graph.read(path)
    several, first = (
        engine_key.parts(path, facts, vendor=RTX, sm=89, profile=each, asked=Flags())
        for each in (profile, replace(profile, further=()))
    )
    assert several["profile"].startswith(f"{first['profile']}; ")


def test_fused_in_one_of_two_profiles_is_not_fused() -> None:
    mha = Layer("_gemm_mha_v2_myl0_2", "kgen", "_gemm_mha_v2_0x1", (), (), ("a",))
    apart = Layer("soft", "kgen", "__myl_MaxrSubExpSumDiv_0x1", (), (), ("a",))
    (choice,) = attention_kernels((mha, apart), {"a": ("a",)}, profiles=2).values()
    assert choice.fused is False
    assert choice.why.startswith("Only 1 of the engine's 2 profiles")
    assert attention_kernels((mha, mha), {"a": ("a",)}, profiles=2)["a"].fused is True


def test_a_further_profile_that_cannot_be_is_refused_first(tmp_path: Path) -> None:
    _, profile = built(tmp_path)
    wrong = replace(profile, further=(profiles.Profile({}, {}),))
    with pytest.raises(UsageError, match="has no shapes for input"):
        build_engine(tmp_path / "model.onnx", tmp_path / "f", vendor="tensorrt-rtx", sm=89, profile=wrong)
