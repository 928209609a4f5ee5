"""DMD sampling written out plainly, over the modules of a stock Wan pipeline: the reference, as diffusers has none.

Formulas of FastVideo's DmdDenoisingStage, in fp32: training's shifted noise levels, the one nearest to each time, the
clean latents from the flow prediction, and fresh noise from each sample's generator.
"""

import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

STEPS = (1000, 757, 522)


class WanDMDPipeline(WanPipeline):
    """The class that FastWan's model_index.json names."""


def shifted_levels(shift: float = 8.0) -> torch.Tensor:
    """Noise levels of 1000 training times, from high to low."""
    even = torch.arange(1000, 0, -1, dtype=torch.float32) / 1000
    return shift * even / (1 + (shift - 1) * even)


def noise_like(latents: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
    return torch.cat([torch.randn((1, *latents.shape[1:]), generator=generator) for generator in generators])


class PlainDmd:
    """Called as the stock pipeline is. `levels` holds the noise level of every step."""

    def __init__(self, pipeline: WanPipeline):
        table = shifted_levels()
        self.pipeline = pipeline
        self.levels = [table[(table * 1000 - step).abs().argmin()] for step in STEPS]

    def set_progress_bar_config(self, **kwargs) -> None:
        pass

    @torch.no_grad()
    def __call__(
        self, prompt, height, width, num_frames, max_sequence_length, generator, output_type, callback_on_step_end
    ):
        pipe, config = self.pipeline, self.pipeline.vae.config
        generators = generator if isinstance(generator, list) else [generator]
        text, _ = pipe.encode_prompt(prompt, None, False, max_sequence_length=max_sequence_length)
        sides = height // config.scale_factor_spatial, width // config.scale_factor_spatial
        shape = (len(generators), config.z_dim, (num_frames - 1) // config.scale_factor_temporal + 1, *sides)
        latents = noise_like(torch.empty(shape), generators)
        tokens = shape[2] * sides[0] // 2 * (sides[1] // 2)
        for i, step in enumerate(STEPS):
            times = torch.full((len(generators), tokens), float(step))
            flow = pipe.transformer(latents, times, text, return_dict=False)[0]
            latents = latents - self.levels[i] * flow
            if i < len(STEPS) - 1:
                level = self.levels[i + 1]
                latents = (1 - level) * latents + level * noise_like(latents, generators)
            callback_on_step_end(self, i, step, {"latents": latents})
        return WanPipelineOutput(frames=self._decode(latents))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean).view(shape)
        inverse = 1.0 / torch.tensor(vae.config.latents_std).view(shape)
        video = vae.decode(latents / inverse + mean, return_dict=False)[0]
        return self.pipeline.video_processor.postprocess_video(video, output_type="pt")
