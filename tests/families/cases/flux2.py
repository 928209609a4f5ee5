"""Tiny FLUX.2 checkpoints, of both language models."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from families.cases.case import Case, picture
from families.cases.parts import qwen_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

MISTRAL_MARKS = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
MISTRAL_CHAT = """{{ bos_token }}{% for said in messages %}{% for part in said['content'] %}
{%- if said['role'] == 'system' %}[SYSTEM_PROMPT]{{ part['text'] }}[/SYSTEM_PROMPT]
{%- else %}[INST]{{ part['text'] }}[/INST]{% endif %}{% endfor %}{% endfor %}"""
QWEN_CHAT = """{% for said in messages %}<|im_start|>{{ said['role'] }}
{{ said['content'] }}<|im_end|>{% endfor %}<|im_start|>assistant
"""
WIDTH = 16  # of the language models, of which three layers go side by side
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens after <s>, and the marks of a conversation."""
    specials = ["<unk>", "<s>", "</s>", "<pad>", *MISTRAL_MARKS]
    vocab = {token: i for i, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(MISTRAL_MARKS),
    )
    made.chat_template = MISTRAL_CHAT
    return made


def mistral_text(tokenizer: PreTrainedTokenizerFast) -> Mistral3ForConditionalGeneration:
    """Enough layers for the three that are read, and eyes that nobody uses."""
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "head_dim": 8, "image_size": 28, "patch_size": 14}
    text = {"model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 30, **LANGUAGE}
    return Mistral3ForConditionalGeneration(Mistral3Config(vision_config=vision, text_config=text)).eval()


def parts(*, guidance_embeds: bool) -> dict[str, Any]:
    """2 double and 2 single blocks of width 32; f8 latents of 4 channels with batch norm statistics of their own."""
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guidance_embeds,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return {
        "transformer": transformer.eval(),
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }


def flux2() -> Flux2Pipeline:
    """FLUX.2-dev, with the tokenizer of its processor."""
    torch.manual_seed(0)
    tokenizer = mistral_tokenizer()
    return Flux2Pipeline(
        **parts(guidance_embeds=True),
        tokenizer=tokenizer,
        text_encoder=mistral_text(tokenizer),
    )


def klein(*, is_distilled: bool) -> Flux2KleinPipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = QWEN_CHAT
    config = Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=28, **LANGUAGE)
    return Flux2KleinPipeline(
        **parts(guidance_embeds=False),
        tokenizer=tokenizer,
        text_encoder=Qwen3ForCausalLM(config).eval(),
        is_distilled=is_distilled,
    )


class KleinWithNegative(Flux2KleinPipeline):
    """The reference, which encodes "" as the negative prompt or is given embeddings: here of texts."""

    def encode_prompt(self, prompt, prompt_embeds=None, **kwargs):
        return super().encode_prompt(prompt if prompt_embeds is None else prompt_embeds, **kwargs)


def with_negative(pipe: Flux2KleinPipeline) -> Flux2KleinPipeline:
    return KleinWithNegative(**pipe.components, is_distilled=pipe.config.is_distilled)


PICTURES = {
    "one picture": {"image": (picture(70, 100),)},
    "two pictures": {"image": (picture(64, 64), picture(96, 65, 3)), "num_inference_steps": 2},
}
LARGE = {"a large picture": {"image": (picture(1700, 800),), "num_inference_steps": 1}}
SMALL = {"height": 64, "width": 64, "image": (picture(64, 80),)}
CASES = (
    Case(
        "flux2-dev",
        "flux2",
        "Flux2Pipeline",
        flux2,
        {**SMALL, "guidance_scale": 4.0, "max_sequence_length": 320},
        {"text alone": {"image": ()}, **PICTURES, **LARGE},
    ),
    Case(
        "flux2-klein",
        "flux2",
        "Flux2KleinPipeline",
        lambda: klein(is_distilled=True),
        {**SMALL, "max_sequence_length": 48},
        {"text alone": {"image": ()}},
    ),
    Case(
        "flux2-klein-base",
        "flux2",
        "Flux2KleinPipeline",
        lambda: klein(is_distilled=False),
        {**SMALL, "guidance_scale": 4.0, "negative_prompt": [""], "max_sequence_length": 48},
        {"text alone": {"image": ()}, **PICTURES},
        reference=with_negative,
        arguments=lambda batch: {"negative_prompt_embeds": batch.negative_prompt},
    ),
)
