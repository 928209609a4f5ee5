"""`builtin:shapes-video` for the trainer: stock diffusers and transformers classes, tiny, and how they are saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanRMS_norm, patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from shapes_text import T5_SIZES, build_t5_tokenizer, words_of
from shapes_training import Settings
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from difftool.builtin.shapes_video import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FRAMES,
    SHAPES,
    SIDE,
    Clip,
    Motion,
    motions,
    render,
)

TEXT_LENGTH = 12  # the longest caption is 9 words
LATENT_CHANNELS = 16
SAMPLING = {
    "height": SIDE,
    "width": SIDE,
    "num_frames": FRAMES,
    "fps": 8,
    "num_inference_steps": 20,
    "guidance_scale": 2.5,
    "negative_prompt": "",
    "max_sequence_length": TEXT_LENGTH,
}


class VideoModel:
    """A Wan-layout checkpoint. Latents are [B, C, T, H, W]; each channel has statistics of its own."""

    name = "shapes-video"
    sampling = SAMPLING
    settings = Settings(
        seed=20261122,
        vae_crop_steps=1200,
        vae_crop_batch=4,
        vae_steps=2500,
        vae_batch=4,
        vae_lr=0.002,
        latent_samples=2500,
        steps=1600,
        batch=32,
        lr=2e-3,
        decoder_steps=900,
        decoder_batch=4,
    )
    word_groups = (COLOURS, SHAPES, tuple(DIRECTIONS), tuple(BACKGROUNDS))
    stat_dims = (0, 2, 3, 4)

    def __init__(self) -> None:
        self.pool = motions(held_out=False)
        words = words_of([motion.caption() for held_out in (False, True) for motion in motions(held_out=held_out)])
        self.tokenizers: dict[str, Any] = {"t5": build_t5_tokenizer(words, TEXT_LENGTH)}

    def render(self, motion: Motion, rng: np.random.Generator) -> Clip:
        """[T, H, W, 3] uint8."""
        return render(motion, rng)

    def crop(self, clips: Tensor, rng: np.random.Generator) -> Tensor:
        """The first or the last 5 of the 9 frames: the VAE codes them alike, as a first frame and four more."""
        start = FRAMES // 2 * int(rng.integers(2))
        return clips[:, :, start : start + FRAMES // 2 + 1]

    def build_vae(self) -> AutoencoderKLWan:
        """f4 in space (2 x by patches, as in Wan 2.2), f2 in time, 16 latent channels, 1.0 M parameters."""
        return AutoencoderKLWan(
            base_dim=16,
            z_dim=LATENT_CHANNELS,
            dim_mult=[1, 3],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.0] * LATENT_CHANNELS,
            latents_std=[1.0] * LATENT_CHANNELS,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_temporal=2,
            scale_factor_spatial=4,
        )

    def encode(self, vae: AutoencoderKLWan, x: Tensor) -> DiagonalGaussianDistribution:
        """Clips [B, 3, T, H, W] -> their latents' distribution, as `vae.encode` gives it."""
        with whole_clips():
            return DiagonalGaussianDistribution(vae.quant_conv(vae.encoder(patchify(x, vae.config.patch_size))))

    def decode(self, vae: AutoencoderKLWan, z: Tensor) -> Tensor:
        """Latents -> clips [B, 3, T, H, W], without `vae.decode`'s clamp.

        A picture that is mostly white or black saturates there, and learns nothing more.
        """
        with whole_clips():
            return unpatchify(vae.decoder(vae.post_quant_conv(z)), vae.config.patch_size)

    def build_modules(self) -> nn.ModuleDict:
        """The transformer and its text encoder, untrained."""
        config = UMT5Config(vocab_size=len(self.tokenizers["t5"]), **T5_SIZES)
        return nn.ModuleDict({"transformer": build_transformer(), "text_encoder": UMT5EncoderModel(config)})

    def tokenise(self, captions: list[str]) -> dict[str, Tensor]:
        """Captions -> {"t5": [B, 12]} token ids, padded as WanPipeline pads them."""
        tokenizer = self.tokenizers["t5"]
        ids = tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
        return {"t5": ids.input_ids}

    def velocity(self, modules: nn.ModuleDict, xt: Tensor, t: Tensor, ids: dict[str, Tensor]) -> Tensor:
        """[B, C, T, H, W] noisy latents at t [B], 0..1 -> predicted noise - x0, of the same shape.

        Embeddings of padding are zeros, as WanPipeline makes them.
        """
        mask = ids["t5"] != self.tokenizers["t5"].pad_token_id
        text = modules["text_encoder"](ids["t5"], mask).last_hidden_state * mask[..., None]
        return modules["transformer"](xt, 1000 * t, text, return_dict=False)[0]

    def pack(self, latents: Tensor) -> Tensor:
        """The transformer cuts latents into patches by itself."""
        return latents

    def pipeline(self, modules: nn.ModuleDict, vae: AutoencoderKLWan, stats: dict[str, list[float]]) -> WanPipeline:
        """The trained parts, to be saved."""
        vae.register_to_config(latents_mean=stats["mean"], latents_std=stats["std"])
        return WanPipeline(
            **modules,
            vae=vae,
            tokenizer=self.tokenizers["t5"],
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        )


def build_transformer() -> WanTransformer3DModel:
    """6 blocks of width 128, 80 tokens a clip, 1.6 M parameters; the output starts at zero."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=96,
        freq_dim=64,
        ffn_dim=384,
        num_layers=6,
    )
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def resample_whole(self: WanResample, x: Tensor, feat_cache: None = None, feat_idx: tuple[int] = (0,)) -> Tensor:
    """[B, C, T, H, W] resampled in one pass, to what the class makes of it in chunks of 1, 4, 4, ... frames.

    The first frame is no part of the resampling in time.
    """
    if self.mode == "upsample3d":
        later = self.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))  # [B, 2, C, T - 1, H, W]
        x = torch.cat([x[:, :, :1], later.movedim(1, 3).flatten(2, 3)], dim=2)
    batch, _, frames = x.shape[:3]
    x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
    return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2) if self.mode == "downsample3d" else x


def plain_norm(self: WanRMS_norm, x: Tensor) -> Tensor:
    """The same function of [B, C, ...]; the norm that torch has is slow over strides."""
    return x * (x.square().sum(1, keepdim=True) + 1e-20).rsqrt() * (self.scale * self.gamma)


@contextmanager
def whole_clips() -> Iterator[None]:
    """Training only: one pass over all frames is twice as fast as one for each latent frame."""
    stock = WanResample.forward, WanRMS_norm.forward
    WanResample.forward, WanRMS_norm.forward = resample_whole, plain_norm
    try:
        yield
    finally:
        WanResample.forward, WanRMS_norm.forward = stock
