"""Several machines make one run: commands on this one, in folders of their own, with stand-in ranks."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest
from launch.conftest import small_plan
from launch.test_run import gone, half_written, wait_until

from difftool.errors import PlanError
from difftool.launch.environment import VISIBLE
from difftool.launch.meeting import Channel
from difftool.launch.node import Node
from difftool.launch.node_meeting import NodeMeeting, network, rank_environment
from difftool.launch.signals import SignalWatch
from difftool.launch.start import start_worker
from difftool.planning.plan import Degrees, Nodes

TESTS = Path(__file__).parents[1]
PROCESS = Path(__file__).with_name("world_process.py")
PROMPTS = ("-p", "a red circle", "-p", "a blue circle", "-p", "a red ring", "-p", "a blue ring")


def free_port():
    """One that nobody gets meanwhile: those that systems choose by themselves are above 32767."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Machines:
    """Commands that run as nodes, and how they ended."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.processes = []

    def start(self, behaviour, *arguments, nodes=(0, 1), own=None, coming_s=300, **environment):
        """`own` gives single nodes arguments of their own."""
        for node in nodes:
            place = self.folder / f"node-{node}"
            place.mkdir()
            command = [sys.executable, str(PROCESS), behaviour, str(coming_s), "generate", "builtin:shapes-image"]
            where = ["--nnodes", "2", "--node-rank", str(node), "--rdzv-endpoint", f"127.0.0.1:{self.port}"]
            given = [*where, "--dp-size", "4", *arguments, *(own or {}).get(node, ())]
            self.processes.append(
                subprocess.Popen(
                    [*command, *PROMPTS, "--device", "cpu", "-o", str(self.folder / "out"), *given],
                    cwd=place,
                    env={**os.environ, "PYTHONPATH": f"{TESTS.parent}", "TMPDIR": str(place), "NO_COLOR": "1"}
                    | environment,
                    stdout=PIPE,
                    stderr=PIPE,
                    text=True,
                )
            )
        return self.processes

    def ends(self):
        """Exit codes, stdout and stderr, by node."""
        said = [process.communicate(timeout=300) for process in self.processes]
        for place, process in zip(sorted(self.folder.glob("node-*")), self.processes, strict=True):
            assert process.returncode == -signal.SIGKILL or not list(place.glob("difftool-ranks-*"))
        return [process.returncode for process in self.processes], [out for out, _ in said], [err for _, err in said]

    def until_step(self):
        """Reads the events of a run in the middle of its items; the process ids of the four ranks."""
        pids, stepping = {}, set()
        while len(stepping) < 4:
            event = json.loads(self.processes[0].stdout.readline())
            stepping |= {event["rank"]} if event["event"] == "step" else set()
            pids |= {event["rank"]: event["pid"]} if event["event"] == "started" else {}
        return [pids[rank] for rank in range(4)]


@pytest.fixture
def machines(tmp_path):
    made = Machines(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def test_the_ranks_of_two_nodes_are_one_run(machines):
    machines.start("succeed", "--json")
    codes, out, err = machines.ends()
    assert (codes, out[1], err[0]) == ([0, 0], "", "")
    assert err[1] == (
        f"node 1 of 2: joins node 0 at 127.0.0.1:{machines.port}, which tells how the run goes\n"
        "node 1 of 2: node 0 ended the run with exit code 0\n"
    )
    events = [json.loads(line) for line in out[0].splitlines()]
    assert sorted(event["rank"] for event in events if event["event"] == "item_finished") == [0, 1, 2, 3]
    (records,) = (machines.folder / "out" / ".difftool").iterdir()
    assert len((records / "journal.jsonl").read_text().splitlines()) == 4
    assert not any((machines.folder / "node-1").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        ("error@3", 1, "internal error: ValueError: the rope broke (rank 3, denoising, item fourth)"),
        ("kill@2", 6, "rank 2 was killed by SIGKILL, likely out of host memory in denoising of item 2, after step 1"),
        ("exit-3@0", 6, "rank 0 exited with status 3 in denoising of item 0, after step 1"),
    ],
)
def test_what_fails_on_one_node_ends_all_and_the_first_one_tells_the_cause(machines, behaviour, code, words):
    machines.start(behaviour, "--quiet")
    codes, out, err = machines.ends()
    assert (codes, out) == ([code, code], ["", ""])
    assert err[0].startswith(f"error: {words}"), err[0]
    assert ("last words of rank" in err[0]) == (code == 6)  # from the log of the node
    assert f"node 0 ended the run with exit code {code}" in err[1] and "error" not in err[1]
    assert not half_written(machines.folder / "out")


@pytest.mark.slow
def test_a_node_that_is_lost_takes_its_ranks_along(machines):
    first, second = machines.start("wait", "--json")
    ranks = machines.until_step()
    second.kill()
    codes, _, err = machines.ends()
    assert codes == [6, -9]
    assert err[0].startswith("error: rank 2 was lost: its node, or the network to it, is gone in denoising of item 2")
    assert wait_until(lambda: all(map(gone, ranks)))


@pytest.mark.slow
def test_the_other_nodes_end_when_the_first_one_is_lost(machines):
    first, second = machines.start("wait", "--json")
    ranks = machines.until_step()
    first.kill()
    assert second.wait(60) == 6
    assert "error: node 0 of the 2 at 127.0.0.1" in second.stderr.read()
    assert wait_until(lambda: all(map(gone, ranks)))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("who", [0, 1])
def test_a_request_to_end_on_any_node_ends_the_run(machines, number, code, who):
    machines.start("wait", "--json")
    ranks = machines.until_step()
    machines.processes[who].send_signal(number)
    codes, _, err = machines.ends()
    assert codes == [code, code], err
    assert wait_until(lambda: all(map(gone, ranks))) and not half_written(machines.folder / "out")


@pytest.mark.slow
def test_the_stacks_of_another_nodes_ranks_are_shown_where_a_run_hangs(machines):
    machines.start("hang", "--quiet", "-s", "launch.stall_timeout_s=3")
    codes, _, err = machines.ends()
    assert codes == [7, 7]
    # all hang: the first of them is named, unless they were looked at when the patience with all was over
    assert re.search(r"^error: no progress( of rank \d)? for 3 s in denoising of item \d", err[0])
    for rank in range(4):
        assert f"| rank {rank}:\n" in err[0]
    assert err[0].count("in hang_there") == 4


def test_a_node_that_does_not_come_is_told_with_those_that_did(machines):
    machines.start("succeed", nodes=(0,), coming_s=2)
    codes, _, err = machines.ends()
    assert codes == [6]
    where = f"127.0.0.1:{machines.port}"
    assert err[0].splitlines() == [
        f"listens at {where} (127.0.0.1); waits up to 2 s for node 1",
        f"error: node 1 of the 2 did not come to {where} in 2 s (here: 0)",
        f"hint: start the same command there with --node-rank; it must reach 127.0.0.1 port {machines.port}",
    ]
    assert not (machines.folder / "out").exists()


@pytest.mark.slow
def test_a_first_node_that_does_not_come_is_told(machines):
    machines.start("succeed", nodes=(1,), coming_s=2)
    codes, _, err = machines.ends()
    assert codes == [6]
    assert f"error: node 0 of the 2 did not come to 127.0.0.1:{machines.port} in 2 s\n" in err[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--num-inference-steps", "3"],
            "error: node 1: this recipe is not that of node 0\n  | item 0: sampling.num_inference_steps is 3, was 20",
        ),
        (["--dp-size", "2", "--ulysses-degree", "2"], "error: node 1: its parallel degrees are not those of node 0"),
        (["--nnodes", "4"], "error: node 1 was started with nnodes=4, node 0 with nnodes=2"),
    ],
)
def test_a_node_with_another_recipe_is_refused(machines, arguments, words):
    machines.start("succeed", own={1: arguments})
    codes, _, err = machines.ends()
    assert codes == [3, 3]
    assert words in err[0]
    assert not list(machines.folder.glob("out/*.png"))


@pytest.mark.slow
def test_seeds_that_the_first_node_draws_are_those_of_all(machines):
    machines.start("succeed", "--seed", "random", "--json")
    assert machines.ends()[0] == [0, 0]


@pytest.mark.slow
def test_under_srun_the_recipe_need_not_say_which_node_this_is(machines):
    for node in (0, 1):
        told = {"SLURM_PROCID": str(node), "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
        place = machines.folder / f"node-{node}"
        place.mkdir()
        command = [sys.executable, str(PROCESS), "succeed", "300", "generate", "builtin:shapes-image", *PROMPTS]
        given = ["--dp-size", "4", "--rdzv-endpoint", f"127.0.0.1:{machines.port}", "-o", str(machines.folder / "out")]
        environment = {**os.environ, **told, "PYTHONPATH": f"{TESTS.parent}", "TMPDIR": str(place)}
        machines.processes.append(
            subprocess.Popen([*command, *given, "--json"], env=environment, stdout=PIPE, stderr=PIPE, text=True)
        )
    codes, out, err = machines.ends()
    assert codes == [0, 0], err
    (plan,) = machines.folder.glob("out/.difftool/*/plan.json")
    assert json.loads(plan.read_text())["provenance"]["launch.nnodes"] == "srun"


TWO = Nodes(count=2, rank=1, host="127.0.0.1", port=1)


class Member:
    """Another node than the first, in a thread, and the first one's end of its channel."""

    def __init__(self, folder, **own):
        here, there = socket.socketpair()
        self.channel, self.far = Channel(here), Channel(there)
        degrees = Degrees(num_gpus=2, dp=2, cfg=1, ring=1, ulysses=1, tp=1, hsdp="none")
        self.plan = small_plan(folder, degrees=degrees, nodes=TWO)
        self.node = Node(self.far, TWO, SignalWatch(), ("false",))
        self.thread = threading.Thread(target=lambda: self.node.serve(lambda plan: plan.model_copy(update=own)))
        self.thread.start()

    def answer(self, records):
        self.channel.send({"plan": self.plan.model_dump_json(by_alias=True), "todo": "{}", "records": str(records)})
        answers = []
        assert wait_until(lambda: answers.extend(self.channel.read(0.1)) or answers, 60.0)
        self.channel.send({"end": 0})
        self.thread.join()
        self.channel.close()
        self.far.close()
        return answers[0]


