"""What the layers of Wan's transformer are called in its original code: LoRA files of most trainers use these names.

A name there -> diffusers' layer. Sources: Wan's `wan/modules/model.py` and diffusers'
`scripts/convert_wan_to_diffusers.py`. Its norm2 and norm3 are the other way round in diffusers.
"""

ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
PICTURE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
BLOCK = {
    **{f"self_attn.{name}": f"attn1.{layer}" for name, layer in ATTENTION.items()},
    **{f"cross_attn.{name}": f"attn2.{layer}" for name, layer in {**ATTENTION, **PICTURE}.items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm2": "norm3",
    "norm3": "norm2",
}
LAYER_NAMES = {
    **{f"blocks.{{}}.{name}": (f"blocks.{{}}.{layer}",) for name, layer in BLOCK.items()},
    "time_embedding.0": ("condition_embedder.time_embedder.linear_1",),
    "time_embedding.2": ("condition_embedder.time_embedder.linear_2",),
    "text_embedding.0": ("condition_embedder.text_embedder.linear_1",),
    "text_embedding.2": ("condition_embedder.text_embedder.linear_2",),
    "time_projection.1": ("condition_embedder.time_proj",),
    "img_emb.proj.0": ("condition_embedder.image_embedder.norm1",),
    "img_emb.proj.1": ("condition_embedder.image_embedder.ff.net.0.proj",),
    "img_emb.proj.3": ("condition_embedder.image_embedder.ff.net.2",),
    "img_emb.proj.4": ("condition_embedder.image_embedder.norm2",),
    "head.head": ("proj_out",),
}
