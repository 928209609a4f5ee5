"""The LoRAs of a plan: which file is meant, what is refused before anything is launched, what decides the hashes."""

import hashlib
import json

import pytest

from difftool.errors import RecipeError, WeightsError
from difftool.planning.loading import loading
from difftool.planning.loras import builtin_loras
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe

SHAPES = "builtin:shapes-image"


def plan(*loras, model=SHAPES, **sections):
    recipe = {"model": {"path": model, "lora": list(loras)}, "sampling": {"prompt": "a circle", "seed": 1}, **sections}
    return make_plan(load_recipe(recipe), run=RunOptions())


def problems(*loras, model=SHAPES):
    with pytest.raises(RecipeError) as caught:
        plan(*loras, model=model)
    return [problem.message for problem in caught.value.problems]


def refusal(*loras):
    with pytest.raises(WeightsError) as caught:
        plan(*loras)
    return f"{caught.value.message} | {caught.value.hint}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loras").mkdir()
    for name in ("one.safetensors", "two.safetensors"):
        (tmp_path / "loras" / name).write_bytes(name.encode())
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "only.safetensors").write_bytes(b"only")
    (tmp_path / "old.pt").write_bytes(b"PK")
    return tmp_path


def test_a_file_a_folder_and_a_built_in_name_lead_to_one_file(folder):
    paths = [
        "loras/one.safetensors",
        {"path": "loras", "weight_name": "two.safetensors"},
        "./single",
        "builtin:outline",
    ]
    found = plan(*paths).loras
    assert [lora.nickname for lora in found] == ["one", "two", "only", "outline"]
    assert [lora.file for lora in found[:3]] == [
        str(folder / name) for name in ("loras/one.safetensors", "loras/two.safetensors", "single/only.safetensors")
    ]
    assert found[2].sha256 == hashlib.sha256(b"only").hexdigest()
    assert [lora.name for lora in found] == [
        "one.safetensors",
        "two.safetensors",
        "only.safetensors",
        "builtin:outline",
    ]


def test_a_name_on_the_hub_is_left_to_the_worker(folder):
    whole, inside, named = plan(
        "org/one", "org/many/sub/a.safetensors", {"path": "org/many", "weight_name": "b.safetensors", "revision": "c1"}
    ).loras
    assert (whole.hub_id, whole.weight_name, whole.nickname, whole.file) == ("org/one", None, "one", None)
    assert (inside.hub_id, inside.weight_name, inside.nickname) == ("org/many", "sub/a.safetensors", "a")
    assert (named.weight_name, named.revision) == ("b.safetensors", "c1")
    assert not plan("org/one").offline and plan("builtin:outline").offline


def test_several_files_and_no_weight_name_are_refused_with_the_list(folder):
    assert problems("loras") == [
        f"model.lora.0: {folder}/loras holds 2 LoRAs; name one of them in weight_name: one.safetensors, two.safetensors"
    ]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("builtin:outlin", "model.lora.0: no built-in LoRA is named 'outlin'; there is builtin:"),
        ({"path": "loras", "weight_name": "../old.pt"}, "model.lora.0: weight_name '../old.pt' leaves the folder "),
        ({"path": "builtin:outline", "revision": "x"}, "model.lora.0: revision is for a hub repository, and builtin:"),
        ({"path": "builtin:outline", "weight_name": "x"}, "model.lora.0: weight_name is for a folder or a hub"),
        ({"path": "org/a/b.safetensors", "weight_name": "x"}, "model.lora.0: org/a/b.safetensors names a file already"),
        ("org/a/b.ckpt", "model.lora.0: b.ckpt is a pickle, which can run code when loaded: refused; name a "),
        (
            {"path": "builtin:outline", "target": "transformer_2"},
            f"model.lora.0.target=transformer_2: {SHAPES} has no transformer_2; use all or transformer",
        ),
        (
            {"path": "builtin:outline", "target": "critic"},
            f"model.lora.0.target=critic: {SHAPES} has no fake_score_transformer; use all or transformer",
        ),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_with_its_key(folder, lora, message):
    (said,) = problems(lora)
    assert said.startswith(message)


