"""How LTX's denoiser is split over ranks."""

from difftool.parallel.plans import Heads, SequencePlan, Split, TensorPlan, under

SEQUENCE = SequencePlan(
    blocks=("transformer_blocks",),
    tokens={"hidden_states": Split(("image",), 1)},
    constant={"image_rotary_emb": (Split(("image",), 1), Split(("image",), 1)), "temb": Split(("image",), 1)},
    attention={"attn1": ("image",)},
)

BLOCK = "transformer_blocks.*"
TENSOR = TensorPlan(
    heads={f"{BLOCK}.{name}": Heads("heads", shared_out=("heads",)) for name in ("attn1", "attn2")},
    columns=(
        *(path for name in ("attn1", "attn2") for path in under(f"{BLOCK}.{name}", "to_q", "to_k", "to_v")),
        f"{BLOCK}.ff.net.0.proj",
    ),
    rows=under(BLOCK, "attn1.to_out.0", "attn2.to_out.0", "ff.net.2"),
    norms=under(BLOCK, "attn1.norm_q", "attn1.norm_k", "attn2.norm_q", "attn2.norm_k"),
    inputs={f"{BLOCK}.attn1": {"image_rotary_emb": 2}},  # made for all heads at once
)
