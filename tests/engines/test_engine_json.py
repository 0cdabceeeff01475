"""engine.json: what is written about an engine is what is read."""

import dataclasses
import json
from pathlib import Path

from engines import engine_json
from engines.build import BuiltEngine
from engines.engine_json import Record, digest
from engines.flags import Flags
from engines.profiles import InputShapes, Profile
from engines.runner import TensorSpec


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.sm89.engine"
    path.write_bytes(b"plan")
    spec = TensorSpec("x", "bfloat16", ("batch", 3))
    built = BuiltEngine(
        **{f.name: None for f in dataclasses.fields(BuiltEngine)}
        | {
            "path": path,
            "vendor": "tensorrt",
            "version": "11.4",
            "sm": 89,
            "size": 4,
            "profile": Profile({"x": InputShapes((1, 3), (2, 3), (8, 3))}, {"batch": (1, 2, 8)}),
            "inputs": (spec,),
            "outputs": (),
            "flags": Flags(refit=True),
        }
    )
    written = json.dumps({"schema": engine_json.SCHEMA, "engines": [engine_json.entry(built)]})
    (tmp_path / "engine.json").write_text(written)
    record = Record(
        path.name, digest(path), "tensorrt", "11.4", 89, (spec,), (), {"batch": (1, 2, 8)}, Flags(refit=True)
    )
    assert engine_json.read(path) == record
    assert engine_json.read_folder(tmp_path) == (record,)
    assert engine_json.read_plan(path, record) == b"plan"


def test_usual_sizes_are_the_profiles_opt_and_never_an_error(tmp_path: Path) -> None:
    assert engine_json.usual_sizes(tmp_path) == {}
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({"profile": {"batch": [1, 2, 8]}}))
    assert engine_json.usual_sizes(tmp_path) == {"batch": 2}
    for text in ("", "{}", '{"profile": []}', '{"profile": {"batch": 3}}', '{"profile": {"batch": [1]}}'):
        path.write_text(text)
        assert engine_json.usual_sizes(tmp_path) == {}