def test_a_second_transformer_is_a_target_where_the_model_has_one():
    of_two = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
    assert plan({"path": "org/fast", "target": "transformer_2"}, model=of_two).loras[0].target == "transformer_2"


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("./none.safetensors", "there is no LoRA at "),
        ("old.pt", "is a pickle, which can run code when loaded: refused | take the .safetensors file"),
        (
            {"path": "loras", "weight_name": "x.safetensors"},
            "has no x.safetensors | it has one.safetensors, two.safeten",
        ),
        ("empty", "holds no .safetensors file; a.bin is a pickle, which can run code when loaded: refused"),
    ],
)
def test_a_missing_file_and_a_pickle_are_weights_errors(folder, lora, message):
    (folder / "empty").mkdir()
    (folder / "empty" / "a.bin").write_bytes(b"x")
    assert message in refusal(lora)


def test_two_of_one_name_are_refused_and_a_nickname_helps(folder):
    (folder / "single" / "one.safetensors").write_bytes(b"another")
    both = ("loras/one.safetensors", "single/one.safetensors")
    assert problems(*both) == ["model.lora.1.nickname: model.lora.0 is called 'one' too; give one of them another"]
    assert [lora.nickname for lora in plan(both[0], {"path": both[1], "nickname": "b"}).loras] == ["one", "b"]


def test_content_strength_order_and_target_decide_the_hash_and_the_place_does_not(folder):
    def sha(*loras):
        return plan(*loras).workload_sha256

    one, two = "loras/one.safetensors", "loras/two.safetensors"
    (folder / "copy.safetensors").write_bytes(b"one.safetensors")
    assert sha(one) == sha("copy.safetensors") == sha({"path": one, "nickname": "x", "min_match": 0.5})
    different = [sha(), sha(one), sha(two), sha(one, two), sha(two, one), sha({"path": one, "strength": 0.5})]
    different += [sha({"path": one, "target": "transformer"}), sha("org/a"), sha({"path": "org/a", "revision": "c1"})]
    assert len(set(different)) == len(different)
    (folder / one).write_bytes(b"written anew")
    assert sha(one) not in different


def test_the_recipe_in_a_picture_names_loras_without_their_folders(folder):
    made = plan({"path": "loras", "weight_name": "one.safetensors"}, "builtin:outline")
    recipe = made.item_recipe(made.items[0])
    assert [lora["path"] for lora in recipe["model"]["lora"]] == ["one.safetensors", "builtin:outline"]
    assert recipe["model"]["lora"][0]["weight_name"] is None
    assert str(folder) not in json.dumps(recipe)
    assert made.recipe["model"]["lora"][1]["nickname"] == "outline"
    again = make_plan(load_recipe(made.recipe), run=RunOptions())
    assert again.loras == made.loras and again.workload_sha256 == made.workload_sha256


def test_plans_that_differ_in_loras_are_made_by_one_worker():
    assert loading(plan()) == loading(plan("builtin:outline"))
    assert loading(plan()) != loading(plan(model="black-forest-labs/FLUX.1-dev"))


@pytest.mark.parametrize("stage", ["denoising", "text_encoding"])
def test_a_worker_with_quantized_weights_loads_them_again_for_other_loras(stage):
    quantized = {"stages": {stage: {"quantization": "int8"}}}
    plain, outlined, faint = (
        loading(plan(*loras, **quantized))
        for loras in ((), ("builtin:outline",), ({"path": "builtin:outline", "strength": 0.5},))
    )
    assert plain != outlined != faint
    assert outlined == loading(plan("builtin:outline", **quantized))


def test_the_built_in_loras_are_there():
    assert "outline" in builtin_loras()
