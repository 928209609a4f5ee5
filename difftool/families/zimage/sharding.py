"""How Z-Image's denoiser is split over ranks."""

from difftool.parallel.plans import Heads, SequencePlan, Split, TensorPlan, under

SEQUENCE = SequencePlan(
    blocks=("layers",),
    tokens={"x": Split(("tokens",), 1)},
    constant={"freqs_cis": Split(("tokens",), 1), "attn_mask": Split(("tokens",), 1)},
    attention={"attention": ("tokens",)},
    gather=("all_final_layer.2-1", "input", Split(("tokens",), 1)),
)

BLOCKS = ("layers.*", "noise_refiner.*", "context_refiner.*")
TENSOR = TensorPlan(
    heads={f"{block}.attention": Heads("heads", shared_out=("heads",)) for block in BLOCKS},
    columns=(
        *(path for block in BLOCKS for path in under(f"{block}.attention", "to_q", "to_k", "to_v")),
        *(path for block in BLOCKS for path in under(f"{block}.feed_forward", "w1", "w3")),
    ),
    rows=tuple(path for block in BLOCKS for path in under(block, "attention.to_out.0", "feed_forward.w2")),
)
