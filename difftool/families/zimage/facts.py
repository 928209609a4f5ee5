"""Z-Image without its weights: published checkpoints, their architecture numbers and the reference's defaults.

Source: `transformer/config.json` of both repositories; defaults of `ZImagePipeline.__call__`; for the Turbo, the model
card's 8 denoiser calls without guidance, which the pipeline makes of 8 steps (diffusers pull request 13730; 9 before).
"""

from difftool.facts import AXES, CheckpointFacts, FamilyFacts, PipelineFacts

TRANSFORMER = {
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "dim": 3840,
    "cap_feat_dim": 2560,
    "in_channels": 16,
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}

FACTS = FamilyFacts(
    name="zimage",
    title="Z-Image",
    pipelines={
        "ZImagePipeline": PipelineFacts(
            makes="image",
            model="difftool.families.zimage.model:ZImageConfig",
            components=("scheduler", "text_encoder", "tokenizer", "transformer", "vae"),
        ),
    },
    checkpoints=(
        CheckpointFacts(
            "Tongyi-MAI/Z-Image-Turbo",
            "ZImagePipeline",
            TRANSFORMER,
            sampling={"num_inference_steps": 8, "guidance_scale": 0.0},
            license="Apache-2.0",
        ),
        CheckpointFacts("Tongyi-MAI/Z-Image", "ZImagePipeline", TRANSFORMER, license="Apache-2.0"),
    ),
    sampling={
        "negative_prompt": "",
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "max_sequence_length": 512,
    },
    extra={"cfg_normalization": bool, "cfg_truncation": float},
    guided_extra=("cfg_normalization", "cfg_truncation"),
    guidance=("guidance_scale",),
    second_branch="guidance_scale",
    second_branch_above=0.0,
    heads_key="n_heads",
    axes=AXES,
    size_multiple=16,
    num_frames=None,
    max_sequence_length=512,
    cost="difftool.families.zimage.anatomy:COST",
    masked={"self": "joined"},  # texts are of their own length
)
