"""The timer against a clock that the test moves, and a sleep that must show up where it happened."""

import time

import pytest
import torch
from families.running import assemble_case, batch_for, context_for

from difftool.profiling.timers import Timer
from difftool.stages.denoising import DenoisingStage


class FakePlatform:
    """A device whose time is a number; work is queued and only done by `synchronize`."""

    name = "cpu"
    device = torch.device("cpu")

    def __init__(self):
        self.now = 0.0
        self.synchronisations = 0

    def mark(self):
        return self.now

    def elapsed_ms(self, start, end):
        return end - start

    def synchronize(self):
        self.synchronisations += 1

    def reset_peak_memory(self):
        self.peak = 0.0

    def memory(self):
        return {"host_mb": 1.0, "peak_host_mb": 2.0}


def test_stages_and_steps_are_read_off_the_device_clock():
    platform = FakePlatform()
    timer = Timer(platform)
    with timer.sample() as timings:
        with timer.stage("text_encoding"):
            platform.now += 5
        with timer.stage("denoising"):
            platform.now += 1
            timer.step()
            for ms in (10, 30, 20):
                platform.now += ms
                timer.step()
        platform.now += 2
    assert timings.stages == {"text_encoding": 5, "denoising": 61}
    assert timings.steps == [10, 30, 20]
    assert timings.total == 68
    assert set(timings.memory) == {"after_text_encoding", "after_denoising"}


def test_a_stage_synchronises_once_and_a_step_never():
    platform = FakePlatform()
    timer = Timer(platform)
    with timer.sample():
        before = platform.synchronisations
        with timer.stage("denoising"):
            for _ in range(10):
                timer.step()
        assert platform.synchronisations == before + 1


def test_samples_do_not_share_readings():
    timer = Timer(FakePlatform())
    for _ in range(2):
        with timer.sample() as timings, timer.stage("denoising"):
            timer.step()
            timer.step()
    assert timings.steps == [0.0]


@pytest.mark.parametrize("slow", [0, 2])
def test_a_sleep_in_one_step_shows_up_in_that_step(monkeypatch, slow):
    assembled = assemble_case("flux1-dev")
    one_step = DenoisingStage.one_step

    def sleepy(self, batch, ctx, calls, latents, when, i):
        if i == slow:
            time.sleep(0.5)  # far above what a step takes
        return one_step(self, batch, ctx, calls, latents, when, i)

    monkeypatch.setattr(DenoisingStage, "one_step", sleepy)
    ctx = context_for(assembled)
    assembled.pipeline(batch_for(assembled), ctx)
    steps = ctx.timer.timings.steps
    assert len(steps) == 4 and steps[slow] >= 500
    assert sum(steps) <= ctx.timer.timings.stages["denoising"]  # it is in no other step as well
