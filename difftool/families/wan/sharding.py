"""How Wan's denoiser is split over ranks."""

from difftool.parallel.plans import Heads, SequencePlan, Split, TensorPlan, under

SEQUENCE = SequencePlan(
    blocks=("blocks",),
    tokens={"hidden_states": Split(("image",), 1)},
    constant={
        "rotary_emb": (Split(("image",), 1), Split(("image",), 1)),
        "temb": Split(("image",), 1, ndim=4),  # of TI2V-5B, where every token has a time
    },
    attention={"attn1": ("image",)},
)

BLOCK = "blocks.*"
TENSOR = TensorPlan(
    heads={f"{BLOCK}.{name}": Heads("heads", shared_out=("heads",)) for name in ("attn1", "attn2")},
    columns=(
        *(path for name in ("attn1", "attn2") for path in under(f"{BLOCK}.{name}", "to_q", "to_k", "to_v")),
        *under(BLOCK, "attn2.add_k_proj", "attn2.add_v_proj", "ffn.net.0.proj"),
    ),
    rows=under(BLOCK, "attn1.to_out.0", "attn2.to_out.0", "ffn.net.2"),
    norms=(
        *under(BLOCK, "attn1.norm_q", "attn1.norm_k"),
        *under(BLOCK, "attn2.norm_q", "attn2.norm_k", "attn2.norm_added_k"),
    ),
)
