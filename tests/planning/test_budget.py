"""Offload within a memory budget: the first rung of the ladder that fits, by numbers worked out by hand."""

import pytest

from difftool.errors import PlanError, RecipeError
from difftool.planning.budget import barred_by, choose, fixed, further, ladder, peak, shortfall
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.planning.plan import BudgetPlan, Holding
from difftool.planning.render import render_plan
from difftool.recipe.load import load_recipe

ROLES = ("text_encoding", "image_encoding", "denoising", "decoding")
AUTO = fixed(dict.fromkeys(ROLES, "auto"))
# a denoiser of 10 blocks of 9 and 10 outside, an encoder of 4 blocks of 10 and 5 outside, another one, and a decoder
HELD = (
    Holding(name="transformer", role="denoising", bytes=100, element=2, blocks=10, block=9, outside=10),
    Holding(name="text_encoder", role="text_encoding", bytes=45, element=2, blocks=4, block=10, outside=5),
    Holding(name="text_encoder_2", role="text_encoding", bytes=20, element=2, blocks=2, block=10, outside=0),
    Holding(name="vae", role="decoding", bytes=8, element=4),
)
ACTIVATIONS = 7
NOTHING = {}


def names(modes):
    return {role: mode["name"] for role, mode in modes.items() if mode["name"] not in ("none", "auto")}


def chosen(size, asked=AUTO, held=HELD, barred=NOTHING, **elements):
    return choose(BudgetPlan(bytes=size, holdings=held, activations=ACTIVATIONS), asked, elements, barred=barred)


ENCODERS = {"text_encoding": "after_use", "image_encoding": "after_use"}
LADDER = [
    (180, {}),  # 100 + 45 + 20 + 8 + 7
    (179, ENCODERS),
    (173, ENCODERS),  # while encoders run: 100 + 45 + 20 + 8
    (172, {**ENCODERS, "decoding": "after_use"}),
    (165, {**ENCODERS, "decoding": "after_use"}),  # 100 + 45 + 20
    (164, {**ENCODERS, "decoding": "after_use", "denoising": "module"}),
    (107, {**ENCODERS, "decoding": "after_use", "denoising": "module"}),  # 100 + 7
    (106, {**ENCODERS, "decoding": "after_use", "denoising": "layerwise"}),
    (75, {**ENCODERS, "decoding": "after_use", "denoising": "layerwise"}),  # the encoders, and 10 of the denoiser
]


@pytest.mark.parametrize(("size", "expected"), LADDER, ids=str)
def test_the_first_rung_that_fits_is_taken(size, expected):
    assert names(chosen(size)) == expected


def test_as_many_blocks_stay_as_there_is_room_for():
    # in its stage: 10 outside, those that stay, two that come and go, and 7; while encoders run: 10, those, and 65
    assert [chosen(size)["denoising"]["resident_blocks"] for size in (106, 103, 102, 94, 93)] == [3, 3, 3, 2, 2]
    assert "resident_blocks" not in chosen(75)["denoising"]


def test_the_last_rung_streams_the_encoders_too():
    # 10 of the denoiser, and of the encoders 5 + 20 and 20
    modes = chosen(55)
    assert names(modes) == {**ENCODERS, "text_encoding": "layerwise", "decoding": "after_use", "denoising": "layerwise"}
    assert chosen(54) is None


def test_encoders_whose_blocks_nobody_counted_are_not_streamed():
    held = tuple(each.model_copy(update={"blocks": 0}) if each.role == "text_encoding" else each for each in HELD)
    assert chosen(74, held=held) is None


def test_what_is_asked_for_by_name_stays_so():
    streamed = {"name": "layerwise", "prefetch": 3}
    asked = fixed({**dict.fromkeys(ROLES, "auto"), "text_encoding": "none", "denoising": streamed})
    modes = chosen(118, asked)  # 45 + 20, 10 outside of blocks, four of 9, and 7
    assert chosen(117, asked) is None
    assert (modes["text_encoding"]["name"], modes["denoising"]) == ("none", {"name": "layerwise", "prefetch": 3})
    assert all(each["text_encoding"]["name"] == "none" for each in ladder(asked, NOTHING))


