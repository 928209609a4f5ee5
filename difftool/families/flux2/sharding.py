"""How FLUX.2's denoiser is split over ranks."""

from difftool.parallel.plans import Heads, Packed, SequencePlan, Split, TensorPlan, under

SEQUENCE = SequencePlan(
    blocks=("transformer_blocks", "single_transformer_blocks"),
    tokens={"hidden_states": Split(("image",), 1), "encoder_hidden_states": Split(("text",), 1)},
    constant={"image_rotary_emb": (Split(("text", "image"), 0), Split(("text", "image"), 0))},
    attention={"attn": ("text", "image")},
    gather=("single_transformer_blocks.-1", "output", Split(("text", "image"), 1)),
)

DOUBLE, SINGLE = "transformer_blocks.*", "single_transformer_blocks.*"
TENSOR = TensorPlan(
    heads={
        f"{DOUBLE}.attn": Heads("heads", shared_out=("heads",)),
        f"{SINGLE}.attn": Heads("heads", shared_out=("heads", "inner_dim", "mlp_hidden_dim")),
    },
    columns=(
        *under(f"{DOUBLE}.attn", "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"),
        *(Packed(f"{DOUBLE}.{name}.linear_in", 2) for name in ("ff", "ff_context")),
        Packed(f"{SINGLE}.attn.to_qkv_mlp_proj", ("inner_dim",) * 3 + ("mlp_hidden_dim",) * 2),
    ),
    rows=(
        *under(f"{DOUBLE}.attn", "to_out.0", "to_add_out"),
        *under(DOUBLE, "ff.linear_out", "ff_context.linear_out"),
        Packed(f"{SINGLE}.attn.to_out", ("inner_dim", "mlp_hidden_dim")),
    ),
)
