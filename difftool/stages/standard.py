"""The standard orders of the standard stages."""

from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.stage import PipelineStage
from difftool.stages.decoding import DecodingStage
from difftool.stages.denoising import DenoisingStage
from difftool.stages.input_validation import InputValidationStage
from difftool.stages.latent_preparation import LatentPreparationStage
from difftool.stages.text_encoding import TextEncodingStage
from difftool.stages.timestep_preparation import TimestepPreparationStage


def standard_t2i_stages(config: PipelineConfig) -> list[PipelineStage]:
    """Text to picture: validate, encode, prepare latents and timesteps, denoise, decode."""
    return [
        InputValidationStage(config),
        TextEncodingStage(config),
        LatentPreparationStage(config),
        TimestepPreparationStage(config),
        DenoisingStage(config),
        DecodingStage(config),
    ]