def test_a_message_that_comes_in_parts_is_waited_for():
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b'{"node": ')
        rest = threading.Timer(0.2, there.sendall, [b"1}\n"])
        rest.start()
        assert Channel(here).read(60.0) == [{"node": 1}]
        rest.join()


def test_a_node_that_writes_media_must_see_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("difftool.launch.node.SHARED_S", 0.0)
    answer = Member(tmp_path).answer(tmp_path / "records")
    assert answer["refused"] == f"it does not see {tmp_path}/records, and writes media too (dp=2)"
    assert answer["hint"] == "put output.dir where all nodes have the same files, or use dp=1"
    (tmp_path / "records").mkdir()
    member = Member(tmp_path)
    (tmp_path / "records" / "plan.json").write_text(member.plan.model_dump_json(by_alias=True))
    assert member.answer(tmp_path / "records") == {"ready": True}


def test_a_node_takes_the_devices_that_its_own_command_names(tmp_path, monkeypatch):
    for name in VISIBLE:
        monkeypatch.delenv(name, raising=False)
    member = Member(tmp_path, devices=(6,))
    (tmp_path / "plan.json").write_text(member.plan.model_dump_json(by_alias=True))
    assert member.answer(tmp_path) == {"ready": True}
    assert rank_environment({}, member.node._plan)["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    refused = Member(tmp_path, devices=(6,)).answer(tmp_path)["refused"]
    assert refused.startswith("launch.devices=[6], and CUDA_VISIBLE_DEVICES=0,1 is set: ")


def test_a_session_runs_on_one_machine(tmp_path):
    plan = small_plan(tmp_path, nodes=TWO)
    with pytest.raises(PlanError, match="only `difftool generate` runs on several machines"):
        start_worker(("false",), plan, tmp_path / "log", plan_file=None, hurry=lambda: False)


def meeting(host="127.0.0.1", port=None):
    return NodeMeeting(Nodes(count=2, rank=0, host=host, port=port or free_port()))


def listening():
    found = psutil.Process().net_connections("inet")
    return {connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN}


def test_only_the_address_that_was_asked_for_listens():
    before = listening()  # what other tests in this process may have left open
    with meeting() as found:
        assert listening() - before == {("127.0.0.1", found.nodes.port)}


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("192.0.2.1", "node 0 cannot listen there"),
        ("0.0.0.0", "is every address, which no other node can go to"),
        ("no-such-host.invalid", "no-such-host.invalid is no name here"),
    ],
)
def test_an_endpoint_that_the_first_node_cannot_listen_at_is_refused(host, words):
    with pytest.raises(PlanError, match=f"launch.rdzv_endpoint={host}:29400") as caught:
        meeting(host, 29400)
    assert words in caught.value.message and caught.value.hint


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(PlanError, match="cannot listen") as caught:
        meeting(port=server.getsockname()[1])
    assert caught.value.hint == "choose another port"


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"node": "x"}\n', b""])
def test_a_stranger_at_the_endpoint_is_left_alone(words, monkeypatch):
    monkeypatch.setattr("difftool.launch.node_meeting.HELLO_S", 0.2)
    with meeting() as found:
        stranger = socket.create_connection(("127.0.0.1", found.nodes.port))
        stranger.sendall(words)
        stranger.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 2
        monkeypatch.setattr(found, "_until", deadline)
        with pytest.raises(Exception, match="did not come"):
            found.gather()
        assert found.missing == [1]
        stranger.close()


def test_ranks_stay_on_the_interface_of_the_endpoint_unless_the_user_names_another():
    card = "lo0" if sys.platform == "darwin" else "lo"
    assert network({}, "127.0.0.1")["GLOO_SOCKET_IFNAME"] == card
    assert network({"NCCL_SOCKET_IFNAME": "ib0"}, "127.0.0.1")["NCCL_SOCKET_IFNAME"] == "ib0"
