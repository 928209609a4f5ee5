"""`difftool models fetch`: what it asks the hub for, what it prints, and what it says when the hub refuses."""

import json
import sys

import pytest

from difftool.cli import fetch as module
from difftool.components import locate
from difftool.pipeline import fetch as child

SHAPES = "builtin:shapes-image"
DEV = "black-forest-labs/FLUX.1-dev"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Downloads that arrive in a cache on this disk; every one asked for, in order. No process is started."""
    asked = []
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))

    def download(hub_id, *, revision=None, allow_patterns=None, **options):
        asked.append((hub_id, revision, allow_patterns))
        repository = cache / f"models--{hub_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / "abc"
        snapshot.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / (revision or "main")).write_text("abc")
        index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
        (snapshot / "model_index.json").write_text(json.dumps(index))
        return str(snapshot)

    monkeypatch.setattr(locate, "snapshot_download", download)
    monkeypatch.setattr(module, "run", lambda wanted: child.fetch(json.loads(wanted.told())))
    return asked


def patterns(name):
    return {f"{name}/*.{kind}" for kind in ("json", "safetensors", "txt", "model", "jinja")}


def test_only_what_the_pipeline_needs_is_asked_for_and_the_folder_is_printed(difftool, hub):
    answer = difftool("models", "fetch", DEV, "--revision", "v1")
    assert answer.code == 0 and answer.err == ""
    ((hub_id, revision, asked),) = hub
    assert (hub_id, revision) == (DEV, "v1")
    needed = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    assert {"model_index.json"}.union(*map(patterns, needed)) == set(asked)
    assert answer.out.strip().endswith("models--black-forest-labs--FLUX.1-dev/snapshots/abc")


def test_the_recipe_may_be_a_flag_and_its_keys_may_be_set(difftool, hub):
    answer = difftool("models", "fetch", "-c", DEV, "-s", "model.revision=v2", "--set", "model.components.vae=org/vae")
    assert (answer.code, answer.err) == (0, "")
    assert [(hub_id, revision) for hub_id, revision, _ in hub][:2] == [(DEV, "v2"), ("org/vae", None)]
    assert difftool("models", "fetch").err.startswith("error: RECIPE is missing")
    both = difftool("models", "fetch", DEV, "-c", DEV)
    assert both.code == 2 and "are the same thing; give one" in both.err


def test_a_model_that_nobody_knows_is_asked_for_its_index_first(difftool, hub):
    answer = difftool("models", "fetch", "org/tuned-flux")
    assert answer.code == 0, answer.err
    assert hub[0] == ("org/tuned-flux", None, ["model_index.json"])
    assert hub[1][0] == "org/tuned-flux" and "transformer/*.safetensors" in hub[1][2]


def test_a_recipe_brings_what_it_replaces_and_not_what_it_leaves_out(difftool, hub, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model:\n  path: {DEV}\n  components: {{text_encoder_2: org/encoder}}\n")
    answer = difftool("models", "fetch", str(recipe), "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["repositories"] == [DEV, "org/encoder"]
    assert not any(pattern.startswith("text_encoder_2/") for pattern in hub[0][2])
    assert [hub_id for hub_id, _, _ in hub] == [DEV, "org/encoder", "org/encoder"]


FAMILY = """
from difftool.facts import FamilyFacts, PipelineFacts

FACTS = FamilyFacts(
    name="stripes", title="Stripes", checkpoints=(), sampling={}, guidance=(), second_branch=None, heads_key="heads",
    pipelines={"FluxPipeline": PipelineFacts("image", "fetched_family.model:Stripes", ("scheduler", "transformer"))},
    size_multiple=8, num_frames=None, max_sequence_length=8,
)
"""
SOURCES = """
from difftool.components.accounting import WeightSource


class Stripes:
    weight_sources = (
        WeightSource("transformer", repo="org/weights", revision="v2", folder="original"),
        WeightSource("vae", repo="org/decoder"),
        WeightSource("text_encoder", folder="encoders"),
    )
"""


@pytest.mark.parametrize("known", [False, True], ids=["from the hub", "from this disk"])
def test_the_weight_sources_of_a_family_are_fetched_with_its_model(difftool, hub, tmp_path, known):
    family = tmp_path / "fetched_family"
    family.mkdir()
    (family / "facts.py").write_text(FAMILY)
    (family / "model.py").write_text(SOURCES)
    if known:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {{path: {'./model' if known else 'org/stripes'}, code: ./fetched_family}}\n")
    answer = difftool("models", "fetch", str(recipe), "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told["repositories"] == [*([] if known else ["org/stripes"]), "org/weights", "org/decoder"]
    sources = [("org/weights", "v2", ["original/*.safetensors"]), ("org/decoder", None, ["*.safetensors"])]
    assert hub[-2:] == sources
    if known:
        assert told["folder"] == str(tmp_path / "model") and len(hub) == 2
    else:
        assert hub[0] == ("org/stripes", None, ["model_index.json"])
        assert {"encoders/*.safetensors", "transformer/*.json"} < set(hub[1][2])


def test_a_model_on_this_disk_needs_no_hub(difftool, hub):
    answer = difftool("models", "fetch", SHAPES)
    assert answer.code == 0 and answer.out.strip().endswith("builtin/shapes-image") and hub == []


@pytest.fixture
def fetcher(monkeypatch, tmp_path):
    """The fetching process, as a script."""

    def use(text):
        script = tmp_path / "fetcher.py"
        script.write_text(f"import json, sys, time\ntold = json.load(sys.stdin)\n{text}")
        monkeypatch.setattr(module, "FETCHER", (sys.executable, str(script)))

    return use


def test_what_the_hub_refuses_is_exit_4_with_the_licence_and_the_login(difftool, fetcher):
    fetcher("print(json.dumps({'error': 'org/x is gated', 'hint': 'then run: hf auth login', 'exit_code': 4}))")
    answer = difftool("models", "fetch", DEV)
    assert (answer.code, answer.out) == (4, "")
    assert answer.err == "error: org/x is gated\nhint: then run: hf auth login\n"


def test_a_process_that_dies_is_named_by_its_last_words(difftool, fetcher):
    fetcher("sys.exit('no torch today')")
    answer = difftool("models", "fetch", DEV)
    assert answer.code == 6 and "ended early: no torch today" in answer.err


def test_what_arrives_is_told_while_it_takes_long(difftool, fetcher, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    on_disk = module.on_disk

    def seen():
        found = on_disk()
        if found == 3_000_000:
            (tmp_path / "seen").touch()
        return found

    monkeypatch.setattr(module, "on_disk", seen)
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    monkeypatch.setattr(module, "PLAIN_EVERY_S", 0.0)
    blobs = tmp_path / f"models--{DEV.replace('/', '--')}" / "blobs"
    fetcher(
        f"import pathlib\nblobs = pathlib.Path({str(blobs)!r})\nblobs.mkdir(parents=True)\n"
        "(blobs / 'a.incomplete').write_bytes(bytes(3_000_000))\n"
        f"while not pathlib.Path({str(tmp_path / 'seen')!r}).exists(): time.sleep(0.05)\n"
        f"print(json.dumps({{'folder': {str(tmp_path)!r}, 'repositories': []}}))"
    )
    answer = difftool("models", "fetch", DEV)
    assert answer.code == 0 and answer.out == f"{tmp_path}\n"
    assert f"fetches {DEV}: 3.0 MB\n" in answer.err