def test_of_two_denoisers_one_at_a_time_is_counted():
    held = (*HELD, HELD[0].model_copy(update={"name": "transformer_2"}))
    assert names(chosen(107, held=held))["denoising"] == "module"
    assert peak(list(held), {**AUTO, "denoising": {"name": "after_use"}}, 0) == 200 + 45 + 20 + 8


def test_a_component_counts_in_the_precision_it_will_have():
    assert names(chosen(180, transformer=4)) != {} and names(chosen(280, transformer=4)) == {}


def test_a_shortfall_is_told_with_what_each_component_takes():
    said = shortfall(BudgetPlan(bytes=2**20, holdings=HELD, activations=7), AUTO, barred=NOTHING)
    assert said.startswith("memory.budget=1.00 MiB: no placement of weights keeps within it; these take, while they ")
    assert "use a larger budget, a smaller precision, or quantization" in said


def test_where_memory_runs_out_the_next_rung_that_helps_there_is_taken():
    assert further(AUTO, "denoising", barred=NOTHING) == ENCODERS
    assert further(AUTO, None, barred=NOTHING) == ENCODERS
    # that encoders leave does not help them: what else does goes along
    assert further(AUTO, "text_encoding", barred=NOTHING) == {**ENCODERS, "decoding": "after_use"}
    now = fixed({**ENCODERS, "decoding": "after_use", "denoising": "none"})
    assert further(now, "decoding", barred=NOTHING) == {"denoising": "module"}
    assert further(now, "denoising", barred=NOTHING) == {"denoising": "layerwise"}
    now = fixed({**ENCODERS, "denoising": "layerwise"})
    assert further(now, "text_encoding", barred=NOTHING) == {"text_encoding": "layerwise"}
    assert further(fixed({"denoising": "layerwise", "text_encoding": "layerwise"}), "denoising", barred=NOTHING) is None
    assert further({}, "denoising", barred=NOTHING) is None


def test_no_rung_takes_a_stage_where_its_other_settings_bar_it_from():
    stages = {role: {"compile": "none", "tp": 1} for role in ROLES}
    assert barred_by(stages) == NOTHING
    full = barred_by({**stages, "denoising": {"compile": "full"}})
    assert chosen(106, barred=full) is None and names(chosen(107, barred=full))["denoising"] == "module"
    assert further(fixed({**ENCODERS, "decoding": "after_use"}), "denoising", barred=full) is None
    parts = barred_by({**stages, "text_encoding": {"tp": 2, "compile": "full"}})
    assert "text_encoding" not in names(chosen(140, barred=parts)) and chosen(74, barred=parts) is None
    assert further(AUTO, "denoising", barred=parts) == {"image_encoding": "after_use", "decoding": "after_use"}
    said = shortfall(BudgetPlan(bytes=2**20, holdings=HELD, activations=7), AUTO, barred=full)
    assert "beside stages.denoising.compile=full fewer weights can be away; use a larger budget" in said


def test_of_streamed_blocks_that_stay_none_stays_where_memory_runs_out():
    now = {"denoising": {"name": "layerwise", "resident_blocks": 3}}
    assert further(now, "denoising", barred=NOTHING) == further(now, "decoding", barred=NOTHING) == names(now)
    assert further({"denoising": {"name": "layerwise"}}, "denoising", barred=NOTHING) is None


def plan(model="black-forest-labs/FLUX.1-dev", run=None, **sections):
    sections.setdefault("sampling", {"prompt": "x"})
    return make_plan(load_recipe({"model": model, **sections}), run=run or RunOptions())


def offloads(found):
    return {c.key.split(".")[1]: c.value for c in found.choices if c.key.endswith(".offload")}


def test_a_plan_says_what_a_budget_comes_to_from_facts_alone():
    assert offloads(plan()) == {}
    assert set(offloads(plan(memory={"budget": "80GiB"})).values()) == {"none"}
    # 22.17 GiB of the transformer, beside nothing else
    assert offloads(plan(memory={"budget": "24GiB"})) == {
        "text_encoding": "after_use",
        "denoising": "module",
        "decoding": "after_use",
    }
    found = offloads(plan(memory={"budget": "16GiB"}, stages={"decoding": {"offload": "none"}}))
    assert found["denoising"].startswith("layerwise, ") and "decoding" not in found


