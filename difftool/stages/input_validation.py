"""Checks a request against the family's facts, for callers that come without a plan."""

from difftool.errors import RecipeError
from difftool.pipeline.batch import Batch
from difftool.pipeline.stage import Context, PipelineStage


class InputValidationStage(PipelineStage):
    """Writes nothing. Raises RecipeError for what a plan would have refused."""

    name = "input_validation"
    reads = frozenset(("prompt", "height", "width", "num_inference_steps", "seeds", "max_sequence_length"))
    writes = frozenset()

    def forward(self, batch: Batch, ctx: Context) -> Batch:
        multiple, longest = self.config.facts.size_multiple, self.config.facts.max_sequence_length
        if batch.height % multiple or batch.width % multiple:
            raise RecipeError(f"{batch.width}x{batch.height}: both must be multiples of {multiple}")
        if len(batch.prompt) != len(batch.seeds):
            raise RecipeError(f"{len(batch.prompt)} prompts but {len(batch.seeds)} seeds: each sample needs its own")
        if batch.negative_prompt is not None and len(batch.negative_prompt) != len(batch.prompt):
            raise RecipeError(f"{len(batch.prompt)} prompts but {len(batch.negative_prompt)} negative prompts")
        if batch.max_sequence_length > longest:
            raise RecipeError(f"max_sequence_length={batch.max_sequence_length} is over this model's {longest}")
        return batch
