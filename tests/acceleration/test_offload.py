"""Weights that are away while nothing needs them come back bit for bit, and are away in between."""

from contextlib import ExitStack, contextmanager

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from difftool.acceleration import offload
from difftool.acceleration.residence import ALIGNED, LINE, places
from difftool.acceleration.waiting import DiskBytes, open_store
from difftool.components.loaded import Components
from difftool.components.lora import Active, LoraSet
from difftool.errors import OutputError, PlanError
from difftool.facts import Applied, Refused
from difftool.platforms.base import current


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("table", torch.ones(width))  # stays

    def forward(self, states):
        return states + self.linear(states) * self.table


class Model(nn.Module):
    """Blocks between two layers, of which one has weights that are not in one row."""

    def __init__(self, blocks=5, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, width, 1).to(memory_format=torch.channels_last)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.last = nn.Linear(width, 1).to(torch.bfloat16)
        self.skipped = set()
        self.requires_grad_(False)

    def forward(self, states):
        states = self.first(states[:, :, None, None]).flatten(1)
        for i, block in enumerate(self.blocks):
            states = states if i in self.skipped else block(states)
        return self.last(states.bfloat16())


@pytest.fixture
def given():
    return torch.randn(3, 1, generator=torch.Generator().manual_seed(1))


def sent_away(model, mode, **options):
    components = Components({"transformer": model}, None)
    asked = Applied({"denoising": {"name": mode, **options}})
    return offload.apply(components, {"denoising": ("transformer",)}, asked, current("cpu"), pinned=True)


def mapped(shape, dtype, at):
    """A tensor that begins so many bytes into a line, as those of a mapped file may."""
    size = torch.Size(shape).numel() * dtype.itemsize
    run = torch.zeros(size + 2 * LINE, dtype=torch.uint8)
    begins = -run.data_ptr() % LINE + at
    return run[begins : begins + size].view(dtype).view(shape)


@contextmanager
def opened(away, model):
    """Within, all of its weights are here, on the host."""
    with ExitStack() as ends:
        for opening, _ in away.parts(dict(model.named_parameters())):
            ends.enter_context(opening)
        yield


def held(module):
    """Bytes of its parameters that are here."""
    return sum(parameter.nbytes for parameter in module.parameters())


@pytest.mark.parametrize("mode", ["after_use", "module", "layerwise"])
def test_what_comes_back_is_what_went(given, mode):
    model, plain = Model(), Model()
    expected = plain(given)
    kept = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    strides = {name: tensor.stride() for name, tensor in plain.named_parameters()}
    applied, away = sent_away(model, mode)
    for _ in range(2):
        with away.visit(["transformer"]):
            assert torch.equal(model(given), expected)
    with opened(away, model):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
        assert {name: tensor.stride() for name, tensor in model.named_parameters()} == strides
    assert applied.detail["transformer"]["waits"] == "disk"


@pytest.mark.parametrize("mode", ["after_use", "module"])
def test_nothing_is_here_between_two_stages(given, mode):
    model = Model()
    whole = held(model)
    applied, away = sent_away(model, mode)
    assert held(model) == 0 and applied.detail["transformer"]["bytes"] >= whole
    with away.visit(["transformer"]):
        model(given)
        assert held(model) == whole
    assert held(model) == 0
    with away.visit(["vae"]), pytest.raises(RuntimeError):
        model.first(given[:, :, None, None])  # out of turn


def test_blocks_come_one_by_one_with_the_next_ones_on_their_way(given):
    model, expected = Model(), Model()(given)
    block, outside = held(model.blocks[0]), held(model.first) + held(model.last)
    _, away = sent_away(model, "layerwise", prefetch=2)
    seen = []
    for each in model.blocks:
        each.register_forward_pre_hook(lambda *_: seen.append(held(model)))
    with away.visit(["transformer"]):
        assert torch.equal(model(given), expected)
    assert seen == [outside + block] * 5 and held(model) == outside
    assert away.moved()["transformer"]["comings"] == 5 + 2  # two for a step that did not come


def test_blocks_that_stay_are_spread_between_those_that_move(given):
    assert offload.streamed(8, 0) == list(range(8))
    assert offload.streamed(8, 4) == [1, 3, 5, 7]
    assert offload.streamed(5, 3) == [2, 4]
    model, expected = Model(), Model()(given)
    block = held(model.blocks[0])
    outside = held(model.first) + held(model.last)
    applied, away = sent_away(model, "layerwise", resident_blocks=3, prefetch=0)
    assert held(model) == outside + 3 * block
    with away.visit(["transformer"]):
        assert torch.equal(model(given), expected)
    assert (applied.detail["transformer"]["blocks"], applied.detail["transformer"]["of"]) == (2, 5)
    assert away.moved()["transformer"]["comings"] == 2


