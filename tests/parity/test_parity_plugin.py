"""The pytest plugin as a user meets it: a test suite of their own, run in a process of its own."""

import importlib.metadata
import json

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import torch
from torch.nn import functional as F


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mine(query, key, value, scale=None):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax(query @ key.transpose(-1, -2) * scale, dim=-1) @ value


def test_right(parity):
    q, k, v = (drawn(2, 3, 7, 16) for _ in range(3))
    report = parity(mine, F.scaled_dot_product_attention, cases=[(q, k, v)], dtype="bf16")
    assert report.dtype == "bf16"
    assert parity.reports == [report]


def test_scale_forgotten(parity):
    cases = [{"query": drawn(2, 3, n, 16), "key": drawn(2, 3, n, 16), "value": drawn(2, 3, n, 16)} for n in (1, 9)]
    parity(lambda query, key, value: mine(query, key, value, 1.0), mine, cases=cases)


def test_not_run(parity):
    parity(NOT_RUN("there is no GPU here"), mine, cases=[(drawn(1, 1, 2, 4),) * 3])
"""


@pytest.fixture
def suite(pytester, monkeypatch):
    import export.parity

    root = export.parity.__file__.rsplit("/export/", 1)[0]
    monkeypatch.setenv("PYTHONPATH", root)
    text = SUITE.replace("NOT_RUN(", "__import__('export.parity', fromlist=['NotRun']).NotRun(")
    pytester.makepyfile(test_mine=text)
    return pytester


def run(suite, *options):
    installed = importlib.metadata.entry_points(group="pytest11", name="attnproof")
    plugin = () if installed else ("-p", "export.parity.pytest_plugin")  # twice would be an error
    return suite.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", *options)


def test_a_suite_passes_fails_with_a_table_and_says_what_was_not_run(suite):
    result = run(suite, "-rs")
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*parity at fp16: 1 ok, 1 failed, 0 not run*",
            "*case*stage*status*error*error/budget*worst at*",
            "*case-0*candidate*OK*",
            "*case-1*candidate*FAIL*output[[]*elements of output lie outside their budget.*",
            "*parity: NOT RUN*",
            "*test_mine.py::test_not_run*case-0*there is no GPU here*",
            "*SKIPPED*parity was not run: there is no GPU here*",
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_the_dtype_of_calls_that_name_none_is_an_option(suite):
    result = run(suite, "--parity-dtype", "fp32", "-k", "scale_forgotten")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*parity at fp32: 1 ok, 1 failed, 0 not run*"])
    refused = run(suite, "--parity-dtype", "fp8")
    assert refused.ret == 4
    refused.stderr.fnmatch_lines(["*--parity-dtype*invalid choice: 'fp8'*"])


def test_what_was_not_run_on_a_worker_reaches_the_terminal(suite):
    pytest.importorskip("xdist")
    result = run(suite, "-n", "1", "-k", "not_run")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*parity: NOT RUN*", "*test_mine.py::test_not_run*case-0*there is no GPU here*"])


def test_the_plugin_is_quiet_and_light_where_it_is_not_used(pytester, monkeypatch):
    import export.parity

    monkeypatch.setenv("PYTHONPATH", export.parity.__file__.rsplit("/export/", 1)[0])
    pytester.makepyfile(
        """
        import json, sys

        def test_nothing_heavy_is_loaded():
            print(json.dumps({"heavy": [m for m in ("torch", "numpy", "onnx", "onnxruntime") if m in sys.modules]}))
        """
    )
    result = run(pytester, "-s", "-q")
    result.assert_outcomes(passed=1)
    line = next(line for line in result.stdout.lines if line.startswith("{"))
    assert json.loads(line.rstrip("."))["heavy"] == []
    assert "parity" not in result.stdout.str().replace("test_nothing", "")
