"""The pytest plugin `attnproof`: a `parity` fixture that judges a kernel, module or graph against float64.

```python
def test_my_attention(parity):
    q, k, v = (torch.randn(2, 4, 7, 16) for _ in range(3))
    parity(my_attention, F.scaled_dot_product_attention, cases=[(q, k, v)], dtype="fp16")
```

The test fails with a table of cases if an output lies outside its derived budget, and is skipped, with the reason, if
nothing could be run. `--parity-dtype` is the dtype of calls that name none. What was not run is listed at the end of
the session. Nothing heavy is imported until the fixture is called, so that the plugin costs other suites nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from export.parity.result import ParityReport

DTYPES = ("fp32", "fp16", "bf16", "tf32")
_REPORTS = pytest.StashKey[list[tuple[str, str, str]]]()
_WORKER_KEY = "attnproof_not_run"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --parity-dtype."""
    group = parser.getgroup("attnproof", "attention parity against float64")
    group.addoption(
        "--parity-dtype",
        choices=DTYPES,
        default="fp16",
        help="dtype that the parity fixture rounds weights and inputs to where the test names none (default: fp16)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepares the list of what was not run."""
    config.stash[_REPORTS] = []


class Parity:
    """What the `parity` fixture is: call it to assert, or read `reports` afterwards.

    Attributes:
        dtype: The dtype of calls that name none.
        reports: The report of every call so far.
    """

    def __init__(self, dtype: str) -> None:
        """Takes the session's default dtype."""
        self.dtype = dtype
        self.reports: list[ParityReport] = []

    def __call__(
        self,
        candidate: Any,
        reference: Callable[..., Any],
        cases: Iterable[Any],
        dtype: str | None = None,
        *,
        masked_rows: str = "keep",
        draws: int | None = None,
    ) -> "ParityReport":
        """Fails the test unless every case that ran is within budget; arguments as in `export.parity.check`.

        Returns:
            The report, e.g. to look at `report.worst("candidate")`.
        """
        from export.parity.harness import check
        from export.parity.reach import DRAWS
        from export.parity.result import NOT_RUN, table

        __tracebackhide__ = True
        draws = DRAWS if draws is None else draws
        report = check(candidate, reference, cases, dtype or self.dtype, masked_rows=masked_rows, draws=draws)
        self.reports.append(report)
        if report.failures:
            pytest.fail(f"parity at {report.dtype}: {report.summary()}\n\n{table(report.rows)}", pytrace=False)
        if all(row.status == NOT_RUN for row in report.rows):
            pytest.skip(f"parity was not run: {report.rows[0].reason}")
        return report


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Iterator[Parity]:
    """Judges a candidate against a float64 reference: `parity(candidate, reference, cases=..., dtype=...)`."""
    fixture = Parity(request.config.getoption("--parity-dtype"))
    yield fixture
    for report in fixture.reports:
        for row in report.rows:
            if row.status == "not run":
                request.config.stash[_REPORTS].append((request.node.nodeid, row.case, row.reason))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands a pytest-xdist worker's list to the controller."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_WORKER_KEY] = session.config.stash[_REPORTS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Collects the lists of pytest-xdist workers."""
    for entry in getattr(node, "workeroutput", {}).get(_WORKER_KEY, ()):
        node.config.stash[_REPORTS].append(tuple(entry))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Lists the parity cases that were not run: they are no evidence."""
    missing = config.stash.get(_REPORTS, [])
    if missing:
        terminalreporter.section("parity: NOT RUN")
        for node, case, reason in missing:
            terminalreporter.line(f"{node} [{case}]: {reason}")
