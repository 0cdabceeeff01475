"""Results as JUnit's XML: a suite for parity, one for attentions, and one for what else made the verdict."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from export.report.results import Result

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML 1.0 document may hold, escaped or not."""


def render(results: Sequence[Result]) -> str:
    """Returns the XML document: what was kept or not run is skipped, with its reason; what failed is a failure."""
    root = ElementTree.Element("testsuites", _counts(results), name="attnproof")
    for name in dict.fromkeys(result.suite for result in results):
        mine = [result for result in results if result.suite == name]
        suite = ElementTree.SubElement(root, "testsuite", _counts(mine), name=name)
        for result in mine:
            _case(suite, result)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, result: Result) -> None:
    attributes = {"classname": _clean(f"{result.suite}.{result.group}"), "name": _clean(result.name)}
    if result.place:
        attributes |= {"file": _clean(result.place[0]), "line": str(result.place[1])}
    case = ElementTree.SubElement(suite, "testcase", attributes)
    if result.status == "fail":
        ElementTree.SubElement(case, "failure", message=_clean(result.message)).text = _clean(result.message)
    elif result.status in ("kept", "not run"):
        ElementTree.SubElement(case, "skipped", message=_clean(result.message))
    elif result.message:
        ElementTree.SubElement(case, "system-out").text = _clean(result.message)


def _counts(results: Sequence[Result]) -> dict[str, str]:
    failed = sum(result.status == "fail" for result in results)
    skipped = sum(result.status in ("kept", "not run") for result in results)
    return {"tests": str(len(results)), "failures": str(failed), "skipped": str(skipped), "errors": "0"}


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
