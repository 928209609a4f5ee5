"""How the text encoders that pipelines use are dealt to ranks, by class of transformers.

What a language model computes beyond its layers, its embeddings and head, is left whole where it has a head: the two
may be one tensor, and a part of the head would make a part of the logits. Towers that see pictures are left whole.
"""

from collections.abc import Mapping

from torch import nn

from difftool.errors import PlanError
from difftool.parallel.mesh import Line
from difftool.parallel.plans import Heads, TensorPlan, under
from difftool.parallel.tensor import TensorShares, cut_model

KEY = "stages.text_encoding.tp"

T5 = TensorPlan(
    heads={"encoder.block.*.layer.0.SelfAttention": Heads("n_heads", shared_out=("n_heads", "inner_dim"))},
    columns=(
        *under("encoder.block.*.layer.0.SelfAttention", "q", "k", "v", "relative_attention_bias"),
        *under("encoder.block.*.layer.1.DenseReluDense", "wi", "wi_0", "wi_1"),
    ),
    rows=under("encoder.block.*", "layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"),
    vocabulary=("shared", "encoder.embed_tokens"),
)


def clip(text: str) -> TensorPlan:
    """`text` is the path of the encoder's layers."""
    return TensorPlan(
        heads={f"{text}.*.self_attn": Heads("num_heads", shared_out=("num_heads",))},
        columns=(*under(f"{text}.*.self_attn", "q_proj", "k_proj", "v_proj"), f"{text}.*.mlp.fc1"),
        rows=under(f"{text}.*", "self_attn.out_proj", "mlp.fc2"),
    )


def decoder(layers: str, *, vocabulary: tuple[str, ...] = ()) -> TensorPlan:
    """A language model with gated layers; heads of the query go with the heads of the key that they share."""
    return TensorPlan(
        heads={f"{layers}.*.self_attn": Heads("config.num_key_value_heads")},
        columns=(
            *under(f"{layers}.*.self_attn", "q_proj", "k_proj", "v_proj"),
            *under(f"{layers}.*.mlp", "gate_proj", "up_proj"),
        ),
        rows=under(f"{layers}.*", "self_attn.o_proj", "mlp.down_proj"),
        vocabulary=vocabulary,
    )


ENCODERS: Mapping[str, TensorPlan] = {
    "CLIPTextModel": clip("encoder.layers"),
    "CLIPTextModelWithProjection": clip("text_model.encoder.layers"),
    "LlamaModel": decoder("layers", vocabulary=("embed_tokens",)),
    "Mistral3ForConditionalGeneration": decoder("model.language_model.layers"),
    "Qwen2_5_VLForConditionalGeneration": decoder("model.language_model.layers"),
    "Qwen3ForCausalLM": decoder("model.layers"),
    "Qwen3Model": decoder("layers", vocabulary=("embed_tokens",)),
    "T5EncoderModel": T5,
    "UMT5EncoderModel": T5,
}


def cut_encoder(model: nn.Module, line: Line, *, name: str) -> TensorShares:
    """Makes the layers of an empty text encoder those of this rank. `name` is the component's.

    Raises PlanError for a class that has no plan, or fewer heads than ranks.
    """
    kind = type(model).__name__
    if kind not in ENCODERS:
        raise PlanError(
            f"{KEY}={line.degree}: {name} is a {kind}, of which it is not known how its layers are dealt out",
            hint=f"use {KEY}=1; it is known of {', '.join(ENCODERS)}",
        )
    return cut_model(model, ENCODERS[kind], line, key=KEY, name=name)
