"""`backend: diffusers`: any pipeline class, run by its own call and watched from outside."""

import gzip
import json
import shutil
from contextlib import ExitStack, nullcontext

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
)
from diffusers.utils import dynamic_modules_utils
from families.cases.parts import qwen3_text, qwen_tokenizer
from families.running import assemble_case
from safetensors.torch import save_file

from difftool.engine import Kept, run_plan
from difftool.errors import PlanError, RecipeError, WeightsError
from difftool.launch import open_records
from difftool.parallel.world import World
from difftool.pipeline.batch import Batch
from difftool.pipeline.foreign import ROLES, ForeignPipeline, load_pipeline
from difftool.pipeline.stage import Context
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import ProfilePlan
from difftool.platforms.base import current
from difftool.profiling.timers import Timer
from difftool.recipe.load import load_recipe
from difftool.report.perf import accounting_error_pct

SIZE = {"height": 32, "width": 32, "num_inference_steps": 3, "seed": 7}


def ovis():
    """A tiny Ovis-Image, which no family runs: 2 double and 2 single blocks of width 32."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.36,
        shift_factor=0.12,
    )
    return OvisImagePipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=qwen3_text(tokenizer, 16),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "ovis"
    ovis().save_pretrained(folder)
    return folder


class Heard:
    """Progress that keeps every event."""

    def __init__(self):
        self.stage = self.item = None
        self.events = []

    def __call__(self, event, **values):
        self.events.append((event, values))

    def attempt(self, make, *, keep_going):
        make()


def run(model, folder, *, stages=None, profile=None, repeats=1, **sampling):
    """The perf dump, the pixels and the events of a run in this process."""
    recipe = {
        "model": model if isinstance(model, dict) else {"path": str(model)},
        "stages": stages or {},
        "sampling": {"prompt": "a red circle", **SIZE, **sampling},
        "launch": {"device": "cpu", "threads": 1},
        "perf": {"repeats": repeats},
        "output": {"dir": str(folder), "name": "made", "format": "npz"},
    }
    records, heard = open_records(make_plan(load_recipe(recipe), run=RunOptions(profile=profile))), Heard()
    threads = torch.get_num_threads()
    try:
        with ExitStack() as ends:
            run_plan(records / "plan.json", heard, 0.0, World(), Kept(ends))
    finally:
        torch.set_num_threads(threads)
    with np.load(folder / "made.npz") as made:
        return json.loads((records / "perf.json").read_text()), made["pixels"], heard.events


def stock_pixels(checkpoint, **arguments):
    pipe = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    values = {**SIZE, **arguments}
    generator = torch.Generator().manual_seed(values.pop("seed"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = pipe("a red circle", generator=generator, output_type="pt", **values)
    torch.set_num_threads(threads)
    return (made.images if "images" in made else made.frames.transpose(1, 2))[0].numpy()


def test_it_draws_what_diffusers_draws_with_every_stage_and_step_on_the_clock(checkpoint, tmp_path):
    dump, pixels, events = run(checkpoint, tmp_path, guidance_scale=2.0, negative_prompt="dull")
    np.testing.assert_array_equal(pixels, stock_pixels(checkpoint, guidance_scale=2.0, negative_prompt="dull"))
    assert list(dump["stages_ms"]) == ["text_encoding", "denoising", "decoding"]
    assert all(ms > 0 for ms in dump["stages_ms"].values())
    assert [step["step"] for step in dump["denoise_steps_ms"]] == [0, 1, 2]
    assert dump["status"] == "ok"
    assert [values["stage"] for event, values in events if event == "stage_started"] == list(dump["stages_ms"])
    assert [values["step"] for event, values in events if event == "step"] == [0, 1, 2]


def test_its_stages_make_up_the_time_of_an_item(checkpoint, tmp_path):
    dump, *_ = run(checkpoint, tmp_path, repeats=3)
    errors = [accounting_error_pct(sample["total_ms"], sample["stages_ms"]) for sample in dump["samples"]]
    assert len(errors) == 3 and min(errors) < 20  # of the one that other processes disturbed least


@pytest.mark.parametrize(("all_stages", "steps"), [(True, ["0", "1", "2"]), (False, ["1", "2"])])
def test_a_trace_of_it_names_stages_steps_and_blocks(checkpoint, tmp_path, all_stages, steps):
    dump, _, _ = run(checkpoint, tmp_path, profile=ProfilePlan(steps=2, all_stages=all_stages), guidance_scale=2.0)
    (trace,) = tmp_path.glob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert [name.removeprefix("step: ") for name in names if name.startswith("step: ")] == steps
    assert dump["profile"]["steps"] == [int(step) for step in steps]
    assert names.count("block: transformer.transformer_blocks.0") >= len(steps)


def test_steps_of_a_pipeline_whose_denoiser_nobody_knows_have_ranges_too(checkpoint):
    opened = []

    class Listening(Timer):
        def range(self, name):
            opened.append(name)
            return nullcontext()

    pipe = load_pipeline(
        checkpoint, "OvisImagePipeline", dtypes={}, device=torch.device("cpu"), trust_remote_code=False
    )
    foreign = ForeignPipeline(pipe, {role: () for role in ROLES}, {})
    ctx = Context(foreign.components, Listening(current("cpu")), lambda event, **values: None)
    batch = Batch(prompt=["a red circle"], seeds=[7], height=32, width=32, num_inference_steps=3)
    foreign(batch, ctx)
    assert opened == ["step: 0", "step: 1", "step: 2"]
    assert list(ctx.timer.timings.stages) == ["denoising"]


def test_a_class_that_a_family_runs_can_be_run_by_diffusers(tmp_path):
    assemble_case("flux1-dev").stock.save_pretrained(tmp_path / "flux")
    diffusers = run({"path": str(tmp_path / "flux"), "backend": "diffusers"}, tmp_path / "a", max_sequence_length=24)
    native = run({"path": str(tmp_path / "flux"), "backend": "native"}, tmp_path / "b", max_sequence_length=24)
    np.testing.assert_array_equal(diffusers[1], native[1])
    assert set(native[0]["stages_ms"]) > set(diffusers[0]["stages_ms"])


def test_precision_tiling_and_attention_reach_its_parts(checkpoint, tmp_path):
    stages = {
        "text_encoding": {"precision": "bf16"},
        "denoising": {"precision": "bf16", "attention": "torch_sdpa"},
        "decoding": {"precision": "bf16", "tiling": "on", "slicing": True},
    }
    dump, _, _ = run(checkpoint, tmp_path, stages=stages)
    assert dump["effective"]["precision"] == {
        "status": "applied",
        "text_encoder": "bf16",
        "transformer": "bf16",
        "vae": "bf16",
    }
    assert dump["effective"]["vae"] == {"status": "applied", "tiling": "on", "slicing": True}


def test_another_attention_backend_makes_what_torch_makes(checkpoint, tmp_path):
    plain = run(checkpoint, tmp_path / "plain")
    flex = run(checkpoint, tmp_path / "flex", stages={"denoising": {"attention": "flex"}})
    told = [dump["effective"]["attention"] for dump, _, _ in (plain, flex)]
    assert [each["transformer"] for each in told] == [{"all": "torch_sdpa"}, {"all": "flex"}]
    assert told[0]["text_encoder"] == "torch_sdpa"
    assert 0 < np.abs(flex[1] - plain[1]).max() < 1e-4


def test_kinds_of_attention_are_not_told_apart(checkpoint, tmp_path):
    with pytest.raises(RecipeError, match="OvisImagePipeline is run by diffusers, which tells no kinds of attention"):
        run(checkpoint, tmp_path, stages={"denoising": {"attention": {"self": "flex"}}})
    with pytest.raises(PlanError, match="stages.denoising.attention.components.unet: there is no such attention"):
        run(checkpoint, tmp_path, stages={"denoising": {"attention": {"components": {"unet": "flex"}}}})


def test_precisions_that_it_cannot_mix_are_told_as_that(checkpoint, tmp_path):
    with pytest.raises(PlanError, match="OvisImagePipeline does not convert between its parts' precisions"):
        run(checkpoint, tmp_path, stages={"text_encoding": {"precision": "bf16"}})


def test_a_shift_and_further_arguments_reach_the_call(checkpoint, tmp_path):
    plain = run(checkpoint, tmp_path / "plain")[1]
    shifted = run(checkpoint, tmp_path / "shifted", scheduler={"flow_shift": 7.0})[1]
    assert not np.array_equal(plain, shifted)
    sigmas = [1.0, 0.5, 0.25]
    model = {"path": str(checkpoint), "backend": "diffusers", "diffusers_kwargs": {"sigmas": sigmas}}
    np.testing.assert_array_equal(run(model, tmp_path / "s")[1], stock_pixels(checkpoint, sigmas=sigmas))


LAYER = "transformer_blocks.0.attn.to_q"


def write_lora(path, layer=LAYER, columns=32):
    """A LoRA of rank 2 for one layer of 32 x 32, and the change that it makes at strength 1."""
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, columns, generator=generator), torch.randn(32, 2, generator=generator)
    save_file({f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}, path)
    return up @ down


def test_a_lora_is_merged_into_its_denoiser(checkpoint, tmp_path):
    change = write_lora(tmp_path / "style.safetensors")
    model = {"path": str(checkpoint), "lora": [{"path": str(tmp_path / "style.safetensors"), "strength": 0.5}]}
    dump, pixels, _ = run(model, tmp_path / "out")
    pipe = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipe.transformer.get_submodule(LAYER).weight.data.add_(change, alpha=0.5)
    pipe.save_pretrained(tmp_path / "merged")
    np.testing.assert_array_equal(pixels, stock_pixels(tmp_path / "merged"))
    assert not np.array_equal(pixels, stock_pixels(checkpoint))
    (record,) = dump["effective"]["lora"]["adapters"]
    assert (record["nickname"], record["strength"]) == ("style", 0.5)
    assert record["modules"] == {"transformer": {"layers": 1, "keys": 2, "of": 2}}


@pytest.mark.parametrize("backend", ["native", "diffusers"])
def test_a_lora_that_does_not_fit_is_refused_before_any_weight_is_read(checkpoint, tmp_path, backend):
    """A denoiser's config tells; its weights may be of any size."""
    folder = tmp_path / "model"
    if backend == "native":
        assemble_case("flux1-dev").stock.save_pretrained(folder)
    else:
        shutil.copytree(checkpoint, folder)
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(b"not looked at")
    write_lora(tmp_path / "other.safetensors", layer="blocks.0.to_z")
    write_lora(tmp_path / "wide.safetensors", columns=48)
    for name, words in (("other", "changes no layer of transformer"), ("wide", "was made for another model")):
        lora = tmp_path / f"{name}.safetensors"
        with pytest.raises(WeightsError, match=f"{lora.name} {words}"):
            run({"path": str(folder), "backend": backend, "lora": [str(lora)]}, tmp_path)