@pytest.mark.parametrize("skipped", [{0}, {1, 2}, {4}, {0, 1, 2, 3, 4}], ids=str)
def test_blocks_that_are_skipped_leave_nothing_behind(given, skipped):
    model, plain = Model(), Model()
    model.skipped = plain.skipped = skipped
    outside = held(model.first) + held(model.last)
    _, away = sent_away(model, "layerwise")
    for _ in range(2):
        with away.visit(["transformer"]):
            assert torch.equal(model(given), plain(given))
        assert held(model) == outside


def test_of_modules_that_take_turns_the_one_that_is_called_is_here(given):
    modules = {"transformer": Model(), "transformer_2": Model()}
    asked, roles = Applied({"denoising": {"name": "module"}}), {"denoising": ("transformer", "transformer_2")}
    _, away = offload.apply(Components(dict(modules), None), roles, asked, current("cpu"), pinned=True)
    first, second = modules.values()
    with away.visit(["transformer", "transformer_2"]):
        assert held(first) == held(second) == 0
        first(given)
        assert held(first) and not held(second)
        second(given)
        assert held(second) and not held(first)
        first(given)
    assert held(first) == held(second) == 0


def test_what_two_modules_share_stays_where_one_of_them_stays(given):
    model, plain, other = Model(), Model(), nn.Linear(8, 8).requires_grad_(False)
    other.weight = model.blocks[0].linear.weight
    components = Components({"transformer": model, "vae": other}, None)
    asked = Applied({"denoising": {"name": "after_use"}})
    _, away = offload.apply(components, {"denoising": ("transformer",)}, asked, current("cpu"), pinned=True)
    assert other.weight.numel() == 64
    with away.visit(["transformer"]):
        assert torch.equal(model(given), plain(given))
    assert other.weight.numel() == 64


def test_what_two_modules_that_wait_share_stays(given):
    first, second, plain = Model(), Model(), Model()
    second.blocks[0].linear.weight = first.blocks[0].linear.weight
    components = Components({"transformer": first, "transformer_2": second}, None)
    asked, roles = Applied({"denoising": {"name": "module"}}), {"denoising": ("transformer", "transformer_2")}
    _, away = offload.apply(components, roles, asked, current("cpu"), pinned=True)
    with away.visit(["transformer", "transformer_2"]):
        assert torch.equal(first(given), plain(given)) and torch.equal(second(given), plain(given))


def test_an_error_in_a_stage_sends_its_weights_away_again(given):
    model = Model()
    _, away = sent_away(model, "after_use")
    with pytest.raises(ValueError, match="broke"), away.visit(["transformer"]):
        raise ValueError("broke")
    assert held(model) == 0


def test_weights_may_be_changed_while_they_are_away(given):
    model, plain = Model(), Model()
    _, away = sent_away(model, "layerwise")
    with opened(away, model):
        for changed in (model, plain):
            changed.blocks[2].linear.weight.mul_(2.0)
            changed.last.weight.mul_(2.0)
    with away.visit(["transformer"]):
        assert torch.equal(model(given), plain(given))


@pytest.mark.parametrize("mode", ["after_use", "module", "layerwise"])
def test_weights_that_wait_are_weights_that_a_rank_holds(given, mode):
    model = Model()
    components, whole = Components({"transformer": model}, None), held(model)
    asked = Applied({"denoising": {"name": mode}})
    _, away = offload.apply(components, {"denoising": ("transformer",)}, asked, current("cpu"), pinned=True)
    counts = [components.weight_bytes() + away.waiting_bytes()]
    with away.visit(["transformer"]):
        counts.append(components.weight_bytes() + away.waiting_bytes())
        model(given)
        counts.append(components.weight_bytes() + away.waiting_bytes())
    assert components.weight_bytes() < whole and counts == [whole] * 3


def lora_of(folder, *layers):
    """A file that changes the weights of these layers, 8 by 8."""
    up, down = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(2))
    pairs = {f"transformer.{layer}.lora_{one}.weight" for layer in layers for one in "AB"}
    save_file(
        {name: down.T.contiguous() if "lora_A" in name else up.clone() for name in pairs}, folder / "a.safetensors"
    )
    return folder / "a.safetensors"


