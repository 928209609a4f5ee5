"""How Qwen-Image's denoiser is split over ranks."""

from difftool.parallel.plans import Heads, SequencePlan, Split, TensorPlan, under

SEQUENCE = SequencePlan(
    blocks=("transformer_blocks",),
    tokens={"hidden_states": Split(("image",), 1), "encoder_hidden_states": Split(("text",), 1)},
    constant={
        "image_rotary_emb": (Split(("image",), 0), Split(("text",), 0)),
        "encoder_hidden_states_mask": Split(("text",), 1),
        "modulate_index": Split(("image",), 1),
    },
    attention={"attn": ("text", "image")},
)

BLOCK = "transformer_blocks.*"
TENSOR = TensorPlan(
    heads={f"{BLOCK}.attn": Heads("heads", shared_out=("heads", "inner_dim"))},
    columns=(
        *under(f"{BLOCK}.attn", "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"),
        *under(BLOCK, "img_mlp.net.0.proj", "txt_mlp.net.0.proj"),
    ),
    rows=(*under(f"{BLOCK}.attn", "to_out.0", "to_add_out"), *under(BLOCK, "img_mlp.net.2", "txt_mlp.net.2")),
    gathered=under(BLOCK, "img_mod.1", "txt_mod.1"),
)
