"""A pipeline that cannot work fails where it is put together, before any weight is loaded."""

import pytest

from difftool.errors import CompositionError
from difftool.pipeline.composed import ComposedPipeline
from difftool.pipeline.registry import load_config
from difftool.stages.denoising import DenoisingStage

CONFIG = load_config("flux1", "FluxPipeline")
NAMES = CONFIG.pipeline.components


def test_the_standard_order_holds():
    assert [stage.name for stage in ComposedPipeline(CONFIG.stages(), available=NAMES).stages] == [
        "input_validation",
        "text_encoding",
        "latent_preparation",
        "timestep_preparation",
        "denoising",
        "decoding",
    ]


def test_a_stage_before_what_it_reads_is_refused():
    stages = CONFIG.stages()
    stages[3], stages[4] = stages[4], stages[3]
    with pytest.raises(CompositionError, match="denoising reads branches, which no earlier") as error:
        ComposedPipeline(stages, available=NAMES)
    assert error.value.hint == "move timestep_preparation before denoising"


def test_a_missing_stage_is_named_by_what_it_writes():
    stages = [stage for stage in CONFIG.stages() if stage.name != "text_encoding"]
    with pytest.raises(CompositionError, match="reads prompt_embeds") as error:
        ComposedPipeline(stages, available=NAMES)
    assert error.value.hint == "add a stage that writes prompt_embeds"


def test_two_writers_of_one_field_are_refused():
    stages = CONFIG.stages()
    stages.insert(4, DenoisingStage(CONFIG))
    with pytest.raises(CompositionError, match="stages denoising and denoising both write denoised"):
        ComposedPipeline(stages, available=NAMES)


def test_a_pipeline_without_a_result_is_refused():
    with pytest.raises(CompositionError, match="no stage writes pixels"):
        ComposedPipeline(CONFIG.stages()[:-1], available=NAMES)


def test_a_component_the_checkpoint_lacks_is_named():
    with pytest.raises(CompositionError, match="stage decoding needs vae, which the checkpoint does not have"):
        ComposedPipeline(CONFIG.stages(), available=[name for name in NAMES if name != "vae"])


def test_a_hybrid_stage_may_stand_for_several_standard_ones():
    from difftool.pipeline.stage import PipelineStage

    class FluxBeforeDenoisingStage(PipelineStage):
        name = "before_denoising"
        reads = frozenset(("prompt", "height", "width", "seeds"))
        writes = frozenset(
            ("prompt_embeds", "negative_prompt_embeds", "latents", "raw_latent_shape", "scheduler", "timesteps")
            + ("sigmas", "branches")
        )

        def forward(self, batch, ctx):
            return batch

    ComposedPipeline([FluxBeforeDenoisingStage(CONFIG), *CONFIG.stages()[-2:]], available=NAMES)


def test_a_stage_that_writes_what_it_did_not_declare_is_caught():
    from dataclasses import replace

    from families.running import assemble_case, batch_for, context_for

    from difftool.stages.latent_preparation import LatentPreparationStage

    class Greedy(LatentPreparationStage):
        def forward(self, batch, ctx):
            return replace(super().forward(batch, ctx), sigmas=[1.0])

    assembled = assemble_case("flux1-dev")
    stages = [Greedy(CONFIG) if stage.name == "latent_preparation" else stage for stage in CONFIG.stages()]
    with pytest.raises(AssertionError, match="latent_preparation wrote .'sigmas'. undeclared"):
        ComposedPipeline(stages, available=NAMES)(batch_for(assembled), context_for(assembled))
