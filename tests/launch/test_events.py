"""The event stream has one schema; it refuses what it does not know and keeps what it was not asked for."""

import pytest

from difftool.launch.events import Output, StageFinished, json_schema, parse_event


def test_a_line_becomes_the_event_it_names():
    event = parse_event(b'{"event": "stage_finished", "item": 0, "stage": "denoising", "ms": 12.5}')
    assert event == StageFinished(item=0, stage="denoising", ms=12.5)


def test_unknown_fields_are_kept():
    event = parse_event('{"event": "output", "item": 0, "path": "a.png", "sha256": "00", "size": 12, "colour": "red"}')
    assert isinstance(event, Output)
    assert event.model_dump()["colour"] == "red"


@pytest.mark.parametrize("line", ["", "{}", '{"event": "explode"}', '{"event": "step", "item": -1}', "[1]", "text"])
def test_anything_else_is_refused(line):
    with pytest.raises(ValueError):
        parse_event(line)


def test_the_schema_lists_every_event():
    schema = json_schema()
    assert schema["discriminator"]["propertyName"] == "event"
    assert list(schema["discriminator"]["mapping"]) == [
        "compared",
        "component_loaded",
        "error",
        "finished",
        "heartbeat",
        "item_failed",
        "item_finished",
        "item_started",
        "load_started",
        "loaded",
        "output",
        "perf",
        "save_started",
        "stage_finished",
        "stage_started",
        "started",
        "step",
        "turn_finished",
    ]
