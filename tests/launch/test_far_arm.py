"""The near end of an arm that another environment's difftool runs: what it tells, and every way that one can end."""

import json
import sys
from pathlib import Path

import pytest
from report.dumps import dump

from difftool.errors import OutOfMemoryError, PlanError, WorkerCrashed
from difftool.launch.arm import Turn
from difftool.launch.far_arm import FarArm
from difftool.planning.arms import ArmSpec
from difftool.recipe.overrides import Override
from difftool.report.measured import DumpError

FAR_SIDE = """#!{python}
import json, os, sys
from pathlib import Path

folder, answers = Path({folder!r}), json.loads({answers!r})
for line in sys.stdin:
    with (folder / "told").open("a") as file:
        file.write(line)
    with (folder / "environment").open("w") as file:
        file.write(json.dumps([sys.argv[1:], os.environ.get("PYTHONPATH"), os.environ.get("PYTHONSAFEPATH")]))
    if not answers:
        sys.exit(7)
    for answer in answers.pop(0):
        print(json.dumps(answer), flush=True)
"""
OVERRIDES = (Override("sampling.prompt", "a red circle", "-p"), Override("sampling.seed", "7", "--set …", parse=True))


@pytest.fixture
def far(tmp_path):
    """An arm whose far side answers so: a list of lines for each that it is told."""
    arms = []

    def start(*answers):
        python = tmp_path / "far-python"
        said = json.dumps([[{"event": "ready", "records": str(tmp_path)}], *answers])
        python.write_text(FAR_SIDE.format(python=sys.executable, folder=str(tmp_path), answers=said))
        python.chmod(0o755)
        arms.append(FarArm(ArmSpec("old", "r.yaml", OVERRIDES, str(python)), save_output=False))
        return arms[-1]

    yield start
    for arm in arms:
        arm.rest()


def told(folder: Path):
    return [json.loads(line) for line in (folder / "told").read_text().splitlines()]


def made(folder: Path, **changes) -> dict:
    (folder / "perf.json").write_text(dump(**changes).model_dump_json(by_alias=True))
    return {"event": "made", "perf": str(folder / "perf.json")}


def test_it_tells_the_arm_and_then_its_turns(far, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    heard = []
    arm = far([{"event": "started", "pid": 7}, {"event": "of-the-future"}, made(tmp_path)])
    found = arm.make(Turn(repeat=3, warmup=1), heard.append)
    assert (arm.records, found.total_duration_ms) == (tmp_path, 130.0)
    assert [event.event for event in heard] == ["started"]  # what this version does not know is left out
    overrides = [["sampling.prompt", "a red circle", "-p", False], ["sampling.seed", "7", "--set …", True]]
    first = {"name": "old", "recipe": "r.yaml", "overrides": overrides, "save_output": False}
    assert told(tmp_path) == [first, {"repeat": 3, "warmup": 1}]
    # the other environment's difftool, whatever the current folder and PYTHONPATH hold
    command = ["-m", "difftool.launch.far_arm"]
    assert json.loads((tmp_path / "environment").read_text()) == [command, None, "1"]


def test_its_failure_is_ours(far):
    arm = far([{"event": "error", "kind": "MemoryError", "exit_code": 5, "message": "no room", "hint": "use less"}])
    with pytest.raises(OutOfMemoryError) as caught:
        arm.make(Turn(repeat=0), lambda event: None)
    assert (caught.value.message, caught.value.hint) == ("no room", "use less")


def test_its_death_is_told(far):
    with pytest.raises(WorkerCrashed, match="far-python exited with status 7"):
        far().make(Turn(repeat=0), lambda event: None)


def test_a_dump_that_cannot_be_read_is_refused_with_the_reason(far, tmp_path):
    answer = made(tmp_path)
    content = json.loads((tmp_path / "perf.json").read_text())
    (tmp_path / "perf.json").write_text(json.dumps({**content, "of_the_future": 1}))
    with pytest.raises(DumpError, match="of_the_future"):
        far([answer]).make(Turn(repeat=0), lambda event: None)


def test_after_a_rest_it_starts_again(far, tmp_path):
    arm = far([made(tmp_path)])
    arm.make(Turn(repeat=0), lambda event: None)
    arm.rest()
    arm.make(Turn(repeat=1), lambda event: None)
    assert [entry.get("repeat", entry.get("name")) for entry in told(tmp_path)] == ["old", 0, "old", 1]


def test_an_interpreter_without_difftool_is_refused():
    spec = ArmSpec("old", "r.yaml", (), "/bin/false")
    with pytest.raises(PlanError, match="arm old: /bin/false has no difftool that takes part"):
        FarArm(spec, save_output=True)
