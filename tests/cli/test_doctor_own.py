"""`difftool doctor --model` of a family with classes and weight sources of its own; what is not checked is said."""

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tiny import difftool as run

from difftool.cli import checkpoint as module
from difftool.pipeline.examine import examine

FACTS = """
from difftool.facts import FamilyFacts, PipelineFacts

FACTS = FamilyFacts(
    name="lines", title="Lines", checkpoints=(), sampling={}, guidance=(), second_branch=None, heads_key="heads",
    pipelines={"LinesPipeline": PipelineFacts("image", "lines_family.model:Lines", ("transformer", "vae"))},
    size_multiple=8, num_frames=None, max_sequence_length=8,
)
"""
MODEL = """
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from difftool.components.accounting import WeightSource


class Net(nn.Linear):
    def __init__(self, width):
        super().__init__(width, width)


class Lines:
    component_classes = {"scheduler": FlowMatchEulerDiscreteScheduler, "transformer": Net, "vae": Net}
    weight_sources = (WeightSource("transformer", "all", prefix="net."), WeightSource("vae", "all", prefix="decoder."))
"""
WEIGHTS = "all/lines.safetensors"


@pytest.fixture
def model(tmp_path):
    """A checkpoint with a minimal index, and its family beside it."""
    (tmp_path / "lines_family").mkdir()
    (tmp_path / "lines_family" / "facts.py").write_text(FACTS)
    (tmp_path / "lines_family" / "model.py").write_text(MODEL)
    folder = tmp_path / "model"
    (folder / "all").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "LinesPipeline"}')
    for name in ("transformer", "vae"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"width": 3}')
    shapes = {"weight": (3, 3), "bias": (3,)}
    tensors = {f"{part}.{name}": torch.ones(shape) for part in ("net", "decoder") for name, shape in shapes.items()}
    save_file(tensors, folder / WEIGHTS)
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def doctor(difftool, model, monkeypatch):
    """The command, and the examination without a process of its own."""
    monkeypatch.setattr(module, "ask", lambda path, names, environment, own=None: list(examine(path, names, own)))
    return lambda *more: difftool("doctor", "--model", "model", *more)


def test_its_classes_and_weight_sources_are_checked(doctor, model):
    answer = doctor("--code", "lines_family")
    assert (answer.code, answer.out) == (
        0,
        f"{model}, LinesPipeline: sound\n"
        "  scheduler    no weights\n"
        "  transformer  1 file, 2 tensors, 0.0 MB\n"
        "  vae          1 file, 2 tensors, 0.0 MB\n",
    )


def without_one(folder):
    save_file({k: v for k, v in load_file(folder / WEIGHTS).items() if k != "net.bias"}, folder / WEIGHTS)


def another_width(folder):
    (folder / "vae" / "config.json").write_text('{"width": 4}')


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])


def not_a_number(folder):
    save_file({**load_file(folder / WEIGHTS), "net.bias": torch.full((3,), torch.nan)}, folder / WEIGHTS)


def no_source(folder):
    shutil.rmtree(folder / "all")


def no_config(folder):
    (folder / "vae" / "config.json").unlink()


def no_scheduler(folder):
    shutil.rmtree(folder / "scheduler")


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (without_one, "", "the weights do not account for the model: not filled (1): transformer.bias"),
        (another_width, "", "vae.weight has shape [4, 4], and there is decoder.weight [3, 3]"),
        (cut, WEIGHTS, "is truncated"),
        (not_a_number, WEIGHTS, "holds NaN or infinity in net.bias"),
        (no_source, "all", "has no *.safetensors for transformer"),
        (
            no_config,
            "vae",
            "has no config.json, or an empty one, and a Net cannot be made without: Net.__init__() missing",
        ),
        (no_scheduler, "scheduler", "cannot be loaded as FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_what_does_not_fit_is_told(doctor, model, damage, file, words):
    damage(model)
    answer = doctor("--code", "lines_family", "--json")
    (fault,) = [component["fault"] for component in json.loads(answer.out)["components"] if "fault" in component]
    assert answer.code == 4 and file in fault and words in fault


def test_without_the_family_nothing_is_called_sound(doctor, model):
    answer = doctor()
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        "error: model cannot be checked: LinesPipeline is no pipeline of a family here or of diffusers, and its "
        "model_index.json lists no component\nhint: name the folder of its family with --code\n"
    )


def test_what_an_index_lists_of_an_unknown_pipeline_is_checked_and_the_rest_is_said(doctor, model):
    entries = {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "vae": ["mine", "Decoder"]}
    (model / "model_index.json").write_text(json.dumps({"_class_name": "LinesPipeline", **entries}))
    save_file({"weight": torch.ones(3)}, model / "vae" / "model.safetensors")
    answer = doctor()
    assert (answer.code, answer.out) == (
        0,
        f"{model}, LinesPipeline: sound, as far as it was checked\n"
        "  scheduler  no weights\n"
        "  vae        1 file, 1 tensor, 0.0 MB; not checked: names and shapes, as mine.Decoder is no model of "
        "diffusers or transformers\n"
        "  not checked: what the index does not list, as LinesPipeline is no pipeline of a family here or of "
        "diffusers\n",
    )


def test_an_installed_family_needs_no_code(doctor, model, monkeypatch, tmp_path):
    site = tmp_path / "site"
    (site / "lines-1.0.dist-info").mkdir(parents=True)
    (site / "lines-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.0\n")
    points = "[difftool.families]\nLinesPipeline = lines_family.facts\n"
    (site / "lines-1.0.dist-info" / "entry_points.txt").write_text(points)
    shutil.move(tmp_path / "lines_family", site / "lines_family")
    monkeypatch.syspath_prepend(site)
    answer = doctor()
    assert answer.code == 0 and answer.out.startswith(f"{model}, LinesPipeline: sound\n")


def test_code_is_for_a_folder_s_model(difftool, model):
    alone = difftool("doctor", "--code", "lines_family")
    assert (alone.code, alone.err.splitlines()[0]) == (2, "error: --code goes with --model")
    file = difftool("doctor", "--model", str(model / WEIGHTS), "--code", "lines_family")
    assert file.code == 2 and "--code is for the folder of a model" in file.err


def test_the_real_process_is_told_the_family(model, tmp_path):
    not_a_number(model)
    done = run("doctor", "--model", "model", "--code", "lines_family", cwd=tmp_path)
    assert done.returncode == 4 and "holds NaN or infinity in net.bias" in done.stdout, done.stderr
