"""`difftool schema` publishes what the code itself reads and writes."""

import json

import pytest


@pytest.mark.parametrize("subject", ["recipe", "perf", "compare", "events"])
def test_each_schema_is_printed_as_json_schema(difftool, subject):
    answer = difftool("schema", subject)
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_events_schema_is_the_one_the_launcher_reads(difftool):
    from difftool.launch.events import json_schema

    assert json.loads(difftool("schema", "events").out) == json_schema()


def test_an_unknown_subject_is_a_usage_error(difftool):
    answer = difftool("schema", "plans")
    assert answer.code == 2
    assert answer.err == (
        "error: invalid value for 'SUBJECT': 'plans' is not one of 'recipe', 'perf', 'compare', 'events'\n"
        "hint: see difftool schema --help\n"
    )
