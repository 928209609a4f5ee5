"""Checks a request against the family's facts, for callers that come without a plan."""

from difftool.errors import RecipeError
from difftool.pipeline.batch import Batch
from difftool.pipeline.stage import Context, PipelineStage


class InputValidationStage(PipelineStage):
    """Writes nothing. Raises RecipeError for what a plan would have refused."""

    name = "input_validation"
    reads = frozenset(("prompt", "height", "width", "num_inference_steps", "seeds"))
    writes = frozenset()

    def forward(self, batch: Batch, ctx: Context) -> Batch:
        facts, configs = self.config.facts, self.config.configs(ctx.components)
        multiple, longest = facts.multiple(configs), facts.max_sequence_length
        if batch.height % multiple or batch.width % multiple:
            raise RecipeError(f"{batch.width}x{batch.height}: both must be multiples of {multiple}")
        if len(batch.prompt) != len(batch.seeds):
            raise RecipeError(f"{len(batch.prompt)} prompts but {len(batch.seeds)} seeds: each sample needs its own")
        if batch.negative_prompt is not None and len(batch.negative_prompt) != len(batch.prompt):
            raise RecipeError(f"{len(batch.prompt)} prompts but {len(batch.negative_prompt)} negative prompts")
        if batch.max_sequence_length is not None and batch.max_sequence_length > longest:
            raise RecipeError(f"max_sequence_length={batch.max_sequence_length} is over this model's {longest}")
        step, offset = facts.num_frames or (1, 0)
        if batch.num_frames is not None and (batch.num_frames - offset) % step:
            raise RecipeError(f"num_frames={batch.num_frames}: it must be {step} * k + {offset}")
        least, most = self.config.pipeline.image_counts(configs)
        if not least <= len(batch.image) <= most:
            raise RecipeError(f"{len(batch.image)} pictures: this model takes {least} to {most}")
        return batch
