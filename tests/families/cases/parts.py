"""Tokenizers, encoders and VAEs that several families' tiny checkpoints share."""

from typing import Any

from diffusers import AutoencoderKL
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

QWEN_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def clip_tokenizer(length: int = 16) -> CLIPTokenizer:
    """Characters as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=length)


def byte_tokenizer(*specials: str) -> Tokenizer:
    """Bytes as tokens, behind the special ones."""
    vocab = {token: i for i, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, closed by </s>."""
    tokenizer = byte_tokenizer("<pad>", "</s>", "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Bytes as tokens, and the marks of a conversation."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=list(QWEN_SPECIALS))


def clip_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip_text(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    return CLIPTextModel(clip_config(tokenizer, width)).eval()


def clip_projected(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(clip_config(tokenizer, width)).eval()


def t5_sizes(tokenizer: PreTrainedTokenizerFast, width: int) -> dict[str, Any]:
    """What the configs of T5 and UMT5 have in common."""
    return {
        "vocab_size": len(tokenizer),
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * width,
        "num_layers": 2,
        "num_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
    }


def t5_text(tokenizer: PreTrainedTokenizerFast, width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(**t5_sizes(tokenizer, width))).eval()


def umt5_text(tokenizer: PreTrainedTokenizerFast, width: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(**t5_sizes(tokenizer, width))).eval()


def qwen3_text(tokenizer: Qwen2Tokenizer, width: int) -> Qwen3Model:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
        )
    ).eval()


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, padded on the right."""
    tokenizer = byte_tokenizer("<pad>", "<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="right"
    )


def llama_text(tokenizer: PreTrainedTokenizerFast, width: int) -> LlamaModel:
    return LlamaModel(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    ).eval()


def picture_vae(*, scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    """f8 latents of 4 channels, scaled and shifted as FLUX.1, SD3 and Z-Image do."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    ).eval()
