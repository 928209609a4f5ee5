"""FLUX.1 without its weights: published checkpoints, their architecture numbers and the reference's defaults.

Source: the model cards and `transformer/config.json` of both repositories; defaults of `FluxPipeline.__call__`.
"""

from difftool.facts import CheckpointFacts, FamilyFacts

TRANSFORMER = {
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}

FACTS = FamilyFacts(
    name="flux1",
    title="FLUX.1",
    model="difftool.families.flux1.model:Flux1Config",
    pipeline_classes={"FluxPipeline": "t2i"},
    checkpoints=(
        CheckpointFacts(
            "black-forest-labs/FLUX.1-dev",
            "FluxPipeline",
            {**TRANSFORMER, "guidance_embeds": True},
            license="FLUX.1-dev non-commercial, gated",
        ),
        CheckpointFacts(
            "black-forest-labs/FLUX.1-schnell",
            "FluxPipeline",
            {**TRANSFORMER, "guidance_embeds": False},
            sampling={"num_inference_steps": 4, "max_sequence_length": 256},
            license="Apache-2.0",
        ),
    ),
    sampling={
        "negative_prompt": None,
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 28,
        "guidance_scale": 3.5,
        "true_cfg_scale": 1.0,
        "max_sequence_length": 512,
    },
    extra={"prompt_2": str, "negative_prompt_2": str},
    guidance={"guidance_scale": "guidance_embeds", "true_cfg_scale": None},
    second_branch="true_cfg_scale",
    components=("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"),
    heads_key="num_attention_heads",
    size_multiple=16,
    num_frames=None,
    max_sequence_length=512,
)
