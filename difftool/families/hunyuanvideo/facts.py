"""HunyuanVideo without its weights: published checkpoints, their architecture numbers and the references' defaults.

Sources: the class defaults of diffusers' HunyuanVideoTransformer3DModel, which are the published model's; defaults of
`HunyuanVideoPipeline.__call__`; for FastHunyuan FastVideo's sampling parameters (6 steps, time shift 17).
"""

from difftool.facts import AXES, CheckpointFacts, FamilyFacts, PipelineFacts, TeaCacheFit

TRANSFORMER = {
    "num_layers": 20,
    "num_single_layers": 40,
    "num_refiner_layers": 2,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "patch_size_t": 1,
    "text_embed_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
LICENSE = "Tencent Hunyuan Community"

# source: TeaCache4HunyuanVideo of the TeaCache repository
TEACACHE = TeaCacheFit((7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800, 9.61237896e-02), 0.1)
FACTS = FamilyFacts(
    name="hunyuanvideo",
    title="HunyuanVideo",
    pipelines={
        "HunyuanVideoPipeline": PipelineFacts(
            makes="video",
            model="difftool.families.hunyuanvideo.model:HunyuanVideoConfig",
            teacache=TEACACHE,
            components=(
                "scheduler",
                "text_encoder",
                "text_encoder_2",
                "tokenizer",
                "tokenizer_2",
                "transformer",
                "vae",
            ),
        ),
    },
    checkpoints=(
        CheckpointFacts("hunyuanvideo-community/HunyuanVideo", "HunyuanVideoPipeline", TRANSFORMER, license=LICENSE),
        CheckpointFacts(
            "FastVideo/FastHunyuan-diffusers",
            "HunyuanVideoPipeline",
            TRANSFORMER,
            sampling={"num_inference_steps": 6, "num_frames": 125, "scheduler": {"flow_shift": 17.0}},
            license=LICENSE,
        ),
    ),
    sampling={
        "negative_prompt": None,
        "height": 720,
        "width": 1280,
        "num_frames": 129,
        "fps": 24,
        "num_inference_steps": 50,
        "guidance_scale": 6.0,
        "true_cfg_scale": 1.0,
        "max_sequence_length": 256,
    },
    guidance=("guidance_scale", "true_cfg_scale"),
    needs={"guidance_scale": "transformer.guidance_embeds"},
    second_branch="true_cfg_scale",
    heads_key="num_attention_heads",
    axes=AXES,
    size_multiple=16,
    num_frames=(4, 1),
    max_sequence_length=256,
    cost="difftool.families.hunyuanvideo.anatomy:COST",
    video_tokens=True,
)
