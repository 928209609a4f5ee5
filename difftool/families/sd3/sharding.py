"""How SD3's denoiser is split over ranks."""

from difftool.parallel.plans import Heads, SequencePlan, Split, TensorPlan, under

SEQUENCE = SequencePlan(
    blocks=("transformer_blocks",),
    tokens={"hidden_states": Split(("image",), 1), "encoder_hidden_states": Split(("text",), 1)},
    constant={},
    attention={"attn": ("image", "text"), "attn2": ("image",)},
)

BLOCK = "transformer_blocks.*"
TENSOR = TensorPlan(
    heads={f"{BLOCK}.{name}": Heads("heads", shared_out=("heads",)) for name in ("attn", "attn2")},
    columns=(
        *under(f"{BLOCK}.attn", "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"),
        *under(f"{BLOCK}.attn2", "to_q", "to_k", "to_v"),
        *under(BLOCK, "ff.net.0.proj", "ff_context.net.0.proj"),
    ),
    rows=under(BLOCK, "attn.to_out.0", "attn.to_add_out", "attn2.to_out.0", "ff.net.2", "ff_context.net.2"),
    gathered=under(BLOCK, "norm1.linear", "norm1_context.linear"),
)
