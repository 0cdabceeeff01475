"""The page: made of JSON alone, small, needing no network, and safe whatever a model's names hold."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from test_terminal import REPORT

from export.pictures import heat
from export.report import html
from export.report.html import blocks, matrix, page
from export.report.html.layout import layout

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028\"'&"


class Tags(HTMLParser):
    """Collects start tags, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def drawing(count: int, *, word: str = "MatMul") -> dict[str, object]:
    nodes = [{"op": word, "name": f"node_{i}", "shape": "2x4x16x64", "note": "", "kind": "mask"} for i in range(count)]
    edges = [[i, i - 1] for i in range(1, count)] + [[i, i // 2] for i in range(6, count)]
    return {"nodes": nodes, "edges": edges, "left_out": 3}


def pictured(names: list[str], heads: int) -> dict[str, object]:
    cells = heat.cells_for(heads * len(names), 600_000)
    weights = np.random.default_rng(0).random((heads, cells, cells))
    maps = {kind: heat.packed(weights) for kind in ("reference", "fused", "difference")}
    shape = {"element": 0, "heads": heads, "queries": cells, "keys": cells, "cells": [cells, cells]}
    block = {
        "before": drawing(40),
        "after": drawing(12),
        "not_run": None,
        "weights": {**shape, **maps, "seen": heat.packed(weights[:1])},
        "error": {"tensor": "y", **heat.errors(weights, weights + 1e-7)},
    }
    return {
        "schema": 1,
        "sizes": {"batch": 2},
        "reference": "float64",
        "fused": "fp16",
        "blocks": dict.fromkeys(names, block),
    }


def made_of(data: dict[str, object], **more: object) -> str:
    return page.of_json(json.loads(json.dumps(data)), folder="net", **more)


def with_names(value: object) -> object:
    """Every string that a model or a user decides becomes nasty."""
    kept = {"status", "masked_rows", "rope", "cache", "code", "kind"}
    if isinstance(value, dict):
        return {k: v if k in kept else with_names(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_names(item) for item in value]
    return f"{value}{NASTY}" if isinstance(value, str) else value


def test_names_of_a_model_are_text_and_never_markup() -> None:
    data = with_names(json.loads(json.dumps(REPORT.as_json())))
    names = [row["name"] for row in data["attentions"]]
    text = made_of(data, pictures=with_names(pictured(names, 2)) | {"blocks": pictured(names, 2)["blocks"]})
    tags = Tags(text).found
    assert [name for name, _ in tags].count("script") == 3, "two of data and one of code"
    assert not [name for name, _ in tags if name == "img"]
    assert not [key for _, attributes in tags for key in attributes if key.startswith("on")]
    assert "alert(1)" in text, "it is there, as text"


def test_the_page_loads_nothing() -> None:
    text = made_of(REPORT.as_json())
    for _, attributes in Tags(text).found:
        assert not [v for k, v in attributes.items() if k in ("src", "href") and not v.startswith(("#", "data:"))]
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_thirty_two_layers_of_thirty_two_heads_are_below_two_megabytes() -> None:
    rows = tuple(replace(REPORT.attentions[0], name=f"layer_{i}/attn") for i in range(32))
    data = replace(REPORT, attentions=rows).as_json()
    text = made_of(data, pictures=pictured([row.name for row in rows], 32))
    assert 500_000 < len(text.encode()) < 2_000_000


def test_a_failing_build_says_why_and_where() -> None:
    text = made_of(REPORT.as_json())
    assert "FAILED" in text and "Why it failed" in text
    assert "Worst at y[0, 2]: 1.9, float64 has 1, budget 0.0004." in text
    assert '<td class="fail" title="3 elements lie outside.">fail 2.25e+03</td>' in text
    assert '<td class="not-run" title="no GPU">NOT RUN</td>' in text


def test_a_failing_stage_is_told_once_with_its_other_cases_and_how_to_find_the_node() -> None:
    rows = [replace(REPORT.parity.rows[3], case=f"case-{ratio}", ratio=float(ratio)) for ratio in (2, 50, 3)]
    text = made_of(replace(REPORT, parity=replace(REPORT.parity, rows=tuple(rows))).as_json())
    assert "<strong>fused</strong>, case-50: 3 elements lie outside." in text
    assert "2 more cases of fused</summary>" in text and "<li>case-3:" in text and "<li>case-2:" in text
    assert "python -m export bisect net.py:make net/fused.onnx" in text
    assert "bisect" not in made_of(
        replace(REPORT, parity=replace(REPORT.parity, rows=REPORT.parity.rows[:3])).as_json()
    )


def test_what_is_long_is_shown_short_and_what_was_not_measured_says_how() -> None:
    source = "/home/me/some where/net.py:12 in forward: y = softmax(a/b:3)"
    row = replace(REPORT.attentions[0], source=source, block="layers.0.attention")
    text = made_of(replace(REPORT, attentions=(row,)).as_json())
    assert f'title="{source}">net.py:12</td>' in text
    assert "layers.0.attention</span>" in text and ">2.0 KiB</td>" in text
    assert blocks.short(None) == "-" and blocks.short("C:\\me\\net.py:3 in f") == "net.py:3"
    command = "python -m export bench net.py:make -o net/bench.json &amp;&amp; python -m export report net"
    assert "NOT RUN: a build measures none." in text and command in text


@pytest.mark.parametrize("below", ["", "/home/me/"])
def test_commands_name_files_as_the_user_types_them(monkeypatch, below: str) -> None:
    monkeypatch.setattr("os.getcwd", lambda: "/home/me")  # a build writes down where its source lies
    report = replace(REPORT, spec={**REPORT.spec, "source": f"{below}models/net.py:make"})
    text = page.of_json(json.loads(json.dumps(report.as_json())), folder="out/net")
    assert "bench models/net.py:make -o out/net/bench.json &amp;&amp; python -m export report out/net<" in text
    assert "bisect models/net.py:make out/net/fused.onnx" in text
    assert "build models/net.py:make --target tensorrt-rtx --dtype fp16 -o out/net<" in text


def test_a_build_that_passed_says_how_much_was_not_run() -> None:
    kept = [row for row in REPORT.parity.rows if row.status != "fail"]
    passed = replace(REPORT, failures=(), parity=replace(REPORT.parity, rows=tuple(kept)))
    assert ">PASSED what ran; 2 NOT RUN (engine-sm89)</p>" in made_of(passed.as_json())
    whole = replace(passed.parity, rows=tuple(row for row in kept if row.status == "ok"))
    assert ">PASSED</p>" in made_of(replace(passed, parity=whole).as_json())
    assert ">FAILED</p>" in made_of(REPORT.as_json())


def test_what_fusing_changed_of_rows_without_keys_is_told() -> None:
    said = "a row without keys gives zero (NaN before)"
    row = replace(REPORT.attentions[0], masked_rows="zero", reason=said)
    told = '<span class="tag">masked rows</span> attn: ' + said
    bare = replace(REPORT, attentions=(row,), notes=(), not_run=(), steps=())
    assert told in made_of(bare.as_json())
    assert "masked rows</span>" not in made_of(REPORT.as_json())


def test_what_was_not_read_of_a_kept_attention_is_no_none() -> None:
    kept = json.loads(json.dumps(REPORT.as_json()))["attentions"][1]
    row = blocks.row(REPORT.as_json(), kept)
    assert (row["mask"], row["rope"]) == ("?", "?")
    facts = dict(blocks.drawer(REPORT.as_json(), kept, None)["facts"])
    assert [facts[name] for name in ("scale", "softcap", "mask", "RoPE", "cache")] == ["?"] * 5


def test_nan_is_told_from_a_wrong_number() -> None:
    row = {"status": "fail", "ratio": "inf", "expected": 1.0, "actual": "nan", "reason": "", "case": "a", "stage": "b"}
    assert matrix.cell(row)[:2] == ("NaN", "nan")


def test_the_command_builds_the_same() -> None:
    import argparse
    import shlex

    from export.commands.build import configure, spec_of
    from export.spec import Spec

    spec = Spec(
        "net.py:make",
        target="ort",
        dtype="fp32",
        shapes={"batch": "1:2:8"},
        further_profiles=("batch=2:3:4",),
        require="all",
        verify=False,
    )
    words = shlex.split(page.command(spec.as_dict()))
    assert words[:4] == ["python", "-m", "export", "build"]
    parser = argparse.ArgumentParser()
    configure(parser)
    assert spec_of(parser.parse_args(words[4:])) == spec


@pytest.mark.parametrize("count", [1, 7, 40])
def test_nodes_stand_in_layers_without_overlap_and_edges_point_down(count: int) -> None:
    placed = layout(drawing(count))
    nodes = placed["nodes"]
    assert len(nodes) == count
    for at, one in enumerate(nodes):
        assert one["x"] - one["w"] / 2 >= 0 and one["x"] + one["w"] / 2 <= placed["width"]
        for other in nodes[at + 1 :]:
            apart = abs(one["x"] - other["x"]) >= (one["w"] + other["w"]) / 2 - 1
            assert one["y"] != other["y"] or apart, (one["name"], other["name"])
    for points in placed["edges"]:
        assert all(low[1] < high[1] for low, high in pairwise(points))


def test_maps_keep_peaks_and_nan() -> None:
    import base64

    maps = np.array([[[0.0, 0.5], [np.nan, 1.0]]])
    packed = heat.packed(maps)
    assert packed["peak"] == 1.0
    assert list(base64.b64decode(packed["cells"])) == [0, 127, heat.NONE, 254]
    assert heat.pooled(np.eye(100)[None], 10).shape == (1, 10, 10)
    assert heat.pooled(np.eye(100)[None], 10).max() == 1.0


def test_errors_name_the_worst_element() -> None:
    expected = np.zeros((2, 3))
    actual = expected.copy()
    actual[1, 2], actual[0, 1] = 3e-4, np.nan
    found = heat.errors(actual, expected)
    assert (found["worst"], found["max"], found["zeros"], found["misplaced"]) == ([1, 2], 3e-4, 4, 1)
    assert found["counts"][-4 - found["decades"][0]] == 1


def test_a_folder_that_is_none_is_refused(tmp_path) -> None:
    from export.errors import UsageError

    with pytest.raises(UsageError, match="is not an artifact folder"):
        html.render(tmp_path)


def test_a_notebook_shows_reports_and_escapes_them() -> None:
    from export.fusing import Fused

    report = replace(REPORT, attentions=(replace(REPORT.attentions[0], name=NASTY),))
    fused = Fused(None, report.attentions, ())
    for shown in (report, report.parity, fused):
        text = shown._repr_html_()
        tags = {name for name, _ in Tags(text).found}
        assert "table" in tags and not tags & {"script", "img"}
        cells = [cell.text for cell in ElementTree.fromstring(f"<div>{text}</div>").iter("td")]
        assert shown is report.parity or NASTY in cells, "well formed, and the name is there as it is"
    assert "FAILED" in report._repr_html_() and "2.25e+03" in report._repr_html_()


def test_latency_is_of_one_export_and_bars_are_in_proportion() -> None:
    from pathlib import Path

    def row(route: str, stage: str, p50: float) -> dict[str, object]:
        return {"route": route, "stage": stage, "status": "timed", "timing": {"p50_ms": p50}}

    from export.report.latency import before_and_after

    rows = [row("a", "exported", 9.0), row("b", "exported", 4.0), row("b", "fused", 2.0)]
    assert before_and_after({"rows": rows}) == (4.0, 2.0)
    assert before_and_after({"rows": rows[:2]}) is None
    measured = Path(__file__).parents[2] / "benchmarks" / "results" / "speed-lengths.json"
    text = made_of(REPORT.as_json(), bench=json.loads(measured.read_text()))
    widths = [float(width) for width in re.findall(r"<i style=\"width:([\d.]+)%", text)]
    times = [float(time) for time in re.findall(r"<b>([\d.]+) ms", text)]
    assert len(widths) == len(times) >= 4
    for a, b, x, y in zip(widths[::2], widths[1::2], times[::2], times[1::2], strict=True):
        assert a / b == pytest.approx(x / y, rel=0.02)
    assert text.count("<svg") == 2, "speed-up and roofline"
