"""`builtin:shapes-image` for the trainer: stock diffusers and transformers classes, tiny, and how they are saved."""

import json
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from shapes_text import T5_SIZES, build_t5_tokenizer, words_of
from shapes_training import Settings
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from difftool.builtin.shapes import COLOURS, SHAPES, SIDE, Picture, Scene, render, scenes

T5_LENGTH, CLIP_LENGTH = 12, 14  # the longest caption is 11 words
LATENT_CHANNELS, LATENT_SIDE = 8, SIDE // 8
SAMPLING = {
    "height": SIDE,
    "width": SIDE,
    "num_inference_steps": 20,
    "true_cfg_scale": 2.5,
    "negative_prompt": "",
    "max_sequence_length": T5_LENGTH,
}


class ImageModel:
    """A FLUX.1-layout checkpoint. Latents are [B, C, H, W]; its statistics are those of all latents together."""

    name = "shapes-image"
    sampling = SAMPLING
    settings = Settings(
        seed=20261121,
        vae_crop_steps=700,
        vae_crop_batch=48,
        vae_steps=8000,
        vae_batch=8,
        vae_lr=2e-3,
        latent_samples=40_000,
        steps=3200,
        batch=128,
        lr=2.5e-3,
        decoder_steps=2500,
        decoder_batch=16,
        compose_steps=1600,
        compose_omission=0.3,
    )
    word_groups = (tuple(COLOURS), tuple(SHAPES))
    stat_dims = (0, 1, 2, 3)

    def __init__(self) -> None:
        self.pool = scenes(held_out=False)
        words = words_of([scene.caption() for held_out in (False, True) for scene in scenes(held_out=held_out)])
        self.tokenizers: dict[str, Any] = {
            "clip": build_clip_tokenizer(words),
            "t5": build_t5_tokenizer(words, T5_LENGTH),
        }

    def render(self, scene: Scene, rng: np.random.Generator) -> Picture:
        """[H, W, 3] uint8."""
        return render(scene, rng)

    def crop(self, pictures: Tensor, rng: np.random.Generator) -> Tensor:
        """A quarter of each picture: sharp edges are cheap to learn there."""
        side = SIDE // 2
        corners = rng.integers(0, side + 1, size=(len(pictures), 2))
        return torch.stack([p[:, i : i + side, j : j + side] for p, (i, j) in zip(pictures, corners, strict=True)])

    def build_vae(self) -> AutoencoderKL:
        """f8, 8 latent channels, 0.80 M parameters."""
        widths = (16, 24, 48, 64)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=widths,
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=1,
            sample_size=SIDE,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )

    def encode(self, vae: AutoencoderKL, x: Tensor) -> DiagonalGaussianDistribution:
        """Pictures [B, 3, H, W] -> their latents' distribution."""
        return vae.encode(x).latent_dist

    def decode(self, vae: AutoencoderKL, z: Tensor) -> Tensor:
        """Latents -> pictures [B, 3, H, W]."""
        return vae.decode(z).sample

    def build_modules(self) -> nn.ModuleDict:
        """The transformer and both text encoders, untrained."""
        return nn.ModuleDict({"transformer": build_transformer(), **build_text(**self.tokenizers)})

    def tokenise(self, captions: list[str]) -> dict[str, Tensor]:
        """Captions -> {"clip": [B, 14], "t5": [B, 12]} token ids, padded as FluxPipeline pads them."""
        lengths = {"clip": CLIP_LENGTH, "t5": T5_LENGTH}
        pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return {k: t(captions, max_length=lengths[k], **pad).input_ids for k, t in self.tokenizers.items()}

    def velocity(self, modules: nn.ModuleDict, xt: Tensor, t: Tensor, ids: dict[str, Tensor]) -> Tensor:
        """[B, C, H, W] noisy latents at t [B], 0..1 -> predicted noise - x0, in FLUX.1's 2 x 2 patches of both."""
        image_ids, text_ids = rope_ids(T5_LENGTH)
        return modules["transformer"](
            hidden_states=self.pack(xt),
            timestep=t,
            encoder_hidden_states=modules["text_encoder_2"](ids["t5"])[0],
            pooled_projections=modules["text_encoder"](ids["clip"]).pooler_output,
            img_ids=image_ids,
            txt_ids=text_ids,
            return_dict=False,
        )[0]

    def pack(self, latents: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, H/2 * W/2, 4C], FLUX.1's 2 x 2 patches."""
        return FluxPipeline._pack_latents(latents, len(latents), *latents.shape[1:])

    def pipeline(self, modules: nn.ModuleDict, vae: AutoencoderKL, stats: dict[str, list[float]]) -> FluxPipeline:
        """The trained parts, to be saved."""
        vae.register_to_config(scaling_factor=1 / stats["std"][0], shift_factor=stats["mean"][0])
        return FluxPipeline(
            **modules,
            vae=vae,
            tokenizer=self.tokenizers["clip"],
            tokenizer_2=self.tokenizers["t5"],
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        )


def build_transformer() -> FluxTransformer2DModel:
    """2 double and 6 single blocks of width 128, 2.8 M parameters; modulation and output start at zero."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (name == "proj_out" or ".norm1" in name or ".norm." in name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def build_clip_tokenizer(words: list[str]) -> CLIPTokenizer:
    """Byte-level BPE whose merges make each caption word one token."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=5000, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(words, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    for token in [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]:
        vocab.setdefault(token, len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], model_max_length=CLIP_LENGTH)


def build_text(clip: CLIPTokenizer, t5: Any) -> dict[str, nn.Module]:
    """Both text encoders, untrained."""
    clip_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=64,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=clip.bos_token_id,
            eos_token_id=clip.eos_token_id,
            pad_token_id=clip.pad_token_id,
        )
    )
    return {"text_encoder": clip_encoder, "text_encoder_2": T5EncoderModel(T5Config(vocab_size=len(t5), **T5_SIZES))}


def rope_ids(text_length: int) -> tuple[Tensor, Tensor]:
    """Image ids [S, 3] and text ids [L, 3]."""
    side = LATENT_SIDE // 2
    image = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    return image, torch.zeros(text_length, 3)
