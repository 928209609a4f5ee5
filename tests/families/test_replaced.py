"""A model with components from elsewhere, or from a single file, makes what diffusers makes of the same parts."""

import json
import re
from contextlib import ExitStack

import diffusers
import numpy as np
import pytest
import torch
from families.running import AssembledCase, batch_of, case_named, run_stock
from families.test_checkpoints import Quiet, environment_kept, recipe_for
from safetensors.torch import load_file, save_file

from difftool.components.check import Weights, check_safetensors
from difftool.components.load import load_components
from difftool.components.replaced import Place, single_file_reader
from difftool.engine import Kept, run_plan
from difftool.errors import PlanError, WeightsError
from difftool.launch import open_records
from difftool.parallel.world import World
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

CPU = torch.device("cpu")
STEM = "diffusion_pytorch_model.safetensors"
# diffusers' names -> those of Wan's first publication, in this order
ORIGINAL = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("attn1", "self_attn"),
    ("attn2", "cross_attn"),
    (".to_out.0.", ".o."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    ("proj_out", "head.head"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("norm2", "norm_between"),
    ("norm3", "norm2"),
    ("norm_between", "norm3"),
)


def original_name(name):
    if name == "scale_shift_table":
        return "head.modulation"
    for ours, theirs in ORIGINAL:
        name = name.replace(ours, theirs)
    return name.replace("scale_shift_table", "modulation")


def save(name, folder):
    case_named(name).build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return save("flux1-dev", tmp_path_factory.mktemp("flux") / "model")


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return save("wan21-t2v", tmp_path_factory.mktemp("wan") / "model")


def halved(source, target):
    """A component whose weights are half of another's."""
    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    save_file({k: v / 2 for k, v in load_file(source / STEM).items()}, target / STEM, metadata={"format": "pt"})
    return target


def run(case, checkpoint, folder, components):
    recipe = recipe_for(case, checkpoint, folder)
    recipe["model"] = {"path": str(checkpoint), "components": components}
    plan = make_plan(load_recipe(recipe), run=RunOptions())
    records = open_records(plan)
    with environment_kept(), ExitStack() as ends:
        run_plan(records / "plan.json", Quiet(), 0.0, World(), Kept(ends))
    with np.load(folder / "out" / "made.npz") as made:
        return made["pixels"], json.loads((records / "perf.json").read_text())


def test_a_vae_and_a_transformer_from_elsewhere_equal_diffusers_with_the_same(flux, tmp_path):
    case = case_named("flux1-dev")
    vae = halved(flux / "vae", tmp_path / "vae")
    single = tmp_path / "tuned.safetensors"
    tuned = {name: value * 0.9 for name, value in load_file(flux / "transformer" / STEM).items()}
    save_file(tuned, single)
    pixels, dump = run(case, flux, tmp_path, {"vae": str(vae), "transformer": str(single)})
    torch.set_num_threads(1)
    stock = diffusers.FluxPipeline.from_pretrained(
        flux, vae=diffusers.AutoencoderKL.from_pretrained(vae), dtype=torch.float32
    )
    stock.transformer.load_state_dict(tuned)
    stock.set_progress_bar_config(disable=True)
    expected = run_stock(AssembledCase(case, stock, None, None, None), batch_of(case, num_inference_steps=2))
    np.testing.assert_allclose(pixels, expected[1][0].numpy(), rtol=0, atol=case.tolerance)
    assert dump["effective"]["components"] == {"status": "applied", "vae": "vae", "transformer": "tuned.safetensors"}


def read(kind, folder, file, dtype=torch.float32):
    place = Place(folder, file)
    return single_file_reader(kind, place, Weights(check_safetensors(file)), dtype=dtype, device=CPU)


def test_names_of_the_first_publication_are_converted(wan, tmp_path):
    kind = diffusers.WanTransformer3DModel
    ours = load_file(wan / "transformer" / STEM)
    file = tmp_path / "wan.safetensors"
    save_file({original_name(name): value.clone() for name, value in ours.items()}, file)
    assert len(set(load_file(file)) & set(ours)) == 2  # the patch embedding's
    loaded = read(kind, wan / "transformer", file, torch.bfloat16)().state_dict()
    stock = kind.from_pretrained(wan / "transformer", torch_dtype=torch.bfloat16).state_dict()
    assert loaded.keys() == stock.keys() and {str(v.dtype) for v in stock.values()} > {"torch.float32"}
    assert all(torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in stock.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("time_embedding.0.weight"), "has no tensor of WanTransformer3DModel's condition_embedder"),
        (lambda t: t.update({"more.weight": torch.zeros(2)}), "does not take: more.weight"),
        (lambda t: t.update({"head.head.bias": torch.zeros(3)}), r"proj_out.bias has shape \[3\], and its config"),
        (lambda t: t.update({"first_stage_model.x": torch.zeros(2)}), "holds more than one model"),
    ],
)
def test_a_single_file_that_does_not_fit_is_refused_before_it_is_read(wan, tmp_path, change, words):
    kind = diffusers.WanTransformer3DModel
    tensors = {original_name(k): v.clone() for k, v in load_file(wan / "transformer" / STEM).items()}
    change(tensors)
    save_file(tensors, tmp_path / "wan.safetensors")
    with pytest.raises(WeightsError, match=words):
        read(kind, wan / "transformer", tmp_path / "wan.safetensors")


def test_a_file_that_nobody_can_convert_is_refused_by_name(flux, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a.weight": torch.zeros(2)}, file)
    with pytest.raises(WeightsError, match=re.escape(f"{file} cannot be converted to diffusers' names")):
        read(diffusers.FluxTransformer2DModel, flux / "transformer", file)
    with pytest.raises(WeightsError, match="diffusers converts none to a AutoencoderTiny"):
        folder = tmp_path / "tiny"
        folder.mkdir()
        (folder / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
        read(diffusers.AutoencoderTiny, folder, file)


def test_an_encoder_is_not_read_from_a_single_file(flux, tmp_path):
    import transformers

    with pytest.raises(WeightsError, match="stands for a CLIPTextModel, which is read from a folder"):
        read(transformers.CLIPTextModel, flux / "text_encoder", flux / "text_encoder" / "model.safetensors")


def whole_only(folder, **given):
    """Why no rank can read its part of the transformer."""

    def share(model):
        raise AssertionError("it was going to be read in parts")

    with pytest.raises(PlanError) as caught:
        load_components(
            ("transformer",),
            None,
            folder,
            optional=(),
            tokenizers=(),
            dtypes={"transformer": torch.float32},
            device=CPU,
            loaded=lambda **values: None,
            shares={"transformer": share},
            **given,
        )
    assert "use parallel.tp=1, parallel.hsdp=none and stages.text_encoding.tp=1" in caught.value.hint
    return caught.value.message


def test_what_cannot_be_read_in_parts_is_refused_by_name(flux):
    file = flux / "transformer" / STEM
    replaced = {"transformer": Place(flux / "transformer", file)}
    assert whole_only(flux, replaced=replaced) == f"{file}: FluxTransformer2DModel cannot be read in parts"
    assert whole_only(flux, own={"transformer": lambda: None}) == (
        "transformer is read whole from the family's own weight_sources, not in parts"
    )
