"""How FLUX.1's denoiser is split over ranks."""

from difftool.parallel.plans import TWO_STREAMS_THEN_ONE, SequencePlan, Split

SEQUENCE = SequencePlan(
    blocks=("transformer_blocks", "single_transformer_blocks"),
    tokens={"hidden_states": Split(("image",), 1), "encoder_hidden_states": Split(("text",), 1)},
    constant={"image_rotary_emb": (Split(("text", "image"), 0), Split(("text", "image"), 0))},
    attention={"attn": ("text", "image")},
)

TENSOR = TWO_STREAMS_THEN_ONE
