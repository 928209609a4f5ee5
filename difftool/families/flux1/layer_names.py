"""What the layers of FLUX.1's transformer are called in its original code: LoRA files of most trainers use these names.

A name there -> diffusers' layers, in the order of its rows; `#1/2` is the second half of a layer. Sources: Black Forest
Labs' `flux/modules`, diffusers' `scripts/convert_flux_to_diffusers.py` (scale and shift of the last norm change places)
and x-flux's processors (`lora1` of the picture, `lora2` of the text).
"""

IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v")
TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
DOUBLE = {
    "img_attn.qkv": IMAGE,
    "img_attn.proj": ("attn.to_out.0",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": TEXT,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "processor.qkv_lora1": IMAGE,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.qkv_lora2": TEXT,
    "processor.proj_lora2": ("attn.to_add_out",),
}
SINGLE = {
    "linear1": (*IMAGE, "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
    "modulation.lin": ("norm.linear",),
    "processor.qkv_lora": IMAGE,
    "processor.proj_lora": ("proj_out",),
}
LAYER_NAMES = {
    **{f"double_blocks.{{}}.{k}": tuple(f"transformer_blocks.{{}}.{v}" for v in to) for k, to in DOUBLE.items()},
    **{f"single_blocks.{{}}.{k}": tuple(f"single_transformer_blocks.{{}}.{v}" for v in to) for k, to in SINGLE.items()},
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear#1/2", "norm_out.linear#0/2"),
}
