"""Every way a worker can end is one result or one error, and nothing stays alive or half-written behind it."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from launch.conftest import STANDIN

from difftool import launch
from difftool.errors import (
    DifftoolError,
    Interrupted,
    OutOfMemoryError,
    RecipeError,
    Stalled,
    WeightsError,
    WorkerCrashed,
)
from difftool.launch.failure import WorkerReport
from difftool.worker import describe

PLACE = "in denoising of item red, after step 1 of 2"


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # also between two looks at it
        return True


def half_written(folder: Path) -> list[Path]:
    return list(folder.rglob("*.difftool-tmp"))


def test_a_run_returns_its_media_and_its_perf_dump(workshop):
    result = workshop.run("succeed")
    assert [(media.item, media.path.name) for media in result.media] == [(0, "red.png"), (1, "blue.png")]
    assert result.media[0].path.read_text() == "a red circle 7"
    assert result.perf == (workshop.records / "perf.json").absolute()
    assert workshop.names()[:5] == ["started", "load_started", "component_loaded", "loaded", "item_started"]
    assert workshop.names()[-2:] == ["perf", "finished"]


def test_the_worker_gets_pinned_threads_no_input_and_no_network(workshop, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "no_such_kernel")  # the recipe says which
    result = workshop.run("environment", threads=3, devices=(4, 5))
    log = result.log.read_text()
    assert "DIFFUSERS_ATTN_BACKEND" not in log
    for line in (
        '"OMP_NUM_THREADS": "3"',
        '"MKL_NUM_THREADS": "3"',
        '"OPENBLAS_NUM_THREADS": "3"',
        '"PYTHONUNBUFFERED": "1"',
        '"HF_HUB_DISABLE_TELEMETRY": "1"',
        '"TOKENIZERS_PARALLELISM": "false"',
        '"HF_HUB_OFFLINE": "1"',
        '"CUDA_VISIBLE_DEVICES": "4,5"',
        '"HIP_VISIBLE_DEVICES": "4,5"',
        "stdin: ''",
    ):
        assert line in log


def test_verbose_copies_the_log_to_stderr(workshop, capsys):
    result = workshop.run("environment", verbose=True)
    assert capsys.readouterr().err == result.log.read_text()


def test_an_error_the_worker_reports_is_raised_as_its_own_class(workshop):
    with pytest.raises(WeightsError) as caught:
        workshop.run("weights")
    assert caught.value.message == "transformer.safetensors ends early (denoising, item red)"
    assert caught.value.hint == "fetch it again"
    assert isinstance(caught.value.__cause__, WorkerReport)
    assert caught.value.__cause__.event.stage == "denoising"
    assert "error" not in workshop.names()
    assert not half_written(workshop.folder)


def test_a_refusal_only_the_worker_can_give_is_still_a_recipe_error(workshop):
    with pytest.raises(RecipeError) as caught:
        workshop.run("recipe")
    assert caught.value.message == "the checkpoint has no negative branch (denoising, item red)"


def test_a_refusal_is_called_an_error_once_wherever_it_is_told():
    refusal = RecipeError("no branch")
    assert (str(refusal), describe(refusal)) == ("error: no branch", {"kind": "RecipeError", "message": "no branch"})
    assert str(RecipeError(describe(refusal)["message"])) == str(refusal)


def test_running_out_of_memory_is_known_by_its_exit_code(workshop):
    with pytest.raises(OutOfMemoryError) as caught:
        workshop.run("memory")
    assert (caught.value.exit_code, caught.value.hint) == (5, "use a smaller size")


def test_an_unexpected_exception_is_an_internal_error_with_its_traceback(workshop):
    with pytest.raises(DifftoolError) as caught:
        workshop.run("bug")
    assert type(caught.value) is DifftoolError and caught.value.exit_code == 1
    assert caught.value.message == textwrap.dedent(
        """\
        internal error: KeyError: 'rope' (denoising, item red)
          | Traceback (most recent call last):
          |   File "denoising.py", line 7, in step
          | KeyError: 'rope'"""
    )
    assert caught.value.hint == f"the worker's log is {workshop.records / 'worker.log'}"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("exit-3", f"the worker exited with status 3 {PLACE}\n  | last words of the worker"),
        ("kill", f"the worker was killed by SIGKILL, likely out of host memory {PLACE}\n  | last words of the worker"),
        ("segfault", f"the worker was killed by SIGSEGV (segmentation fault) {PLACE}\n  | last words of the worker"),
        ("exit-0", "the worker exited with status 0 before it was done before the first item"),
        ("cut-a-line", "the worker exited with status 3 before the first item"),
    ],
)
def test_a_worker_that_dies_without_a_word_is_told_by_its_status_and_place(workshop, behaviour, words):
    with pytest.raises(WorkerCrashed) as caught:
        workshop.run(behaviour)
    assert caught.value.message == words
    assert caught.value.hint == f"the whole log is {workshop.records / 'worker.log'}"
    assert not half_written(workshop.folder)


def test_a_worker_that_cannot_import_shows_why(workshop):
    with pytest.raises(WorkerCrashed, match="ModuleNotFoundError: No module named 'no_such_module_of_difftool'"):
        workshop.run("import-error")


def test_a_stalled_worker_is_ended_and_its_stacks_are_shown(workshop):
    with pytest.raises(Stalled) as caught:
        workshop.run("hang", stall_timeout_s=2.0)  # more than a busy machine takes from one event to the next
    assert caught.value.message.startswith(f"no progress for 2 s {PLACE}; the worker was ended\n")
    assert "in hang_in_the_denoiser" in caught.value.message
    assert gone(workshop.events[0].pid)
    assert not half_written(workshop.folder)


LATE = (
    "import runpy, sys, time; time.sleep(3); sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], None, '__main__')"
)


@pytest.mark.parametrize(("start_s", "stalls"), [(60.0, False), (0.0, True)])
def test_starting_a_process_is_no_stall(tmp_path, make_small_plan, monkeypatch, start_s, stalls):
    monkeypatch.setattr(sys.modules["difftool.launch.supervise"], "START_S", start_s)
    plan = make_small_plan(tmp_path / "out", stall_timeout_s=2.0)
    worker = (sys.executable, "-c", LATE, str(STANDIN), "succeed")
    with pytest.raises(Stalled, match="before the first item") if stalls else contextlib.nullcontext():
        launch.run(plan, launch.open_records(plan), on_event=lambda event: None, worker=worker)


def test_a_worker_deaf_to_sigterm_is_killed(workshop, monkeypatch):
    monkeypatch.setattr("difftool.launch.child.GRACE_S", 0.2)
    with pytest.raises(Stalled):
        workshop.run("deaf", stall_timeout_s=2.0)
    assert gone(workshop.events[0].pid)


@pytest.mark.parametrize("behaviour", ["hang-with-grandchild", "leave-grandchild"])
def test_what_the_worker_started_ends_with_it(workshop, behaviour):
    if behaviour == "leave-grandchild":
        workshop.run(behaviour)
    else:
        with pytest.raises(Stalled):
            workshop.run(behaviour, stall_timeout_s=2.0)
    grandchild = int((workshop.records / "grandchild").read_text())
    assert wait_until(lambda: gone(grandchild))


def test_a_crash_after_the_end_does_not_undo_a_finished_run(workshop):
    assert len(workshop.run("crash-after-the-end").media) == 2


def test_a_line_that_is_no_event_is_our_bug(workshop):
    with pytest.raises(DifftoolError, match="the worker sent .*not a number.*, which is no event") as caught:
        workshop.run("garble")
    assert caught.value.exit_code == 1
    assert gone(workshop.events[0].pid)


def test_an_error_of_the_listener_ends_the_worker(workshop):
    def refuse(event):
        workshop.folder.joinpath("pid").write_text(str(event.pid))
        raise BrokenPipeError

    workshop.events = type("Refusing", (list,), {"append": staticmethod(refuse)})()
    with pytest.raises(BrokenPipeError):
        workshop.run("hang")
    assert gone(int(workshop.folder.joinpath("pid").read_text()))


def test_half_written_files_of_another_run_stay(workshop):
    workshop.folder.mkdir()
    other = workshop.folder / ".other.png.difftool-tmp"
    other.write_bytes(b"being written")
    os.utime(other, (1, 1))
    with pytest.raises(WorkerCrashed):
        workshop.run("exit-3")
    assert half_written(workshop.folder) == [other]


LAUNCHER = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import STANDIN, small_plan
from difftool import launch
from difftool.errors import DifftoolError
from difftool.launch import child
from difftool.launch.signals import SignalWatch

note = SignalWatch._note

def noted(watch, number, frame):
    note(watch, number, frame)
    os.write(1, b"noted\\n")

SignalWatch._note = noted
child.GRACE_S = 600.0
plan = small_plan(Path({folder!r}))
try:
    launch.run(plan, launch.open_records(plan), worker=(sys.executable, str(STANDIN), {behaviour!r}),
               on_event=lambda event: print(event.event, getattr(event, "pid", ""), flush=True))
except DifftoolError as error:
    print(type(error).__name__, error.message, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("numbers", "behaviour", "ending", "code"),
    [
        ([signal.SIGINT], "hang", f"Interrupted interrupted {PLACE}", 130),
        ([signal.SIGTERM], "hang", f"Terminated ended by SIGTERM {PLACE}", 143),
        ([signal.SIGINT, signal.SIGINT], "deaf", f"Interrupted interrupted {PLACE}", 130),
    ],
    ids=["ctrl-c", "sigterm", "ctrl-c twice kills a deaf worker"],
)
def test_a_request_to_end_stops_the_worker(tmp_path, numbers, behaviour, ending, code):
    script = LAUNCHER.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "out"), behaviour=behaviour)
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(launcher.stdout.readline().split()[1])
    said = iter(launcher.stdout.readline, "")
    try:
        assert "step \n" in said
        for number in numbers:
            launcher.send_signal(number)
            assert "noted\n" in said  # so that two signals are two, not one pending twice
        launcher.wait(30)  # the grace is longer: only a second request ends a deaf worker
    finally:
        launcher.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    with launcher.stdout as rest:
        assert (rest.read().strip(), launcher.returncode) == (ending, code)
    assert gone(worker)
    assert not half_written(tmp_path)


def test_terminated_is_a_kind_of_interruption():
    from difftool.launch.failure import Terminated

    assert issubclass(Terminated, Interrupted) and Terminated.exit_code == 143


def wait_until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
