"""The encoders and VAEs that published checkpoints share have as many parameters as the page of them says."""

import diffusers
import pytest
import torch
import transformers

from difftool.families import parts
from difftool.parallel.encoders import cut_encoder
from difftool.parallel.mesh import Line

CLIP = {"vocab_size": 49408}
LARGE = {**CLIP, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BIG = {**CLIP, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
HUGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
GROUPED = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
QWEN3 = {"vocab_size": 151936, "num_hidden_layers": 36, **GROUPED}
QWEN_VL = {
    "text_config": {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
    },
    "tie_word_embeddings": False,
}
MISTRAL = {
    "text_config": {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        **GROUPED,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "head_dim": 64,
        "patch_size": 14,
    },
    "tie_word_embeddings": False,
}
LLAMA = {"vocab_size": 128320, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, **GROUPED}
ENCODERS = {
    "CLIP_L": ("CLIPTextModel", "CLIPTextConfig", LARGE),
    "CLIP_L_PROJECTED": ("CLIPTextModelWithProjection", "CLIPTextConfig", {**LARGE, "projection_dim": 768}),
    "CLIP_BIG_G_PROJECTED": ("CLIPTextModelWithProjection", "CLIPTextConfig", {**BIG, "projection_dim": 1280}),
    "CLIP_H_VISION": ("CLIPVisionModel", "CLIPVisionConfig", {**HUGE, "image_size": 224, "patch_size": 14}),
    "T5_XXL": ("T5EncoderModel", "T5Config", {**T5, "vocab_size": 32128}),
    "UMT5_XXL": ("UMT5EncoderModel", "UMT5Config", {**T5, "vocab_size": 256384}),
    "LLAMA_8B": ("LlamaModel", "LlamaConfig", LLAMA),
    "QWEN3_4B": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {**QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    ),
    "QWEN3_8B": ("Qwen3ForCausalLM", "Qwen3Config", {**QWEN3, "hidden_size": 4096, "intermediate_size": 12288}),
    "QWEN25_VL_7B": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", QWEN_VL),
    "MISTRAL_SMALL": ("Mistral3ForConditionalGeneration", "Mistral3Config", MISTRAL),
}
DOWN, UP = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
PICTURE_VAE = {
    "down_block_types": DOWN,
    "up_block_types": UP,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
WAN22_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
VAES = {
    "VAE_16_CHANNELS": ("AutoencoderKL", PICTURE_VAE),
    "VAE_FLUX2": ("AutoencoderKLFlux2", {}),
    "VAE_WAN": ("AutoencoderKLWan", {}),
    "VAE_WAN22": ("AutoencoderKLWan", WAN22_VAE),
    "VAE_HUNYUANVIDEO": ("AutoencoderKLHunyuanVideo", {}),
    "VAE_LTX": ("AutoencoderKLLTXVideo", {}),
}


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_the_parameters_of_its_class(name):
    kind, config, values = ENCODERS[name]
    with torch.device("meta"):
        model = getattr(transformers, kind)(getattr(transformers, config)(**values))
    assert getattr(parts, name) == parameters(model)


@pytest.mark.parametrize("name", VAES)
def test_a_vae_has_the_parameters_of_its_class(name):
    kind, values = VAES[name]
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**values)
    assert getattr(parts, name) == parameters(model)


@pytest.mark.parametrize("name", [name for name in ENCODERS if getattr(parts, name) in parts.DEALT])
def test_a_split_encoder_leaves_a_rank_what_is_not_dealt_out_and_its_share(name):
    kind, config, values = ENCODERS[name]
    for ranks in (2, 4):
        with torch.device("meta"):
            model = getattr(transformers, kind)(getattr(transformers, config)(**values))
        cut_encoder(model, Line(tuple(range(ranks))), name=name)
        tied = "encoder.embed_tokens"  # of T5, which is `shared` under another name
        own = sum(p.numel() for key, p in model.named_parameters() if not key.startswith(tied))
        dealt = parts.DEALT[getattr(parts, name)]
        assert own == getattr(parts, name) - dealt + dealt // ranks


def test_no_number_is_left_unchecked():
    assert {*ENCODERS, *VAES, "DEALT"} == {name for name in vars(parts) if name.isupper()}
    assert {getattr(parts, name) for name in ENCODERS if name != "CLIP_H_VISION"} == parts.DEALT.keys()
    assert parameters_of_qwen_vae() == parts.VAE_WAN


def parameters_of_qwen_vae():
    with torch.device("meta"):
        return parameters(diffusers.AutoencoderKLQwenImage())
