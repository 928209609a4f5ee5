"""The parts of `builtin:shapes-image`: stock diffusers and transformers classes, tiny, and how they are saved."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from difftool.builtin.shapes import SIDE, scenes

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


def build_vae() -> AutoencoderKL:
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


def words() -> list[str]:
    """Every word of every caption, sorted."""
    every = [*scenes(held_out=False), *scenes(held_out=True)]
    return sorted({word for scene in every for word in scene.caption().split()})


def build_t5_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case, punctuation dropped."""
    specials = ("<pad>", "</s>", "<unk>")
    vocab = {token: i for i, token in enumerate([*specials, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("grey", "gray")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=T5_LENGTH
    )


def build_clip_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE whose merges make each caption word one token."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=5000, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(words(), trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    for token in [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]:
        vocab.setdefault(token, len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], model_max_length=CLIP_LENGTH)


def build_text() -> tuple[dict[str, nn.Module], CLIPTokenizer, PreTrainedTokenizerFast]:
    """Both text encoders, untrained, and their tokenizers."""
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(), build_t5_tokenizer()
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=64,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=96,
            d_kv=32,
            d_ff=192,
            num_layers=2,
            num_heads=3,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            feed_forward_proj="gated-gelu",
        )
    )
    return {"text_encoder": clip, "text_encoder_2": t5}, clip_tokenizer, t5_tokenizer


def tokenise(
    captions: list[str], clip_tokenizer: CLIPTokenizer, t5_tokenizer: PreTrainedTokenizerFast
) -> dict[str, Tensor]:
    """Captions -> {"clip": [B, 14], "t5": [B, 12]} token ids, padded as FluxPipeline pads them."""
    pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return {
        "clip": clip_tokenizer(captions, max_length=CLIP_LENGTH, **pad).input_ids,
        "t5": t5_tokenizer(captions, max_length=T5_LENGTH, **pad).input_ids,
    }


def pack(latents: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H/2 * W/2, 4C], FLUX.1's 2 x 2 patches."""
    return FluxPipeline._pack_latents(latents, len(latents), *latents.shape[1:])


def rope_ids(text_length: int) -> tuple[Tensor, Tensor]:
    """Image ids [S, 3] and text ids [L, 3]."""
    side = LATENT_SIDE // 2
    image = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    return image, torch.zeros(text_length, 3)


def export_pipeline(weights: Path, folder: Path, settings: dict[str, object]) -> None:
    """Saves the trained parts as a bf16 FluxPipeline folder that stock diffusers loads, and `difftool.json` in it."""
    vae, transformer = build_vae(), build_transformer()
    text, clip_tokenizer, t5_tokenizer = build_text()
    stats = json.loads((weights / "latents.json").read_text())
    vae.load_state_dict(torch.load(weights / "decoder.pt", weights_only=True))
    vae.register_to_config(scaling_factor=stats["scale"], shift_factor=stats["shift"])
    modules = nn.ModuleDict({"transformer": transformer, **text})
    modules.load_state_dict(torch.load(weights / "compose.pt", weights_only=True))
    parts = {name: module.eval().to(torch.bfloat16) for name, module in (*modules.items(), ("vae", vae))}
    FluxPipeline(
        **parts,
        tokenizer=clip_tokenizer,
        tokenizer_2=t5_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
    ).save_pretrained(folder)
    for name in ("text_encoder", "text_encoder_2"):  # transformers computes in this dtype, diffusers in fp32
        config = folder / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    defaults = {"sampling": SAMPLING, "launch": {"threads": 1}, "training": settings}
    (folder / "difftool.json").write_text(json.dumps(defaults, indent=2) + "\n")