@pytest.mark.parametrize("mode", ["after_use", "layerwise"])
def test_of_weights_that_wait_a_lora_opens_what_it_changes_one_part_after_the_other(given, tmp_path, monkeypatch, mode):
    model, plain = Model(), Model()
    base, file = plain(given), lora_of(tmp_path, "blocks.1.linear", "blocks.3.linear")
    sets = [LoraSet({"transformer": each}, denoisers=("transformer",), original={}) for each in (model, plain)]
    _, away = sent_away(model, mode)
    sets[0].change_in(away.parts)
    asked, here = [], []
    read, write = DiskBytes.read, DiskBytes.write
    monkeypatch.setattr(DiskBytes, "read", lambda kept: asked.append(len(here)) or here.append(kept) or read(kept))
    monkeypatch.setattr(DiskBytes, "write", lambda kept, changed: here.remove(kept) or write(kept, changed))

    def switched(*active):
        for loras in sets:
            loras.load("a", file)
            loras.set(active)
        return asked.count(0), len(asked)

    assert switched() == (0, 0)
    assert switched(Active("a", 0.5)) == (2, 2)
    assert switched(Active("a", 0.5)) == (2, 2)
    monkeypatch.undo()
    with away.visit(["transformer"]):
        assert torch.equal(model(given), plain(given)) and not torch.equal(plain(given), base)
    switched()
    with away.visit(["transformer"]):
        assert torch.equal(model(given), base)


def test_a_module_without_blocks_cannot_be_streamed():
    with pytest.raises(PlanError, match="stages.denoising.offload=layerwise: Linear repeats no blocks") as caught:
        sent_away(nn.Linear(2, 2), "layerwise")
    assert caught.value.hint == "use stages.denoising.offload=after_use"
    with pytest.raises(PlanError, match="resident_blocks=5 leaves none of 5 blocks to stream"):
        sent_away(Model(), "layerwise", resident_blocks=5)


def test_a_full_disk_is_told(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("difftool.acceleration.waiting.os.pwritev", full)
    with pytest.raises(OutputError, match="cannot be written to .*: No space left on device") as caught:
        sent_away(Model(), "after_use")
    assert "TMPDIR" in caught.value.hint


def test_where_weights_wait_is_the_disk_on_a_device_without_memory_of_its_own():
    assert open_store(current("cpu"), pinned=True).name == "disk"


@pytest.mark.parametrize(
    ("device", "begin"), [("cuda", [0, 256, 1280]), ("mps", [0, 256, 1280]), ("cpu", [8, 304, 1288])]
)
def test_weights_come_to_a_device_aligned_as_new_ones_and_to_a_cpu_as_they_were(device, begin):
    tensors = [mapped([50], torch.float32, 8), mapped([10, 40], torch.bfloat16, 48), mapped([3], torch.float32, 8)]
    found = places(tensors, torch.device(device))
    assert [place.start for place in found] == begin


@pytest.mark.gpu
@pytest.mark.parametrize("pinned", [True, False])
def test_weights_stream_from_the_host_to_a_gpu(given, pinned):
    platform = current("cuda")
    model, plain, given = Model(blocks=9, width=512), Model(blocks=9, width=512).cuda(), given.cuda()
    asked, roles = Applied({"denoising": {"name": "layerwise", "prefetch": 2}}), {"denoising": ("transformer",)}
    applied, away = offload.apply(Components({"transformer": model}, None), roles, asked, platform, pinned=pinned)
    assert applied.detail["transformer"]["waits"] == ("pinned host memory" if pinned else "host memory")
    for _ in range(20):
        with away.visit(["transformer"]):
            assert torch.equal(model(given), plain(given))


@pytest.mark.gpu
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("mode", ["after_use", "layerwise"])
def test_weights_of_a_mapped_file_come_to_a_gpu_as_well_aligned_as_new_ones(given, mode, pinned):
    model, plain = Model(width=64), Model(width=64)
    for parameter in model.blocks.parameters():
        parameter.data = mapped(parameter.shape, parameter.dtype, 8).copy_(parameter)
    asked, roles = Applied({"denoising": {"name": mode}}), {"denoising": ("transformer",)}
    components = Components({"transformer": model}, None)
    _, away = offload.apply(components, roles, asked, current("cuda"), pinned=pinned)
    found = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda block, _: found.extend(p.data_ptr() for p in block.parameters()))
    with away.visit(["transformer"]):
        assert torch.equal(model(given.cuda()), plain.cuda()(given.cuda()))
    assert len(found) == 10 and all(found) and not any(pointer % ALIGNED for pointer in found)


def test_a_placement_that_another_setting_bars_is_refused():
    barred = {"denoising": {"layerwise": "stages.denoising.compile=full"}}
    refused = offload.resolve({"denoising": "layerwise"}, None, {}, barred=barred)
    why = "stages.denoising.offload=layerwise does not go with stages.denoising.compile=full; use one of them"
    assert refused == Refused(why)
    assert offload.resolve({"denoising": "module"}, None, {}, barred=barred).detail == {"denoising": {"name": "module"}}
