"""What the layers of Z-Image's transformer are called in its original code, where diffusers calls them otherwise: some
LoRA files use these names.

A name there -> diffusers' layers, in the order of its rows. Source: diffusers'
`convert_z_image_transformer_checkpoint_to_diffusers`.
"""

BLOCKS = ("layers", "noise_refiner", "context_refiner")
ATTENTION = {"qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",), "q_norm": ("norm_q",), "k_norm": ("norm_k",)}
LAYER_NAMES = {
    **{
        f"{blocks}.{{}}.attention.{name}": tuple(f"{blocks}.{{}}.attention.{layer}" for layer in layers)
        for blocks in BLOCKS
        for name, layers in ATTENTION.items()
    },
    "x_embedder": ("all_x_embedder.2-1",),
    "final_layer.linear": ("all_final_layer.2-1.linear",),
    "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
}
