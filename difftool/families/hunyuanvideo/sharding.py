"""How HunyuanVideo's denoiser is split over ranks."""

from difftool.parallel.plans import TWO_STREAMS_THEN_ONE, SequencePlan, Split

ROPE = (Split(("image",), 0), Split(("image",), 0))
SEQUENCE = SequencePlan(
    blocks=("transformer_blocks", "single_transformer_blocks"),
    tokens={"hidden_states": Split(("image",), 1), "encoder_hidden_states": Split(("text",), 1)},
    constant={
        "freqs_cis": ROPE,  # of the double blocks
        "image_rotary_emb": ROPE,  # of the single blocks
        "attention_mask": Split(("image", "text"), 3),
    },
    attention={"attn": ("image", "text")},
    never_empty=True,  # the single blocks cut the text off by its length, counted from the end
)

TENSOR = TWO_STREAMS_THEN_ONE
