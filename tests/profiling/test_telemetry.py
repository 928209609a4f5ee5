"""What is read beside the times: processors that others take, and what nvidia-smi says, by a program in its place."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from difftool.platforms import nvidia_smi
from difftool.platforms.nvidia_smi import Reading, Stream, limits, parse
from difftool.profiling import environment, telemetry
from difftool.profiling.environment import describe_environment
from difftool.profiling.recording import _rank_skew_pct
from difftool.profiling.telemetry import Watch

LINE = "1980, 61, 698.41, 0x0000000000000044"


def test_a_line_of_nvidia_smi_is_a_reading():
    assert parse(LINE, 5.0) == Reading(5.0, 1980.0, 61.0, 698.41, ("sw_power_cap", "hw_thermal_slowdown"))
    assert parse("1980, 61, [N/A], 0x0000000000000001", 0.0) == Reading(0.0, 1980.0, 61.0, None, ())


@pytest.mark.parametrize(
    "line", ['Field "clocks_event_reasons.active" is not a valid field to query.', "", "1, 2, 3, [N/A]", "No devices"]
)
def test_what_is_no_reading_is_passed_over(line):
    assert parse(line, 0.0) is None


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts a program that runs this Python in the place of nvidia-smi."""

    def put(code):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!{sys.executable}\nimport sys, time\n{code}\n")
        program.chmod(0o755)
        monkeypatch.setattr(nvidia_smi, "PROGRAM", str(program))

    return put


def test_the_limits_of_a_device_are_asked_for_by_its_id(smi):
    smi(
        "assert '--id=GPU-7' in sys.argv, sys.argv\n"
        "assert '--query-gpu=driver_version,power.limit,clocks.max.sm,ecc.mode.current,mig.mode.current' in sys.argv\n"
        "print('580.65.06, 700.00, 1980, Enabled, [N/A]')"
    )
    found = {"driver": "580.65.06", "power_limit_w": 700.0, "clock_max_mhz": 1980.0, "ecc": "Enabled", "mig": "[N/A]"}
    assert limits("GPU-7") == found


@pytest.mark.parametrize("code", ["sys.exit(9)", "print('one, two')", None])
def test_limits_that_cannot_be_read_are_left_out(smi, monkeypatch, code):
    if code is None:
        monkeypatch.setattr(nvidia_smi, "PROGRAM", "no-such-program")
    else:
        smi(code)
    assert limits("GPU-7") == {}


def test_a_stream_gives_what_was_read_since_a_time_and_ends_its_program(smi):
    smi(f"for i in range(3): print('{LINE}', flush=True)\ntime.sleep(600)")
    stream = Stream("GPU-7")
    process = stream._process
    while len(found := stream.since(0.0)) < 3:
        time.sleep(0.01)
    assert [reading.clock_mhz for reading in found] == [1980.0] * 3
    assert stream.since(time.perf_counter()) == []
    stream.close()
    assert process.returncode is not None


def test_without_nvidia_smi_there_is_no_reading(monkeypatch):
    monkeypatch.setattr(nvidia_smi, "PROGRAM", "no-such-program")
    stream = Stream("GPU-7")
    assert stream.since(0.0) == []
    stream.close()


class Machine:
    """A clock and processor times that the test moves."""

    now, busy, own = 100.0, 1000.0, 50.0

    def times(self):
        return SimpleNamespace(user=self.busy - 1.0, system=0.5, nice=0.0, steal=0.5, idle=9e9)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: machine.now)
    monkeypatch.setattr(telemetry.psutil, "cpu_times", machine.times)
    monkeypatch.setattr(telemetry, "_relatives", lambda: ["me"])
    monkeypatch.setattr(telemetry, "_seconds", lambda process: machine.own)
    return machine


def test_what_others_take_is_the_machine_s_time_without_the_run_s(machine):
    watch = Watch()
    watch.start()
    machine.now, machine.busy, machine.own = 104.0, 1014.0, 58.0  # in 4 s: 14 s of processors, 8 of them ours
    assert watch.read().other_cpus == pytest.approx(1.5)
    machine.now = 104.1
    watch.start()
    machine.now, machine.busy = 104.2, 1014.2
    assert watch.read().other_cpus is None  # too short for ticks of 10 ms


def test_a_sample_has_the_readings_of_its_own_time(machine):
    reasons = ((), ("hw_slowdown",), ("sw_power_cap",))
    readings = [Reading(t, 1000.0 + t, 50.0 + t, None, r) for t, r in zip((99.0, 101.0, 103.0), reasons, strict=True)]
    stream = SimpleNamespace(since=lambda start: [reading for reading in readings if reading.time >= start])
    watch = Watch(stream)
    watch.start()
    machine.now = 104.0
    found = watch.read()
    assert (found.clock_mhz, found.temperature_c, found.power_w) == (1102.0, 153.0, None)
    assert found.throttle == ["hw_slowdown", "sw_power_cap"]


def test_the_run_s_own_processes_are_its_launcher_and_the_launcher_s_children():
    sibling = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        code = "from difftool.profiling.telemetry import _relatives\nprint(*(process.pid for process in _relatives()))"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert {os.getpid(), sibling.pid} <= set(map(int, ran.stdout.split()))
    finally:
        sibling.kill()
        sibling.wait()
    assert telemetry._seconds(psutil.Process()) > 0


class Device:
    name = "cuda"

    def __init__(self, **facts):
        self.facts = {"name": "NVIDIA H100", "runtime": "13.0", "driver": "580", "power_limit_w": 700.0, **facts}

    def describe(self):
        return self.facts


def test_hardware_and_software_have_a_fingerprint_each(monkeypatch):
    base = describe_environment(Device())["fingerprint"]
    assert describe_environment(Device())["fingerprint"] == base
    newer = describe_environment(Device(driver="590"))["fingerprint"]
    assert (newer["hardware"], newer["software"] == base["software"]) == (base["hardware"], False)
    capped = describe_environment(Device(power_limit_w=500.0))["fingerprint"]
    assert (capped["software"], capped["hardware"] == base["hardware"]) == (base["software"], False)
    monkeypatch.setattr(environment, "_governor", lambda: "powersave")
    assert describe_environment(Device())["fingerprint"]["hardware"] != base["hardware"]


def test_the_skew_of_ranks_is_how_much_longer_the_slowest_denoised():
    def ranks(*times):
        return [SimpleNamespace(stages_ms={} if ms is None else {"denoising": ms}) for ms in times]

    assert _rank_skew_pct(ranks(100.0, 110.0, 105.0)) == pytest.approx(10.0)
    assert _rank_skew_pct(ranks(100.0)) is None
    assert _rank_skew_pct(ranks(100.0, None)) is None