def test_a_budget_streams_nothing_that_is_compiled_as_a_whole_or_split():
    whole = {"denoising": {"compile": "full"}}
    assert offloads(plan(memory={"budget": "24GiB"}, stages=whole))["denoising"] == "module"
    with pytest.raises(PlanError, match="beside stages.denoising.compile=full fewer weights can be away"):
        plan(memory={"budget": "16GiB"}, stages=whole)
    split = {"parallel": {"num_gpus": 2, "ulysses": 2}, "stages": {"text_encoding": {"tp": 2}}}
    found = offloads(plan(memory={"budget": "24GiB"}, **split))
    assert (found["text_encoding"], found["denoising"]) == ("none", "layerwise, 28 blocks stay")


def test_a_plan_without_a_prompt_says_it_too():
    found = plan(memory={"budget": "24GiB"}, sampling={}, run=RunOptions(preview=True))
    assert offloads(found)["denoising"] == "module"


def test_a_budget_that_nothing_fits_is_refused_before_anything_runs():
    with pytest.raises(PlanError, match=r"^memory.budget=4.00 GiB: no placement .* text_encoder_2 8.87 GiB"):
        plan(memory={"budget": "4GiB"})
    shown = render_plan(plan(memory={"budget": "4GiB"}, run=RunOptions(preview=True)))
    assert "refused: this plan cannot run" in shown and "memory.budget=4.00 GiB: no placement" in shown


def test_a_model_of_unknown_cost_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="memory.budget: the cost of .* is not known") as caught:
        plan("AIDC-AI/Ovis-Image-7B", memory={"budget": "24GiB"})
    assert "memory.budget: a pipeline that diffusers runs by itself keeps its weights" in str(caught.value)


STREAMED = [
    # 22.05 GiB of blocks in 50 GB/s; a step takes 0.19 s
    ("black-forest-labs/FLUX.1-dev", {}, "22.05 GiB come in 473", "39 % of it is hidden"),
    # of two branches, one after the other, each step streams twice
    ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", {}, "52.36 GiB come in 1,124", "all of it is hidden"),
    ("black-forest-labs/FLUX.1-dev", {"resident_blocks": 28}, "11.22", "77 % of it is hidden"),
]


@pytest.mark.parametrize(("model", "options", "size", "hidden"), STREAMED)
def test_a_plan_says_whether_streaming_can_be_hidden(model, options, size, hidden):
    stages = {"denoising": {"offload": {"name": "layerwise", **options}}}
    shown = render_plan(plan(model, stages=stages, run=RunOptions(preview=True)))
    (line,) = [line for line in shown.splitlines() if "of it is hidden" in line]
    assert size in line and hidden in line
    assert "assuming 50 GB/s over PCIe" in shown
    assert "of it is hidden" not in render_plan(plan(model, run=RunOptions(preview=True)))


FOREIGN = {"model": {"path": "black-forest-labs/FLUX.1-dev", "backend": "diffusers"}}
REFUSED = [
    (
        {"stages": {"denoising": {"offload": "layerwise", "compile": "full"}}},
        "stages.denoising.offload=layerwise brings each block before it runs, and stages.denoising.compile=full makes "
        "one graph of all; use regional, or after_use",
    ),
    (
        {"stages": {"denoising": {"offload": "after_use"}}, "parallel": {"num_gpus": 2, "hsdp": "all"}},
        "stages.denoising.offload: parallel.hsdp=2 deals the weights out to ranks, which gather each block when it "
        "runs; use one of them",
    ),
    (
        {"memory": {"budget": "60GiB"}, "parallel": {"num_gpus": 2, "hsdp": "all"}},
        "memory.budget: parallel.hsdp=2 deals the weights out already; leave one of them out",
    ),
    (
        {**FOREIGN, "stages": {"decoding": {"offload": "module"}}},
        "stages.decoding.offload: a pipeline that diffusers runs by itself keeps its weights on the device; leave it "
        "out",
    ),
]


@pytest.mark.parametrize(("sections", "message"), REFUSED)
def test_what_offload_cannot_do_is_refused(sections, message):
    with pytest.raises(RecipeError) as caught:
        plan(**sections)
    assert message in [problem.message for problem in caught.value.problems]


def test_encoders_that_are_put_off_are_read_where_a_budget_sends_them_away(tmp_path):
    launch = {"prompt_embeds_dir": str(tmp_path)}
    assert plan(launch=launch).puts_encoders_off
    assert not plan(launch=launch, memory={"budget": "24GiB"}).puts_encoders_off
