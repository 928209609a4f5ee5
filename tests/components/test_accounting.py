"""Every parameter is filled once and every tensor used: by names, packed parts and shapes, before any is read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from difftool.components.accounting import WeightSource, account
from difftool.components.headers import Stored
from difftool.components.sources import own_readers
from difftool.errors import PlanError, WeightsError

PACKED = {"qkv": ("q", "k", "v")}


def stored(**shapes):
    return {name.replace("__", "."): Stored(Path("w.safetensors"), "F32", shape, 0) for name, shape in shapes.items()}


def fill(wanted, tensors, **rules):
    return account([(WeightSource("net", **rules), tensors)], {"net": wanted})["net"]


def refusal(*given, **rules):
    with pytest.raises(WeightsError) as error:
        fill(*given, **rules)
    assert error.value.exit_code == 4
    return str(error.value)


def test_names_are_changed_by_prefix_and_rules_in_order():
    rules = {"prefix": "old.", "rename": ((r"^layers\.(\d+)", r"blocks.\1"), (r"\.w$", ".weight"))}
    filled = fill({"blocks.3.weight": (2,)}, stored(old__layers__3__w=(2,)), **rules)
    assert [piece.name for piece in filled["blocks.3.weight"]] == ["old.layers.3.w"]


def test_a_packed_tensor_is_split_by_the_shapes_that_are_wanted():
    filled = fill({"q.w": (4, 2), "k.w": (1, 2), "v.w": (1, 2)}, stored(qkv__w=(6, 2)), packed=PACKED)
    assert {name: (p.start, p.stop) for name, (p,) in filled.items()} == {"q.w": (0, 4), "k.w": (4, 5), "v.w": (5, 6)}


def test_parts_are_stacked_in_the_order_of_the_rule():
    filled = fill({"qkv.w": (6, 2)}, stored(v__w=(1, 2), k__w=(1, 2), q__w=(4, 2)), packed=PACKED)
    assert [piece.name for piece in filled["qkv.w"]] == ["q.w", "k.w", "v.w"]


def test_what_is_left_over_on_both_sides_is_listed_with_the_nearest_name():
    said = refusal({"blocks.0.weight": (2,), "bias": (2,)}, stored(block__0__weight=(2,), bias=(2,)))
    assert "not filled (1): net.blocks.0.weight (nearest: block.0.weight)" in said
    assert "not used (1): block.0.weight (nearest: blocks.0.weight)" in said


def test_a_tensor_outside_the_prefix_is_not_used_unless_another_source_takes_it():
    tensors = stored(a__w=(1,), b__w=(1,))
    assert "not used (1): b.w" in refusal({"w": (1,)}, tensors, prefix="a.")
    sources = [(WeightSource(name, prefix=f"{name}."), tensors) for name in ("a", "b")]
    assert account(sources, {"a": {"w": (1,)}, "b": {"w": (1,)}}).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("wanted", "tensors", "said"),
    [
        ({"w": (2,)}, {"w": (3,)}, "net.w has shape [2], and there is w [3]"),
        ({"w": (2,)}, {"w": (2,), "x": (2,)}, "net.w is filled twice, the second time by x"),
        ({"q": (2,), "k": (2,), "v": (2,)}, {"qkv": (7,)}, "qkv has 7 rows, and its parts take 6"),
        ({"q": (2,), "k": (2,), "v": (2,)}, {"qkv": (5,)}, "net.v has shape [2], and there is qkv [5]"),
        ({"qkv": (6,)}, {"q": (2,), "k": (2,)}, "net.qkv has shape [6], and there is q [2] and k [2]"),
    ],
)
def test_what_does_not_fit_is_told_with_its_shapes(wanted, tensors, said):
    assert said in refusal(wanted, stored(**tensors), packed=PACKED, rename=(("x", "w"),))


class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("made", torch.arange(3.0), persistent=False)


def test_modules_are_filled_with_the_right_rows_in_the_asked_dtype(tmp_path):
    weight, bias, steps = torch.randn(6, 2), torch.randn(6), torch.arange(3)
    (tmp_path / "all").mkdir()
    save_file({"n.qkv.weight": weight, "n.qkv.bias": bias, "n.steps": steps}, tmp_path / "all" / "x.safetensors")
    source = WeightSource("net", folder="all", prefix="n.", packed=PACKED)
    place = {"dtypes": {"net": torch.bfloat16}, "device": torch.device("cpu")}
    net = own_readers({"net": Net}, [source], tmp_path, **place)["net"]()
    assert torch.equal(net.k.weight, weight[2:4].bfloat16()) and torch.equal(net.v.bias, bias[4:].bfloat16())
    assert torch.equal(net.steps, steps) and torch.equal(net.made, torch.arange(3.0))


def test_a_tensor_is_read_once_in_runs_of_its_file(tmp_path, monkeypatch):
    """Two files, one of them packed, whose tensors are opened together and not each by itself."""
    from difftool.components import read

    whole = Net().state_dict()
    packed = {f"qkv.{part}": torch.cat([whole[f"{name}.{part}"] for name in "qkv"]) for part in ("weight", "bias")}
    (tmp_path / "net").mkdir()
    save_file(packed, tmp_path / "net" / "a.safetensors")
    save_file({"steps": torch.arange(3)}, tmp_path / "net" / "b.safetensors")
    opened, real = [], read.safe_open
    monkeypatch.setattr(read, "safe_open", lambda file, **given: opened.append(file.name) or real(file, **given))
    source = WeightSource("net", packed=PACKED)
    net = own_readers({"net": Net}, [source], tmp_path, dtypes={}, device=torch.device("cpu"))["net"]()
    assert sorted(opened) == ["a.safetensors", "b.safetensors"]
    assert all(torch.equal(value, whole[name]) for name, value in net.state_dict().items() if name != "steps")


def test_numbers_without_a_dimension_and_the_dtypes_of_the_file_are_kept(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.rows = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2))

    (tmp_path / "net").mkdir()
    stored = {"scale": torch.tensor(3.0, dtype=torch.float64), "rows": torch.ones(2, dtype=torch.bfloat16)}
    save_file(stored, tmp_path / "net" / "x.safetensors")
    net = own_readers({"net": Scaled}, [], tmp_path, dtypes={}, device=torch.device("cpu"))["net"]()
    assert all(torch.equal(value, stored[name]) for name, value in net.state_dict().items())
    assert (net.scale.dtype, net.rows.dtype) == (torch.float64, torch.bfloat16)


def test_a_link_that_leaves_the_checkpoint_is_refused(tmp_path):
    (tmp_path / "model" / "net").mkdir(parents=True)
    save_file(Net().state_dict(), tmp_path / "x.safetensors")
    (tmp_path / "model" / "net" / "x.safetensors").symlink_to(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="is a link that leaves"):
        own_readers({"net": Net}, [], tmp_path / "model", dtypes={}, device=torch.device("cpu"))


def test_a_source_of_no_module_is_told(tmp_path):
    with pytest.raises(PlanError, match="weight_sources name nett, and the modules of component_classes are net"):
        own_readers({"net": Net}, [WeightSource("nett")], tmp_path, dtypes={}, device=torch.device("cpu"))


def test_a_quantized_tensor_is_not_taken_for_a_float(tmp_path):
    (tmp_path / "net").mkdir()
    tensors = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in Net().state_dict().items()}
    save_file({**tensors, "q.weight": torch.zeros(2, 2, dtype=torch.int8)}, tmp_path / "net" / "x.safetensors")
    with pytest.raises(WeightsError, match=r"x.safetensors: q.weight is I8, and net.q.weight asks for F64"):
        own_readers({"net": Net}, [], tmp_path, dtypes={}, device=torch.device("cpu"))


def test_a_source_without_files_is_told(tmp_path):
    with pytest.raises(WeightsError, match=r"net has no \*.safetensors for net"):
        own_readers({"net": Net}, [], tmp_path, dtypes={}, device=torch.device("cpu"))
