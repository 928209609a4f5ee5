"""A model is read as diffusers reads it, each tensor once, and holds what was read: there is no second copy."""

from collections import Counter
from functools import partial

import diffusers
import pytest
import torch
from components.damaged import build
from families.running import case_named

from difftool.components import read as module
from difftool.components.check import check_component, read_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound") / "model") / "transformer"


def reader(folder, dtype):
    kind = getattr(diffusers, read_config(folder)["_class_name"])
    return module.model_reader(kind, folder, check_component(folder), dtype=dtype, device=CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["flux1-dev", "wan21-t2v", "sd3-turbo"])
def test_it_equals_from_pretrained_in_every_tensor_and_buffer(name, dtype, tmp_path):
    pipe = case_named(name).build()
    pipe.transformer.save_pretrained(tmp_path, max_shard_size="40KB")
    ours = reader(tmp_path, dtype)()
    stock = type(pipe.transformer).from_pretrained(str(tmp_path), torch_dtype=dtype)
    for theirs, found in (
        (stock.state_dict(), ours.state_dict()),
        *[map(dict, (m.named_buffers() for m in (stock, ours)))],
    ):
        assert theirs.keys() == found.keys()
        assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in theirs.items())
    assert ours.config == stock.config and not ours.training


def test_each_tensor_is_read_once_and_kept_as_it_was_read(sharded, monkeypatch):
    opened, count = module.safe_open, Counter()

    class Counting:
        def __init__(self, *arguments, **options):
            self.file = opened(*arguments, **options)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            count[name] += 1
            return self.file.get_tensor(name)

    places = {}

    def noting(read, *arguments, **cuts):
        found = read(*arguments, **cuts)
        places.update({name: tensor.data_ptr() for name, tensor in found.items()})
        return found

    monkeypatch.setattr(module, "safe_open", Counting)
    monkeypatch.setattr(module, "read_tensors", partial(noting, module.read_tensors))
    model = reader(sharded, torch.bfloat16)()
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == places
    assert set(count.values()) == {1} and count.keys() == places.keys()


def test_nothing_is_allocated_or_read_before_the_reader_is_called(sharded, monkeypatch):
    monkeypatch.setattr(module, "safe_open", lambda *arguments, **options: pytest.fail("it opened a file"))
    reader(sharded, torch.float32)


def test_readers_share_a_file_out_in_runs_of_limited_size(sharded, monkeypatch):
    monkeypatch.setattr(module, "PART", 20_000)
    stored = check_component(sharded).tensors
    runs = list(module.parts(stored, stored))
    assert [name for run in runs for name in run] == list(stored)
    for run in runs:
        assert len({stored[name].file for name in run}) == 1
        assert len(run) == 1 or sum(stored[name].size for name in run) <= 20_000
    assert len(runs) > len(check_component(sharded).files)
