"""What is seen during a run, on a terminal and without one."""

import io
import re
import time

import pytest

from difftool.cli.progress import JsonLines, LiveBars, PlainLines, Quiet, choose_mode
from difftool.cli.summary import StageTable
from difftool.launch.events import (
    ComponentLoaded,
    ItemFinished,
    ItemStarted,
    Loaded,
    LoadStarted,
    Output,
    StageFinished,
    StageStarted,
    Step,
)


def item(phase="sample", number=0):
    values = {"id": "red", "output": 0, "prompt": "a red\ncircle", "seed": 7, "sample": 0, "steps": 2}
    return ItemStarted(item=number, items=2, phase=phase, **values)


RUN = [
    LoadStarted(),
    ComponentLoaded(name="transformer", detail="2.8M bf16 -> fp32", seconds=0.25),
    Loaded(seconds=0.5),
    item("warmup"),
    StageStarted(item=0, stage="denoising"),
    StageFinished(item=0, stage="denoising", ms=900.0),
    ItemFinished(item=0, total_ms=900.0),
    item(),
    StageStarted(item=0, stage="denoising"),
    Step(item=0, step=0, steps=2),
    Step(item=0, step=1, steps=2),
    StageFinished(item=0, stage="denoising", ms=40.0),
    Output(item=0, path="/elsewhere/red.png", sha256="00", size=3),
    ItemFinished(item=0, total_ms=41.0),
]


def show(listener, events=RUN):
    with listener:
        for event in events:
            listener.take(event)


def test_plain_lines_say_each_stage_on_stderr_and_each_medium_on_stdout(capsys):
    show(PlainLines())
    out, err = capsys.readouterr()
    assert out == "/elsewhere/red.png\n"
    assert err == (
        "loads transformer 2.8M bf16 -> fp32 in 0.2 s\n"
        "loaded in 0.5 s\n"
        "[1/2] warm-up red, seed 7: a red circle\n"
        "[1/2] warm-up denoising 900.0 ms\n"
        "[1/2] red, seed 7: a red circle\n"
        "[1/2] denoising 40.0 ms\n"
    )


def test_a_long_silence_is_broken_by_a_heartbeat_that_says_where_the_run_is(capsys):
    with PlainLines(heartbeat_s=0.05) as lines:
        lines.take(item())
        lines.take(Step(item=0, step=0, steps=2))
        deadline, said = time.monotonic() + 60, re.compile(r"^\[1/2\] denoising, step 1 of 2: no news for \d+ s$", re.M)
        heard = ""
        while not said.search(heard) and time.monotonic() < deadline:
            time.sleep(0.02)
            heard += capsys.readouterr().err
    assert said.search(heard), heard


def test_quiet_prints_only_media(capsys):
    show(Quiet())
    assert capsys.readouterr() == ("/elsewhere/red.png\n", "")


def test_a_medium_below_the_current_folder_is_named_from_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    show(Quiet(), [Output(item=0, path=str(tmp_path / "outputs" / "red.png"), sha256="00", size=3)])
    assert capsys.readouterr().out == "outputs/red.png\n"


def test_json_prints_every_event_and_nothing_else(capsys):
    show(JsonLines(), RUN[:2])
    assert capsys.readouterr() == (
        '{"event":"load_started"}\n'
        '{"event":"component_loaded","name":"transformer","detail":"2.8M bf16 -> fp32","seconds":0.25}\n',
        "",
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_live_on_a_terminal_and_the_media_follow_them(capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    show(LiveBars())
    assert capsys.readouterr().out == "/elsewhere/red.png\n"
    assert "red: a red circle" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()


def test_no_color_takes_the_colours_out_of_the_bars(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    show(LiveBars())
    assert "\x1b[3" not in terminal.getvalue()  # 30 to 38 are the foreground colours


@pytest.mark.parametrize(
    ("terminal", "term", "given", "mode"),
    [
        (True, "xterm", {}, "live"),
        (True, "dumb", {}, "plain"),
        (True, "xterm", {"verbose": True}, "plain"),
        (False, "xterm", {}, "plain"),
        (True, "xterm", {"quiet": True}, "quiet"),
        (True, "xterm", {"as_json": True}, "json"),
    ],
)
def test_the_mode_follows_the_terminal_and_the_flags(monkeypatch, terminal, term, given, mode):
    monkeypatch.setattr("sys.stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.setenv("TERM", term)
    assert choose_mode(**{"as_json": False, "quiet": False, "verbose": False, **given}) == mode


def test_the_table_holds_the_middle_of_the_samples_without_warm_up():
    table = StageTable()
    again = [item(number=1), StageFinished(item=1, stage="denoising", ms=60.0), ItemFinished(item=1, total_ms=61.0)]
    for event in [*RUN, *again]:
        table.take(event)
    assert table.text() == ("stage      ms, median of 2\ndenoising             50.0\ntotal                 51.0")


def test_the_table_of_nothing_is_empty():
    assert StageTable().text() == ""


def of_rank(rank, *events):
    return [event.model_copy(update={"rank": rank}) for event in events]


TWO_RANKS = [
    *of_rank(0, Loaded(seconds=0.5), item(number=0)),
    *of_rank(1, Loaded(seconds=0.7), item("warmup", number=1)),
    *of_rank(0, StageFinished(item=0, stage="denoising", ms=40.0), ItemFinished(item=0, total_ms=41.0)),
    *of_rank(1, StageFinished(item=1, stage="denoising", ms=900.0), ItemFinished(item=1, total_ms=901.0)),
]


def test_plain_lines_of_many_ranks_name_the_item_of_each(capsys):
    show(PlainLines(), TWO_RANKS)
    assert capsys.readouterr().err == (
        "loaded in 0.5 s\n"
        "[1/2] red, seed 7: a red circle\n"
        "[2/2] warm-up red, seed 7: a red circle\n"
        "[1/2] denoising 40.0 ms\n"
        "[2/2] warm-up denoising 900.0 ms\n"
    )


def test_the_table_leaves_out_the_warm_up_of_each_rank():
    table = StageTable()
    for event in TWO_RANKS:
        table.take(event)
    assert "900" not in table.text() and "41.0" in table.text()
