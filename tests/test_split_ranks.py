"""Two ranks that make one picture together: however one fails, both end in time, with its cause and its stack."""

import os

import pytest
from test_multi_rank import ranks_of
from tiny import ROOT, difftool, read_json

REQUEST = ("generate", "builtin:shapes-image", "-p", "a red circle", "--num-inference-steps", "2000", "--device", "cpu")
SPLIT = ("--num-gpus", "2", "--ulysses-degree", "2", "-o", "out/")
STALL_S = 40  # more than any step of loading takes where many tests run
SABOTAGE = """
import os, signal, sys, time
if "difftool.worker" in sys.orig_argv and os.environ.get("RANK") == "1":
    def fail_there():
        {cause}

    if {late}:
        from difftool import engine
        engine._load = lambda *arguments: fail_there()
    else:
        from difftool.stages.denoising import DenoisingStage
        one_step = DenoisingStage.one_step

        def fail(self, *arguments):
            if arguments[-1] == 1:
                fail_there()
            return one_step(self, *arguments)

        DenoisingStage.one_step = fail
"""
KILLED = "error: rank 1 was killed by SIGKILL, likely out of host memory in denoising of item 0, after step 1 of 2000"
STALLED = f"error: no progress for {STALL_S} s"
CAUSES = {  # a rank that is stopped is in launch/test_ranks.py
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", 6, [KILLED]),
    "raising": ("raise ValueError('the rope broke')", 1, ["ValueError: the rope broke (rank 1, denoising, item 0)"]),
    "hung": ("time.sleep(600)", 7, [f"{STALLED} in denoising of item 0, after step 1 of 2000", "in fail_there"]),
    "late": ("time.sleep(600)", 7, [STALLED, "in fail_there"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", CAUSES)
def test_a_rank_that_fails_ends_the_one_that_waits_for_it(tmp_path, how):
    cause, code, words = CAUSES[how]
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE.format(cause=cause, late=how == "late"))
    path, stall = f"{tmp_path}{os.pathsep}{ROOT}", f"launch.stall_timeout_s={STALL_S}"
    done = difftool(*REQUEST, *SPLIT, "-s", stall, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == code, done.stderr
    assert all(text in done.stderr for text in words), done.stderr
    assert "another rank is gone" not in done.stderr.splitlines()[-1]
    (records,) = (tmp_path / "out" / ".difftool").iterdir()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".difftool"]
    assert code != 1 or read_json(records / "perf.json")["error"]["message"] == "the rope broke"
    assert not ranks_of(tmp_path)
