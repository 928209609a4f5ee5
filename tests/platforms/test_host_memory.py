"""Memory of the host that is page-locked for a CUDA device: exactly what is asked for, and told where there is none."""

import gc

import pytest
import torch

from difftool.errors import OutOfMemoryError, PlanError
from difftool.platforms.base import current
from difftool.platforms.host_memory import PAGE, HostStore, lock, whole_pages


class Stream:
    """A device's queue of copies, which are done at once."""

    def __init__(self, device):
        self.waited = 0

    def synchronize(self):
        self.waited += 1


class Runtime:
    """CUDA's answers, as far as locking asks for them."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def cudaHostRegister(self, *asked):
        self.asked.append(asked)
        return self.answer

    def cudaHostUnregister(self, *asked):
        self.asked.append(asked)
        return 0

    def cudaGetErrorString(self, error):
        return {2: "out of memory", 801: "operation not supported"}[error]


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 10 * PAGE + 7])
def test_what_is_locked_has_its_pages_for_itself(size):
    room = whole_pages(size)
    around = room.untyped_storage()
    assert room.numel() == size and room.data_ptr() % PAGE == 0
    end = room.data_ptr() + -(-size // PAGE) * PAGE
    assert around.data_ptr() <= room.data_ptr() and end <= around.data_ptr() + around.nbytes()
    assert around.nbytes() < size + 2 * PAGE


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [(2, OutOfMemoryError, "out of memory"), (801, PlanError, "operation not supported")],
)
def test_memory_that_cannot_be_locked_is_told_with_the_way_out(answer, error, reason):
    room, runtime = whole_pages(3 * 2**20), Runtime(answer)
    with pytest.raises(error) as caught:
        lock(room, runtime)
    assert caught.value.message == (
        f"3.0 MiB more of the host's memory cannot be page-locked for weights that wait: {reason}"
    )
    assert caught.value.hint == "use launch.pin_memory: false, or send fewer weights away"
    lock(room, granted := Runtime(0))
    assert granted.asked == [(room.data_ptr(), 3 * 2**20, 1)]


def test_what_was_locked_is_unlocked_once_it_is_let_go_and_no_copy_reads_it(monkeypatch):
    runtime, streams = Runtime(0), []
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams.append(Stream(device)) or streams[-1])
    store = HostStore(torch.device("cpu"), pinned=True)
    nothing, kept = store.keep(store.room(0)), store.keep(room := store.room(5))
    place = room.data_ptr()
    assert runtime.asked == [(place, 5, 1)] and streams[0].waited == 0
    assert kept.read() is room and streams[0].waited == 1
    del nothing, kept, room
    assert runtime.asked == [(place, 5, 1), (place,)] and streams[0].waited == 2
    other = HostStore(torch.device("cpu"), pinned=False)
    other.keep(other.room(5))
    assert len(runtime.asked) == 2


@pytest.mark.gpu
def test_a_gpu_sees_memory_as_locked_while_it_is_kept_and_its_place_can_be_locked_again():
    store = HostStore(current("cuda").device, pinned=True)
    numbers = torch.arange(3 * PAGE + 5).to(torch.uint8)
    room = store.room(numbers.numel())
    room.copy_(numbers)
    for _ in range(2):
        assert not room.is_pinned()
        kept = store.keep(room)
        assert room.is_pinned() and kept.read().is_pinned()
        assert torch.equal(kept.fetch()().cpu(), numbers)
        kept.read()[0] = numbers[0] = 7
        kept.write(room)
        assert torch.equal(kept.fetch()().cpu(), numbers)
        del kept
        gc.collect()
    assert not room.is_pinned()


@pytest.mark.gpu
def test_nothing_at_all_can_be_kept_too():
    store = HostStore(current("cuda").device, pinned=True)
    assert store.keep(store.room(0)).fetch()().numel() == 0
