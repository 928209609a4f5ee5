"""`launch.devices` reaches every worker as the devices it sees, however its ranks are started."""

import os
import socket

import pytest
from launch.conftest import small_plan

from difftool.errors import PlanError
from difftool.launch.environment import VISIBLE, check_devices, worker_environment
from difftool.launch.meeting import Channel
from difftool.launch.member import Member
from difftool.launch.node_meeting import rank_environment
from difftool.launch.signals import SignalWatch
from difftool.launch.start import assemble_worker, start_worker


def shown(environment):
    return {name: value for name, value in environment.items() if name in VISIBLE}


def test_ranks_see_the_devices_named_in_their_order(tmp_path):
    named = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "5,4")
    assert shown(worker_environment({}, threads=1, offline=True, devices=(5, 4))) == named
    assert shown(rank_environment({}, small_plan(tmp_path, devices=(5, 4)))) == named


def test_without_any_named_they_see_what_the_shell_shows(tmp_path):
    shell = {"CUDA_VISIBLE_DEVICES": "GPU-1f2e", "HOME": "/root"}
    assert shown(worker_environment(shell, threads=1, offline=True)) == {"CUDA_VISIBLE_DEVICES": "GPU-1f2e"}
    check_devices(shell, None)


def test_a_rank_of_an_outer_launcher_sees_them_too(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    near, far = socket.socketpair()
    with near, far:
        member = Member(Channel(far), 1, 2, SignalWatch())
        command = ["sh", "-c", "echo rank $LOCAL_RANK of $CUDA_VISIBLE_DEVICES"]
        pinned = {"threads": 1, "offline": True, "devices": [5, 4]}
        log = tmp_path / "log"
        member._obey({"start": {"command": command, "folder": str(tmp_path), "log": str(log), "pinned": pinned}})
        member._worker.wait()
    assert log.read_text() == "rank 1 of 5,4\n"


@pytest.mark.parametrize("name", VISIBLE)
def test_devices_are_not_named_where_the_shell_has_chosen_some(tmp_path, monkeypatch, name):
    for other in VISIBLE:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "0,1")
    plan, log = small_plan(tmp_path, devices=(0,)), tmp_path / "log"
    ways = (
        lambda: start_worker(("false",), plan, log, plan_file=None, hurry=lambda: False),
        lambda: assemble_worker(("false",), plan, log, plan_file=log, meeting=None, hurry=None, on_signal=None),
    )
    for start in ways:
        with pytest.raises(PlanError) as caught:
            start()
        assert caught.value.message == (
            f"launch.devices=[0], and {name}=0,1 is set: which devices these count is not clear"
        )
        assert caught.value.hint == f"use one of them: unset {name}, or leave --devices out"
    assert not log.exists() and name in os.environ
