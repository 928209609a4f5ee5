"""What is seen of a race, on a terminal and without one."""

import io
import json
import time

from difftool.cli import turns as turns_module
from difftool.cli.turns import make_turns
from difftool.launch.events import ComponentLoaded, ItemStarted, StageStarted, Step
from difftool.launch.race import Told

ITEM = {"id": "red", "output": 0, "prompt": "a red circle", "seed": 7, "sample": 0, "steps": 20}


def race(turns):
    """The warm-up and two rounds of two arms, of which the second had less memory than it asked for."""
    with turns:
        turns.event("base", ComponentLoaded(name="transformer", seconds=0.25))
        turns.event("base", ItemStarted(item=0, items=1, phase="warmup", **ITEM))
        turns.event("base", StageStarted(item=0, stage="denoising"))
        turns.event("base", Step(item=0, step=6, steps=20))
        turns.turn(Told("base", 0, 900.0))
        turns.note("W-NOT-INTERLEAVED: [new] does not fit")
        turns.turn(Told("base", 1, 1000.0))
        turns.turn(Told("new", 1, 1000.4))
        turns.turn(Told("base", 2, 1001.0))


LINES = (
    "warm-up  base  900.0 ms\n"
    "W-NOT-INTERLEAVED: [new] does not fit\n"
    "round 1  base  1000.0 ms\n"
    "round 1  new  1000.4 ms\n"
    "round 2  base  1001.0 ms\n"
)


def test_without_a_terminal_there_is_a_line_a_turn(capsys):
    race(make_turns("plain", repeats=8))
    assert capsys.readouterr() == ("", LINES)


def test_a_long_turn_is_told_of_by_a_heartbeat(capsys, monkeypatch):
    monkeypatch.setattr(turns_module.PlainTurns.__init__, "__defaults__", (0.05,))
    with make_turns("plain", repeats=8) as turns:
        turns.event("new", Step(item=0, step=6, steps=20))
        deadline, heard = time.monotonic() + 60, []
        while "new: denoising, step 7 of 20" not in heard and time.monotonic() < deadline:
            time.sleep(0.02)
            heard += capsys.readouterr().err.splitlines()
    assert "new: denoising, step 7 of 20" in heard


class Terminal(io.StringIO):
    def isatty(self):
        return True


def look_at(monkeypatch):
    """A terminal in the place of stderr."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    return screen


def test_on_a_terminal_bars_of_rounds_and_steps_live_below_the_lines(monkeypatch, capsys):
    terminal = look_at(monkeypatch)
    race(make_turns("live", repeats=2))
    shown = terminal.getvalue()
    assert [line for line in LINES.splitlines() if line not in shown] == []
    assert "base: denoising" in shown and "7/20" in shown
    assert "rounds" in shown and "2/2" in shown
    assert shown.rstrip("\n").endswith("\x1b[2K")  # the bars are gone
    assert capsys.readouterr().out == ""


def test_an_undecided_race_grows_beyond_its_repeats(monkeypatch):
    terminal = look_at(monkeypatch)
    with make_turns("live", repeats=2) as turns:
        turns.turn(Told("base", 3, 1000.0))
    assert "3/3" in terminal.getvalue()


def test_quiet_is_quiet_and_json_is_events(capsys):
    race(make_turns("quiet", repeats=8))
    assert capsys.readouterr() == ("", "")
    race(make_turns("json", repeats=8))
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events[3:5]] == ["step", "turn_finished"]
    assert {event["arm"] for event in events} == {"base", "new"}
    assert err == "W-NOT-INTERLEAVED: [new] does not fit\n"
