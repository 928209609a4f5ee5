"""What a session promises around its worker, with a stand-in for it: who waits, how it ends, what is refused."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from launch.conftest import STANDIN
from launch.test_run import gone, wait_until
from tiny import ROOT

import difftool
from difftool.errors import DifftoolError, RecipeError, WorkerCrashed
from difftool.launch.living import LivingWorker
from difftool.recipe.load import load_recipe
from difftool.session import Session


def open_session(behaviours="succeed", **recipe):
    loaded = load_recipe({"model": "builtin:shapes-image", **recipe})
    return Session(loaded, worker=LivingWorker((sys.executable, str(STANDIN), behaviours)))


@pytest.fixture
def session():
    with open_session() as session:
        yield session


def pid_of(session):
    heard = []
    session.generate(prompt="a red circle", on_event=heard.append)
    return heard[0].pid


def test_results_stand_in_the_order_of_the_prompts(session):
    result = session.generate(prompts=[{"prompt": "a red circle", "seed": 3}, {"prompt": "a blue star"}])
    assert [image.getpixel((0, 0)) for image in result.images] == [(50, 50, 50), (51, 51, 51)]
    assert result.seeds == [3, 43] and result.paths == []


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("shapes-imag", {}, "error: no file, built-in recipe or model is called 'shapes-imag'"),
        ("shapes-image", {"paralel.dp": 2}, "overrides['paralel.dp']: error: paralel.dp: unknown recipe key"),
        ("shapes-image", {"launch.device": "gpu"}, "overrides['launch.device']: error: launch.device: 'gpu' is not"),
        ({"model": "builtin:none"}, {}, "argument: error: model.path: "),
        ("shapes-image", {"output.format": "mp4"}, "overrides['output.format']: error: output.format=mp4: "),
        (
            "shapes-image",
            {"quality.reference.without": ["stages"]},
            "overrides['quality.reference.without']: error: quality.reference.without: a session makes no references; ",
        ),
    ],
)
def test_what_no_request_can_mend_is_refused_when_the_session_is_opened(source, overrides, message):
    with pytest.raises(RecipeError) as caught:
        difftool.load(source, overrides=overrides)
    assert str(caught.value).startswith(message)


def test_what_a_request_may_bring_may_be_missing_before(session):
    with pytest.raises(RecipeError, match="there is nothing to make"):
        session.generate()
    assert session.generate(prompt="a red circle").images


def test_references_are_those_of_the_request(tmp_path):
    with open_session(quality={"reference": {"dir": str(tmp_path)}}) as session:
        with pytest.raises(RecipeError, match="has no a_red_circle-42.npz or .png for item 0"):
            session.generate(prompt="a red circle")
        (tmp_path / "a_red_circle-42.npz").touch()
        assert session.generate(prompt="a red circle").images


def test_a_recipe_object_a_mapping_and_a_path_mean_the_same(tmp_path):
    written = {"model": "builtin:shapes-image", "sampling": {"prompt": "a red circle", "seed": 9}}
    path = tmp_path / "red.yaml"
    path.write_text("{model: builtin:shapes-image, sampling: {prompt: a red circle, seed: 9}}")
    for source in (written, path, str(path), difftool.Recipe.model_validate(written)):
        with difftool.load(source, overrides={"sampling.height": 96}) as session:
            assert session._loaded.recipe.sampling.seed == 9 and session._loaded.recipe.sampling.height == 96


def test_the_file_is_read_once(tmp_path):
    path = tmp_path / "red.yaml"
    path.write_text("{model: builtin:shapes-image, sampling: {prompt: a red circle}}")
    with open_session(extends=str(path)) as session:
        path.unlink()
        assert session.generate().images


def test_standard_input_is_not_read(session):
    with pytest.raises(RecipeError, match="generate.prompts=….: error: .*a session does not read standard input"):
        session.generate(prompts={"file": "-"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "profile(steps=0) records nothing; use 1 or more"),
        ({"steps": 3, "all_stages": True}, "profile(all_stages=True) records every step; leave steps out"),
        ({"num_inference_steps": 1}, "sampling.num_inference_steps=1 leaves no step to record after the one to warm "),
        ({"promt": "x"}, "profile(promt=…): error: sampling.promt: unknown recipe key"),
    ],
)
def test_a_profile_that_would_record_nothing_is_refused_and_costs_nothing(session, given, message):
    with pytest.raises(RecipeError) as caught:
        session.profile(**{"prompt": "a red circle", **given})
    assert message in str(caught.value) and session._worker._worker is None


def test_a_second_thread_waits_for_the_first(session):
    spans = []

    def generate():
        events = []
        session.generate(prompt="a red circle", on_event=lambda event: events.append(time.monotonic()))
        spans.append((events[0], events[-1]))

    threads = [threading.Thread(target=generate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans.sort()
    assert len(spans) == 4 and all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))


def test_a_listener_cannot_use_its_own_session(session):
    with pytest.raises(DifftoolError, match="used by the on_event of its own generate"):
        session.generate(prompt="a red circle", on_event=lambda event: session.close())
    assert session.generate(prompt="a red circle").images


def test_a_closed_session_has_no_process_and_no_files_and_says_so():
    session = open_session()
    pid, folder = pid_of(session), session._folder
    session.close()
    assert gone(pid) and not folder.exists()
    with pytest.raises(DifftoolError, match="the session is closed"):
        session.generate(prompt="a red circle")
    session.close()


def test_a_session_that_is_dropped_closes_itself():
    session = open_session()
    pid, folder = pid_of(session), session._folder
    del session
    assert wait_until(lambda: gone(pid)) and not folder.exists()


def test_the_records_of_a_failed_request_are_kept_until_the_session_ends():
    with open_session("kill") as session:
        with pytest.raises(WorkerCrashed) as caught:
            session.generate(prompt="a red circle")
        log = Path(caught.value.hint.removeprefix("the whole log is "))
        assert "last words of the worker" in log.read_text()
    assert not log.exists()


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_the_worker_and_reaches_the_callers_own_handler(number, raised):
    def interrupt(event):
        if event.event == "started":
            pids.append(event.pid)
        if event.event == "step":
            os.kill(os.getpid(), number)

    pids: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with open_session("hang,succeed") as session:
            with pytest.raises(raised):
                session.generate(prompt="a red circle", on_event=interrupt)
            assert gone(pids[0])
            assert session._folder.exists() is (number == signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_after_ctrl_c_the_session_goes_on():
    with open_session("succeed,hang") as session:
        session.generate(prompt="a red circle")
        with pytest.raises(KeyboardInterrupt):
            session.generate(
                prompt="a red circle",
                on_event=lambda event: os.kill(os.getpid(), signal.SIGINT) if event.event == "step" else None,
            )
        assert session.generate(prompt="a red circle").images


SCRIPT = """
import os, signal, sys, threading
sys.path.insert(0, {tests!r})
from test_session import open_session, pid_of

session = open_session()
print(pid_of(session), session._folder, flush=True)
{end}
"""

FORK = """
if os.fork() == 0:
    sys.exit()
os.wait()
session.generate(prompt="a red circle", on_event=lambda event: event.event == "started" and sys.exit("a new worker"))
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError", 1),
        (FORK, 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
    ids=["the end of the script", "exit", "an error", "a forked child ends first", "killed"],
)
def test_nothing_outlives_the_process_of_a_session(tmp_path, end, code):
    script = SCRIPT.format(tests=str(Path(__file__).parent), end=end)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    pid, folder = done.stdout.split()
    assert wait_until(lambda: gone(int(pid)))
    assert Path(folder).exists() is (code == -9)  # who is killed tidies nothing up
