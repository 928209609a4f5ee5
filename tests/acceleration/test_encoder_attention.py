"""The text encoders' attention is set on each model by itself, or refused."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel

from difftool.acceleration.attention import encoders
from difftool.attention import Site
from difftool.components.loaded import Components
from difftool.errors import PlanError

TINY = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 32}
MADE = {
    "clip": lambda: CLIPTextModel(CLIPTextConfig(**TINY)),
    "t5": lambda: T5EncoderModel(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**TINY, head_dim=8, num_key_value_heads=1)),
}
WORDS = torch.arange(2, 12)[None]


def applied(models, name):
    return encoders.apply(Components(models, None), tuple(models), name)


@pytest.mark.parametrize("kind", MADE)
def test_an_encoder_makes_the_same_embeddings_through_another_backend(kind):
    torch.manual_seed(0)
    model = MADE[kind]().eval()
    with torch.no_grad():
        right = model(WORDS).last_hidden_state
        before = applied({"text_encoder": model}, "auto")
        assert before["text_encoder"] in ("torch_sdpa", "eager")
        assert applied({"text_encoder": model}, "torch_sdpa") == {"text_encoder": "torch_sdpa"}
        assert torch.allclose(model(WORDS).last_hidden_state, right, atol=1e-5)


def test_one_model_s_setting_is_not_another_s():
    one, other = MADE["qwen3"](), MADE["qwen3"]()
    before = applied({"text_encoder": other}, "auto")
    assert applied({"text_encoder": one}, "flex") == {"text_encoder": "flex"}
    assert applied({"text_encoder": other, "text_encoder_2": MADE["qwen3"]()}, "auto") == {
        "text_encoder": before["text_encoder"],
        "text_encoder_2": before["text_encoder"],
    }


def test_what_an_encoder_cannot_have_is_refused():
    with pytest.raises(
        PlanError, match="^stages.text_encoding.attention=fa2: text_encoder is CLIPTextModel, which cannot"
    ):
        applied({"text_encoder": MADE["clip"]()}, "fa2")
    with pytest.raises(PlanError, match="text_encoder is Linear, which has an attention of its own"):
        applied({"text_encoder": torch.nn.Linear(1, 1)}, "flex")


def test_what_cannot_be_used_here_is_refused_before_weights_load():
    refused = encoders.refusal("fa3", {"text_encoder_2": Site("cpu", "fp32")})
    assert refused.reason.startswith("stages.text_encoding.attention=fa3, for text_encoder_2: fa3 runs on CUDA, and ")
    assert "needs flash-attn-3, which is not installed; install: pip install " in refused.reason
    assert encoders.refusal("auto", {"text_encoder_2": Site("cpu", "fp32")}) is None
