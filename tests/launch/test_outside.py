"""The processes that torchrun, srun or mpirun started are the ranks of one run. The variables are set by hand here."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from launch.test_run import gone, half_written, wait_until

from difftool.cli.world import SIZES
from difftool.errors import PlanError
from difftool.launch import pipes
from difftool.launch.outside import LAUNCHERS, MPICH_SIZE, check_alone, read_outside
from difftool.launch.pipes import PrivateFolder, named_folder

TESTS = Path(__file__).parents[1]
PROCESS = Path(__file__).with_name("world_process.py")
PROMPTS = ("-p", "a red circle", "-p", "a blue circle")
PLACE = "in denoising of item 1, after step 1 of 2"


def told(launcher, rank, size):
    """What a launcher tells the process of one rank."""
    return {
        "torchrun": {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        | {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": 29500},
        "srun": {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": size, "SLURM_STEP_NUM_NODES": 1, "SLURM_NTASKS": 8}
        | {"SLURM_LOCALID": rank, "SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0},
        "mpirun": {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": size, "OMPI_COMM_WORLD_LOCAL_SIZE": size}
        | {"OMPI_COMM_WORLD_LOCAL_RANK": rank, "PMIX_NAMESPACE": "x"},
    }[launcher]


class World:
    """Processes of one world, and how they ended."""

    def __init__(self, folder, temporary):
        self.folder = folder
        self.temporary = temporary
        self.processes = []

    def start(self, behaviour, *arguments, launcher="srun", size=2, own=None, coming_s=300, **environment):
        """`own` gives single ranks arguments of their own."""
        for rank in range(size):
            variables = {name: str(value) for name, value in told(launcher, rank, size).items()}
            paths = {"PYTHONPATH": f"{TESTS.parent}", "TMPDIR": str(self.temporary), "NO_COLOR": "1"}
            command = [sys.executable, str(PROCESS), behaviour, str(coming_s), "generate", "builtin:shapes-image"]
            self.processes.append(
                subprocess.Popen(
                    [*command, *PROMPTS, "--device", "cpu", "-o", "out/", *arguments, *(own or {}).get(rank, ())],
                    cwd=self.folder,
                    env={**os.environ, **variables, **paths, **environment},
                    stdout=PIPE,
                    stderr=PIPE,
                    text=True,
                )
            )
        return self.processes

    def ends(self):
        """Exit codes, stdout and stderr, by rank."""
        said = [process.communicate(timeout=300) for process in self.processes]
        assert not any(self.temporary.iterdir())
        return [process.returncode for process in self.processes], [out for out, _ in said], [err for _, err in said]

    def until_step(self):
        """Reads the events of a run in the middle of its items; the process ids of the two ranks."""
        heard = []
        while [event["event"] for event in heard].count("step") < 2:
            heard.append(json.loads(self.processes[0].stdout.readline()))
        return [event["pid"] for event in heard if event["event"] == "started"]


@pytest.fixture
def world(tmp_path):
    with tempfile.TemporaryDirectory() as short:  # the path of a socket may have 100 characters
        world = World(tmp_path, Path(short))
        yield world
        for process in world.processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("launcher", ["torchrun", "srun", "mpirun"])
def test_the_processes_of_a_world_make_one_run(world, launcher):
    world.start("succeed", "--dp-size", "2", "--json", launcher=launcher)
    codes, out, err = world.ends()
    assert (codes, out[1], err) == ([0, 0], "", ["", ""])
    events = [json.loads(line) for line in out[0].splitlines()]
    assert sorted(event["rank"] for event in events if event["event"] == "started") == [0, 1]
    (records,) = (world.folder / "out" / ".difftool").iterdir()
    assert len((records / "journal.jsonl").read_text().splitlines()) == 2


def test_num_gpus_auto_is_the_size_of_the_world(world):
    world.start("succeed", "--dp-size", "2", "--set", "launch.threads=1")
    assert world.ends()[0] == [0, 0]
    (plan,) = world.folder.glob("out/.difftool/*/plan.json")
    made = json.loads(plan.read_text())
    assert made["degrees"]["num_gpus"] == 2 and made["provenance"]["parallel.num_gpus"] == "srun"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            ["--num-gpus", "1"],
            "error: num_gpus=1, but srun started 2 processes\nhint: use srun --ntasks 1, or num_gpus=2\n",
        ),
        (
            ["--dp-size", "3"],
            "error: srun started 2 processes: parallel: num_gpus=2 but dp = 3; free one of them (auto), or use dp=2\n"
            "hint: change the degrees, or the number of processes: srun --ntasks N\n",
        ),
    ],
)
def test_another_number_of_ranks_is_refused_with_both_ways_out(world, asked, words):
    world.start("succeed", *asked)
    assert world.ends() == ([3, 3], ["", ""], [words, ""])
    assert not (world.folder / "out").exists()


def test_what_is_wrong_before_the_run_is_told_once(world):
    world.start("succeed", "--dp-size", "2", "--set", "sampling.sed=1")
    codes, out, err = world.ends()
    assert (codes, out, err[1]) == ([2, 2], ["", ""], "")
    assert "did you mean 'sampling.seed'?" in err[0]


def test_a_dry_run_prints_one_plan(world):
    world.start("succeed", "--dp-size", "2", "--dry-run")
    codes, out, err = world.ends()
    assert (codes, out[1], err) == ([0, 0], "", ["", ""]) and "a blue circle" in out[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        ("error@1", 1, "internal error: ValueError: the rope broke (rank 1, denoising, item blue)"),
        ("exit-3@1", 6, f"rank 1 exited with status 3 {PLACE}"),
        ("kill@1", 6, f"rank 1 was killed by SIGKILL, likely out of host memory {PLACE}"),
        ("segfault@0", 6, "rank 0 was killed by SIGSEGV (segmentation fault) in denoising of item 0"),
    ],
)
def test_what_fails_in_one_rank_is_told_once_and_ends_every_process_alike(world, behaviour, code, words):
    world.start(behaviour, "--dp-size", "2", "--quiet")
    codes, out, err = world.ends()
    assert (codes, out, err[1]) == ([code, code], ["", ""], "")
    assert err[0].startswith(f"error: {words}") and err[0].count("error: ") == 1 + ("internal" in words)
    assert not half_written(world.folder)


@pytest.mark.slow
@pytest.mark.parametrize("then", [None, signal.SIGTERM])
def test_a_process_that_is_killed_is_a_rank_that_died_whatever_the_launcher_does_then(world, then):
    """torchrun ends the others as soon as it sees that one has died."""
    first, second = world.start("wait", "--dp-size", "2", "--json")
    ranks = world.until_step()
    second.kill()
    second.wait()
    killed = time.monotonic()
    if then is not None:
        first.send_signal(then)
    codes, _, err = world.ends()
    assert codes == [6, -9]
    assert err[0].startswith(f"error: rank 1 was killed by SIGKILL, likely out of host memory {PLACE}")
    assert time.monotonic() - killed < 10 and wait_until(lambda: all(map(gone, ranks)))


@pytest.mark.slow
def test_the_others_end_when_the_first_process_is_killed(world):
    first, second = world.start("wait", "--dp-size", "2", "--json")
    ranks = world.until_step()
    first.kill()
    first.wait()
    killed = time.monotonic()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 6 and json.loads(out)["kind"] == "WorkerCrashed"
    assert err == (
        "error: rank 0's process, of the 2 that srun started, ended without a word\n"
        "hint: --resume makes what is left of the run\n"
    )
    assert time.monotonic() - killed < 10 and wait_until(lambda: all(map(gone, ranks)))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("who", [[0, 1], [0], [1]])
def test_a_request_to_end_that_any_process_gets_ends_the_run(world, number, code, who):
    world.start("wait", "--dp-size", "2", "--json")
    ranks = world.until_step()
    for rank in who:
        world.processes[rank].send_signal(number)
    codes, _, err = world.ends()
    assert codes == [code, code] and err[1] == ""
    assert len(err[0].splitlines()) == 1
    assert all(map(gone, ranks)) and not half_written(world.folder)


def test_processes_with_other_arguments_are_not_taken_for_ranks(world):
    world.start("succeed", "--dp-size", "2", own={1: ["--seed", "8"]})
    codes, _, err = world.ends()
    assert codes == [3, 3] and err[1] == ""
    assert "srun started 2 processes with different arguments" in err[0] and "--seed 8" in err[0]


@pytest.mark.slow
def test_a_process_that_does_not_come_is_told(world):
    first, second = world.start("succeed", "--dp-size", "2", coming_s=3)
    second.kill()
    codes, _, err = world.ends()
    assert codes == [6, -9]
    assert err[0].startswith("error: rank 1 of the 2 that srun started did not come in 3 s\nhint: all must run on this")


@pytest.mark.slow
def test_a_first_process_that_does_not_come_is_told(world):
    first, second = world.start("succeed", "--dp-size", "2", coming_s=3)
    first.kill()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 6
    assert err.startswith("error: rank 0 of the 2 that srun started did not come in 3 s\n")


def texts(launcher, rank=0, size=2, **changes):
    return {name: str(value) for name, value in (told(launcher, rank, size) | changes).items() if value is not None}


@pytest.mark.parametrize("launcher", ["torchrun", "srun", "mpirun"])
def test_the_processes_of_one_world_and_no_other_have_its_name(launcher):
    first, second = (read_outside(texts(launcher, rank)) for rank in (0, 1))
    assert (first.launcher, first.rank, second.rank, first.size) == (launcher, 0, 1, 2)
    assert first.name == second.name
    other = {"torchrun": "TORCHELASTIC_RUN_ID", "srun": "SLURM_STEP_ID", "mpirun": "PMIX_NAMESPACE"}[launcher]
    assert read_outside(texts(launcher, **{other: "9"})).name != first.name


def test_the_innermost_launcher_is_the_one_that_counts():
    daemons = texts("srun", 1, 3)
    assert read_outside(daemons | texts("mpirun", 0, 2)).launcher == "mpirun"
    assert read_outside(daemons | texts("torchrun", 0, 2)).launcher == "torchrun"
    assert read_outside(texts("srun", 1, 3) | {"WORLD_SIZE": "3"}).launcher == "srun"  # set by the batch script


def test_the_command_line_looks_for_every_launcher():
    assert set(SIZES) == {known.size for known in LAUNCHERS} | {MPICH_SIZE}


def test_one_process_is_no_world():
    assert read_outside({}) is None
    assert read_outside({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None  # a batch script without srun
    assert read_outside(texts("torchrun", 0, 1)) is None


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (texts("torchrun", size=4, LOCAL_WORLD_SIZE=2), "or start one on each (--nproc-per-node 1)"),
        (texts("mpirun", size=4, OMPI_COMM_WORLD_LOCAL_SIZE=2), "or start one on each (--map-by ppr:1:node)"),
        (texts("srun", size=4, SLURM_STEP_NUM_NODES=2), "or start one on each (--ntasks-per-node 1)"),
        (texts("torchrun", RANK=None, LOCAL_WORLD_SIZE=None), "set RANK, LOCAL_WORLD_SIZE too"),
        (texts("srun", 2), "SLURM_PROCID=2 is none of them"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "start it by torchrun, srun or Open MPI's mpirun"),
    ],
)
def test_a_world_that_cannot_be_one_run_is_refused_with_a_way_out(variables, words):
    with pytest.raises(PlanError, match="started (2|4) processes of this command") as caught:
        read_outside(variables)
    assert words in caught.value.hint
    assert re.search("or run difftool once, with --dp-size [24]: it starts its ranks itself$", caught.value.hint)


def test_several_processes_on_each_of_several_machines_are_refused_once(world):
    world.start("succeed", "--dp-size", "4", size=4, SLURM_STEP_NUM_NODES="2")
    codes, out, err = world.ends()
    assert (codes, out, err[1:]) == ([3] * 4, [""] * 4, [""] * 3)
    assert err[0].startswith("error: srun started 4 processes of this command (SLURM_STEP_NUM_TASKS=4)")


@pytest.mark.parametrize(
    "variables",
    [
        texts("torchrun", 1, LOCAL_WORLD_SIZE=1),
        texts("mpirun", 1, OMPI_COMM_WORLD_LOCAL_SIZE=1),
        texts("srun", 1, SLURM_STEP_NUM_NODES=2),
    ],
)
def test_processes_that_have_a_machine_each_are_nodes(variables):
    outside = read_outside(variables)
    assert (outside.machines, outside.rank, outside.size) == (True, 1, 2)


def test_nodes_need_a_place_to_meet_and_keep_their_numbers(world):
    world.start("succeed", "--dp-size", "2", SLURM_STEP_NUM_NODES="2")
    codes, _, err = world.ends()
    assert codes == [2, 2] and all("nnodes=2 needs rdzv_endpoint: host:port" in text for text in err)


def test_other_numbers_than_the_launchers_are_refused(world):
    asked = ("--dp-size", "2", "--node-rank", "1", "--nnodes", "2", "--rdzv-endpoint", "127.0.0.1:1")
    world.start("succeed", *asked, "--dry-run", SLURM_STEP_NUM_NODES="2")
    codes, _, err = world.ends()
    assert codes == [3, 0]
    assert err[0].startswith("error: launch.node_rank=1, but it is 0 by srun, which started one process on each of 2")


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_what_makes_a_world_of_its_own_is_not_started_inside_another(variable):
    check_alone({variable: "1"})
    with pytest.raises(PlanError, match=f"runs this 8 times .{variable}=8.") as caught:
        check_alone({variable: "8"})
    assert caught.value.hint.startswith("run it once, with dp=8: difftool starts its ranks itself")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


HOLDER = """
import sys, tempfile
from difftool.launch.pipes import PrivateFolder
tempfile.tempdir = sys.argv[1]
folder = PrivateFolder()
(folder.path / "answers-0").touch()
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_the_folder_of_a_killed_launcher_goes_with_the_next_one(temporary):
    command, here = [sys.executable, "-c", HOLDER, str(temporary)], {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=here) as holder:
        left = Path(holder.stdout.readline().strip())
        PrivateFolder().remove()
        assert left.exists()
        holder.kill()
    PrivateFolder().remove()
    assert not any(temporary.iterdir())


def test_a_folder_that_others_may_enter_is_neither_used_nor_removed(temporary, monkeypatch):
    monkeypatch.setattr(pipes, "TAKEN_S", 0.1)
    named_folder("x").mkdir()
    named_folder("x").chmod(0o777)
    assert not pipes.is_private(named_folder("x"))
    with pytest.raises(FileExistsError):
        PrivateFolder("x")
    assert named_folder("x").exists()


def test_a_name_that_is_taken_is_refused(temporary, monkeypatch):
    monkeypatch.setattr(pipes, "TAKEN_S", 0.1)
    folder = PrivateFolder("x")
    with pytest.raises(FileExistsError):
        PrivateFolder("x")
    folder.remove()
    PrivateFolder("x").remove()
