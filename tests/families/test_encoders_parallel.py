"""Text encoders of which each rank of a replica reads its part: every class that a family uses."""

import json
from functools import partial

import pytest
import torch
from families.running import assemble_case
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen3Model

from difftool.components.check import check_component
from difftool.components.read import Cut
from difftool.components.read_encoder import encoder_reader
from difftool.errors import PlanError
from difftool.launch.pool import RankFailed
from difftool.parallel.encoders import ENCODERS, cut_encoder
from difftool.parallel.mesh import Line
from difftool.parallel.tensor import TensorShares

LIMIT = 1e-5  # of the largest number of an encoding, in fp32: rounding, as sums are made of two halves
# case -> component: its class, and how often it sums over the ranks for a text: twice a layer, once for its words
CLIP, T5 = ("CLIPTextModel", 2 * 2), ("T5EncoderModel", 2 * 2 + 1)
ENCODED = {
    "flux1-dev": {"text_encoder": CLIP, "text_encoder_2": T5},
    "sd3-medium": {
        "text_encoder": ("CLIPTextModelWithProjection", 2 * 2),
        "text_encoder_2": ("CLIPTextModelWithProjection", 2 * 2),
        "text_encoder_3": T5,
    },
    "wan21-t2v": {"text_encoder": ("UMT5EncoderModel", 2 * 2 + 1)},
    "hunyuanvideo": {"text_encoder": ("LlamaModel", 4 * 2 + 1), "text_encoder_2": CLIP},
    "qwenimage": {"text_encoder": ("Qwen2_5_VLForConditionalGeneration", 2 * 2)},
    "qwenimage-edit": {"text_encoder": ("Qwen2_5_VLForConditionalGeneration", 2 * 2)},
    "flux2-dev": {"text_encoder": ("Mistral3ForConditionalGeneration", 30 * 2)},
    "flux2-klein": {"text_encoder": ("Qwen3ForCausalLM", 28 * 2)},
    "zimage": {"text_encoder": ("Qwen3Model", 2 * 2 + 1)},
}
EACH = {kind: (case, name) for case, parts in ENCODED.items() for name, (kind, _) in parts.items()}


@pytest.mark.parametrize("case", ENCODED)
def test_encoders_of_two_ranks_encode_as_one(ranks, saved, case):
    components = assemble_case(case).components
    assert {name: type(getattr(components, name)).__name__ for name in ENCODED[case]} == {
        name: kind for name, (kind, _) in ENCODED[case].items()
    }
    sums = sum(count for _, count in ENCODED[case].values())
    answers = ranks.run("families.tensors:encode", world=2, case=case, folder=str(saved(case)), request="4 steps")
    for answer in answers:
        for difference, scale in zip(answer["differences"], answer["scales"], strict=True):
            assert difference <= LIMIT * scale
        assert answer["calls"] == {"all_reduce": sums}
    for name in ENCODED[case]:
        first, second = (answer["sizes"][name] for answer in answers)
        split = {key for key, (own, whole) in first.items() if own != whole}
        assert all(first[key][0] + second[key][0] == first[key][1] for key in split)
        layers = {key for key in first if ".mlp." in key or "DenseReluDense" in key or "self_attn" in key}
        shared = {key for key in layers if "visual" in key or "vision" in key or "norm" in key}
        rows = ("out_proj.bias", "fc2.bias")  # added once, by every rank
        assert split >= {key for key in layers - shared if not key.endswith(rows)}, layers - split


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_part_is_the_part_of_what_transformers_loads(ranks, saved, kind):
    """Its own names, casts and ties, in half precision; what is computed at its making too."""
    case, component = EACH[kind]
    arguments = {"case": case, "folder": str(saved(case)), "component": component}
    for answer in ranks.run("families.tensors:same_encoder", world=2, **arguments):
        assert answer.pop("cut") > 4
        assert answer == {"kind": True, "training": False, "names": [], "other": []}


def test_more_ranks_than_key_heads_are_refused(ranks, saved):
    with pytest.raises(RankFailed, match=r"text_encoding.tp=3: text_encoder deals out 2 attention heads in layers.0"):
        ranks.run("families.tensors:encode", world=3, case="zimage", folder=str(saved("zimage")), request="4 steps")


def test_an_encoder_of_another_class_is_refused():
    eyes = CLIPVisionModel(CLIPVisionConfig(hidden_size=24, intermediate_size=8, num_hidden_layers=1))
    with pytest.raises(PlanError, match=r"text_encoding.tp=2: text_encoder is a CLIPVisionModel, of which") as caught:
        cut_encoder(eyes, Line((0, 1)), name="text_encoder")
    assert "use stages.text_encoding.tp=1" in caught.value.hint


def reader(folder, share):
    weights = check_component(folder)
    return encoder_reader(Qwen3Model, folder, weights, dtype=torch.float32, device=torch.device("cpu"), share=share)


def test_a_layer_that_is_not_stored_as_the_model_has_it_has_no_parts(saved):
    shares = TensorShares({"layers.0.self_attn.qkv_proj.weight": Cut(0, ((0, 8),))}, {})
    with pytest.raises(PlanError, match=r"layers.0.self_attn.qkv_proj.weight is not stored as Qwen3Model has it"):
        reader(saved("zimage") / "text_encoder", lambda model: shares)


def test_quantized_encoders_have_no_parts(tmp_path):
    assemble_case("zimage").components.text_encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(PlanError, match="is quantized, and its tensors cannot be read in parts") as caught:
        reader(tmp_path, partial(cut_encoder, line=Line((0, 1)), name="text_encoder"))
    assert caught.value.hint == "use stages.text_encoding.tp=1"
