"""Checkpoint folders are judged by their headers, before anything is allocated."""

import json
import struct

import pytest
import torch
from families.cases import CASES
from safetensors.torch import save_file

from difftool.components.check import check_component, check_folder, check_safetensors, read_index
from difftool.errors import WeightsError
from difftool.families.flux1.facts import FACTS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux1")
    CASES[0].build().save_pretrained(folder)
    return folder


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(4, 4), "b": torch.zeros(8)}, path)
    return path


def header_of(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_with_header(path, header, body):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_a_sound_checkpoint_passes(checkpoint):
    check_folder(checkpoint, FACTS.components)


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1, -64])
def test_a_truncated_file_is_refused_wherever_it_ends(weights, kept):
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="truncated|cannot be read") as error:
        check_safetensors(weights)
    assert str(weights) in error.value.message and error.value.exit_code == 4


def test_trailing_bytes_are_refused(weights):
    weights.write_bytes(weights.read_bytes() + b"more")
    with pytest.raises(WeightsError, match="followed by unknown bytes: it promises 2.. bytes and has 2"):
        check_safetensors(weights)


@pytest.mark.parametrize("offsets", [[0, 60], [4, 68], [0, 10**12]])
def test_wrong_offsets_are_refused(weights, offsets):
    header, body = header_of(weights)
    header["a"]["data_offsets"] = offsets
    write_with_header(weights, header, body)
    with pytest.raises(WeightsError, match="wrong offsets or size"):
        check_safetensors(weights)


@pytest.mark.parametrize("length", [2**63, 10**9])
def test_a_huge_header_length_is_refused_without_reading_it(weights, length):
    weights.write_bytes(struct.pack("<Q", length) + b"{}" * 40)
    with pytest.raises(WeightsError, match="truncated or not a safetensors file"):
        check_safetensors(weights)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x02}q\x00." + b"0" * 90, "is a pickle named .safetensors"),
        (b"PK\x03\x04" + b"0" * 90, "is a pickle named .safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
        (b"<!doctype html><html><body>404</body></html>", "is an HTML page"),
        (b"", "is truncated or not a safetensors file"),
    ],
)
def test_what_is_not_safetensors_is_named_for_what_it_is(weights, content, words):
    weights.write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        check_safetensors(weights)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "model.ckpt"])
def test_a_pickle_checkpoint_is_refused_without_opening_it(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(WeightsError, match=f"{name} is a pickle, which can run code when loaded: refused"):
        check_component(tmp_path)


def test_a_shard_index_may_not_leave_its_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(WeightsError, match="points outside its folder"):
        check_component(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x-2.safetensors"}}))
    with pytest.raises(WeightsError, match="weights are missing: .*x-2.safetensors"):
        check_component(tmp_path)


def test_a_missing_component_folder_is_named(checkpoint, tmp_path):
    (tmp_path / "model_index.json").write_text((checkpoint / "model_index.json").read_text())
    with pytest.raises(WeightsError, match="has no scheduler folder"):
        check_folder(tmp_path, FACTS.components)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "has no model_index.json"), ("{", "cannot be read"), ("[]", "names no pipeline class"), ("{}", "names no")],
)
def test_a_bad_index_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(WeightsError, match=words):
        read_index(tmp_path)
