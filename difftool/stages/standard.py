"""The standard orders of the standard stages."""

from difftool.pipeline.config import PipelineConfig
from difftool.pipeline.stage import PipelineStage
from difftool.stages.decoding import DecodingStage
from difftool.stages.denoising import DenoisingStage
from difftool.stages.image_encoding import ImageEncodingStage
from difftool.stages.image_vae_encoding import ImageVAEEncodingStage
from difftool.stages.input_validation import InputValidationStage
from difftool.stages.latent_preparation import LatentPreparationStage
from difftool.stages.text_encoding import TextEncodingStage
from difftool.stages.timestep_preparation import TimestepPreparationStage


def standard_t2i_stages(config: PipelineConfig) -> list[PipelineStage]:
    """Text to picture: validate, encode, prepare latents and timesteps, denoise, decode."""
    return [InputValidationStage(config), TextEncodingStage(config), *_from_latents(config)]


def standard_ti2i_stages(config: PipelineConfig) -> list[PipelineStage]:
    """Text and pictures to a picture: the pictures are encoded to latents after the text."""
    text = [InputValidationStage(config), TextEncodingStage(config)]
    return [*text, ImageVAEEncodingStage(config), *_from_latents(config)]


def standard_t2v_stages(config: PipelineConfig) -> list[PipelineStage]:
    """Text to video: the order of text to picture."""
    return standard_t2i_stages(config)


def standard_ti2v_stages(config: PipelineConfig) -> list[PipelineStage]:
    """Text and a picture to a video: an image encoder sees the picture where there is one, then the VAE."""
    pictures = [ImageEncodingStage(config), ImageVAEEncodingStage(config)]
    return [InputValidationStage(config), TextEncodingStage(config), *pictures, *_from_latents(config)]


def _from_latents(config: PipelineConfig) -> list[PipelineStage]:
    return [
        LatentPreparationStage(config),
        TimestepPreparationStage(config),
        DenoisingStage(config),
        DecodingStage(config),
    ]