def test_the_pipeline_is_left_as_it_was(checkpoint, tmp_path):
    first = run(checkpoint, tmp_path / "a", num_outputs_per_prompt=1)[1]
    recipe = {"path": str(checkpoint)}
    assert np.array_equal(first, run(recipe, tmp_path / "b")[1])


@pytest.fixture
def coded(tmp_path):
    """A checkpoint whose transformer is of a class that its own folder defines, and a file that says when it ran."""
    folder = tmp_path / "coded"
    ovis().save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["mine", "Mine"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer" / "mine.py").write_text(
        "from diffusers import OvisImageTransformer2DModel\n\n\n"
        "class Mine(OvisImageTransformer2DModel):\n    ran = True\n"
    )
    return folder


def test_code_beside_the_weights_does_not_run_unasked(coded, tmp_path):
    with pytest.raises(WeightsError, match="code of its own|Mine"):
        run(coded, tmp_path / "out")


def test_code_beside_the_weights_runs_where_it_is_trusted(coded, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))  # not the user's
    device = torch.device("cpu")
    pipe = load_pipeline(coded, "OvisImagePipeline", dtypes={}, device=device, trust_remote_code=True)
    assert type(pipe.transformer).__name__ == "Mine" and pipe.transformer.ran


def test_a_call_that_returns_no_picture_is_refused():
    from difftool.pipeline.foreign import as_pixels

    with pytest.raises(PlanError, match="returned str, which is no picture"):
        as_pixels({"images": "nothing"})


@pytest.mark.parametrize(
    ("shape", "last", "expected"), [((1, 4, 6, 3), True, (1, 3, 4, 6)), ((1, 5, 4, 6, 3), True, (1, 3, 5, 4, 6))]
)
def test_arrays_with_channels_last_are_pixels_too(shape, last, expected):
    from difftool.pipeline.foreign import as_pixels

    assert tuple(as_pixels({"frames": np.zeros(shape, np.float32)}).shape) == expected


def test_an_argument_that_planning_could_not_know_is_refused_by_name(checkpoint):
    from difftool.pipeline.batch import Batch
    from difftool.pipeline.foreign import ForeignPipeline

    foreign = ForeignPipeline(ovis(), {}, {})
    with pytest.raises(RecipeError, match="OvisImagePipeline takes no mood"):
        foreign.arguments(Batch(["x"], 32, 32, 2, [1], 16, extra={"mood": "good"}))
