"""The schema says no to what is no report; that every report says yes, conftest sees to."""

import copy
import json

import jsonschema
import pytest
from test_terminal import REPORT

from export.report.schemas import schema

DATA = json.loads(json.dumps(REPORT.as_json()))


def test_the_schema_is_one_and_takes_a_report() -> None:
    jsonschema.Draft202012Validator.check_schema(schema("report"))
    jsonschema.validate(DATA, schema("report"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("passed",), True),  # beside a failure
        (("digest",), "short"),
        (("attentions", 0, "status"), "fusd"),
        (("attentions", 0, "verify", "budget"), None),
        (("parity", "rows", 0, "status"), "passed"),
        (("engines", 0, "attentions", "attn", "fused"), "yes"),
        (("profile", "batch"), [1, 2]),
    ],
)
def test_a_wrong_value_is_found(path: tuple[str | int, ...], value: object) -> None:
    data = copy.deepcopy(DATA)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema("report"))


@pytest.mark.parametrize("key", sorted(DATA))
def test_a_missing_key_is_found(key: str) -> None:
    data = {name: value for name, value in DATA.items() if name != key}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema("report"))
