"""Marks for Nsight Systems with the real package; what they say is heard in tests/test_profile.py."""

from pathlib import Path

import pytest
from families.running import assemble_case, batch_for, context_for

from difftool.profiling.timers import Timer

pytest.importorskip("nvtx", reason="it is there for Linux alone")


def test_a_marked_sample_is_the_same_and_says_where_its_report_lies():
    from dataclasses import replace

    from difftool.profiling.marking import MarkingTimer

    assembled = assemble_case("flux1-dev")
    plain = context_for(assembled)
    parts = {"modules": plain.components.modules, "mesh": plain.mesh}
    marked = replace(plain, timer=MarkingTimer(plain.timer.platform, report=Path("x.nsys-rep"), **parts))
    batch = batch_for(assembled)
    expected, found = (assembled.pipeline(batch, ctx).pixels for ctx in (plain, marked))
    assert (found == expected).all()
    profile = marked.timer.profile
    assert (profile.tool, profile.report, profile.steps) == ("nsys", "x.nsys-rep", [0, 1, 2, 3])
    assert profile.stages == list(marked.timer.timings.stages)
    assert isinstance(plain.timer, Timer) and plain.timer.profile is None
