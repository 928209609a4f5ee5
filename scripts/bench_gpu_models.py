"""The models that bench_gpu.py builds: true architectures from the families' facts, random weights, random texts.

Legend: L text tokens, D width. Published configs that facts do not hold are here, each with its source.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from difftool.components.fit import dtype_rule, empty_model
from difftool.facts import CheckpointFacts
from difftool.pipeline.batch import Embeds
from difftool.planning.checkpoint import known_checkpoints

DEVIATION = 0.02  # of the weights: what the published models were initialised with, and keeps 60 blocks finite
Draw = Callable[..., Tensor]  # shape -> normal numbers on the device


@dataclass(frozen=True)
class Text:
    """Encoded prompts: as the stages find them, and as arguments of the stock pipeline's call."""

    positive: Embeds
    negative: Embeds | None
    tokens: int
    call: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """One published checkpoint. `steps` are as many as show a step's time; `tokens` its text's length. `tiny` are
    changes of the transformer's config, `tiny_vae` of the VAE's, and `tiny_sampling` of the request, for a CPU.
    """

    hub_id: str
    transformer: str
    vae: str
    scheduler: str
    text: Callable[[Mapping[str, Any], int, Draw], Text]
    tokens: int
    tiny: Mapping[str, Any]
    tiny_sampling: Mapping[str, Any]
    vae_config: Mapping[str, Any] = field(default_factory=dict)
    tiny_vae: Mapping[str, Any] = field(default_factory=dict)
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 4

    @property
    def facts(self) -> CheckpointFacts:
        return next(each for each in known_checkpoints() if each.hub_id == self.hub_id)


def flux_text(config: Mapping[str, Any], tokens: int, draw: Draw) -> Text:
    """T5's [1, L, D] and CLIP's pooled [1, D]."""
    texts, pooled = draw(1, tokens, config["joint_attention_dim"]), draw(1, config["pooled_projection_dim"])
    return Text([texts, pooled], None, tokens, {"prompt_embeds": texts, "pooled_prompt_embeds": pooled})


def qwen_text(config: Mapping[str, Any], tokens: int, draw: Draw) -> Text:
    """Qwen2.5-VL's [1, L, D], nothing masked, for both branches."""
    positive, negative = (draw(1, tokens, config["joint_attention_dim"]) for _ in range(2))
    mask = torch.ones(1, tokens, dtype=torch.long, device=positive.device)
    given = {"prompt_embeds": positive, "prompt_embeds_mask": mask}
    given |= {"negative_prompt_embeds": negative, "negative_prompt_embeds_mask": mask, "negative_prompt": None}
    return Text([positive, None], [negative, None], tokens, given)


def zimage_text(config: Mapping[str, Any], tokens: int, draw: Draw) -> Text:
    """Qwen3's list of [L, D]; the Turbo runs without guidance."""
    text = draw(tokens, config["cap_feat_dim"])
    given = {"prompt_embeds": [text], "negative_prompt_embeds": [], "negative_prompt": None}
    return Text([[text]], None, tokens, given)


def wan_text(config: Mapping[str, Any], tokens: int, draw: Draw) -> Text:
    """UMT5's [1, L, D] for both branches."""
    positive, negative = (draw(1, tokens, config["text_dim"]) for _ in range(2))
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative, "negative_prompt": None}
    return Text([positive], [negative], tokens, given)


EULER = "FlowMatchEulerDiscreteScheduler"
PICTURE_VAE = {  # vae/config.json of FLUX.1-dev and of Z-Image-Turbo
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
TINY_PICTURE_VAE = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "latent_channels": 4}
TINY_VIDEO_VAE = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} | {
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
SMALL = {"height": 64, "width": 64}

MODELS: Mapping[str, Model] = {
    "flux1-dev": Model(
        hub_id="black-forest-labs/FLUX.1-dev",
        transformer="FluxTransformer2DModel",
        vae="AutoencoderKL",
        scheduler=EULER,
        text=flux_text,
        tokens=512,  # of T5, filled up
        vae_config=PICTURE_VAE,
        scheduler_config={"shift": 3.0, "use_dynamic_shifting": True},  # scheduler_config.json
        tiny={"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4}
        | {"in_channels": 16, "joint_attention_dim": 24, "pooled_projection_dim": 32, "axes_dims_rope": [2, 2, 4]},
        tiny_vae=TINY_PICTURE_VAE,
        tiny_sampling=SMALL,
    ),
    "z-image-turbo": Model(
        hub_id="Tongyi-MAI/Z-Image-Turbo",
        transformer="ZImageTransformer2DModel",
        vae="AutoencoderKL",
        scheduler=EULER,
        text=zimage_text,
        tokens=128,  # of a long prompt
        vae_config=PICTURE_VAE,
        scheduler_config={"shift": 3.0},  # scheduler_config.json
        tiny={"n_layers": 2, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4, "dim": 32, "cap_feat_dim": 24}
        | {"in_channels": 4, "axes_dims": [2, 2, 4], "axes_lens": [256, 32, 32]},
        tiny_vae=TINY_PICTURE_VAE,
        tiny_sampling=SMALL,
    ),
    "qwen-image": Model(
        hub_id="Qwen/Qwen-Image",
        transformer="QwenImageTransformer2DModel",
        vae="AutoencoderKLQwenImage",
        scheduler=EULER,
        text=qwen_text,
        tokens=128,  # of a long prompt; the negative one is as long, which costs no less than a short one
        scheduler_config={"use_dynamic_shifting": True, "max_image_seq_len": 8192, "max_shift": 0.9}
        | {"shift_terminal": 0.02},  # scheduler_config.json
        tiny={"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4, "in_channels": 16}
        | {"out_channels": 4, "joint_attention_dim": 32, "axes_dims_rope": [2, 2, 4]},
        tiny_vae=TINY_VIDEO_VAE,
        tiny_sampling=SMALL,
    ),
    "wan2.1-1.3b": Model(
        hub_id="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        transformer="WanTransformer3DModel",
        vae="AutoencoderKLWan",
        scheduler="UniPCMultistepScheduler",
        text=wan_text,
        tokens=512,  # of UMT5, filled up
        scheduler_config={"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        steps=2,  # of about a second each
        tiny={"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 6, "ffn_dim": 32, "in_channels": 4}
        | {"out_channels": 4, "text_dim": 24, "freq_dim": 32, "rope_max_seq_len": 32},
        tiny_vae=TINY_VIDEO_VAE,
        tiny_sampling={"height": 32, "width": 32, "num_frames": 5},
    ),
}


def write_configs(model: Model, folder: Path, *, tiny: bool) -> None:
    """A checkpoint's folder in the layout of diffusers, without weights."""
    facts = model.facts
    parts = {
        "transformer": (model.transformer, {**facts.transformer, **(model.tiny if tiny else {})}),
        "vae": (model.vae, {**model.vae_config, **(model.tiny_vae if tiny else {})}),
    }
    classes = {name: ["diffusers", kind] for name, (kind, _) in parts.items()}
    index = {"_class_name": facts.pipeline_class, **facts.index, **classes}
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, (kind, config) in parts.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"_class_name": kind, **config}))


def random_modules(
    model: Model, folder: Path, dtypes: Mapping[str, torch.dtype], device: torch.device
) -> dict[str, Any]:
    """The transformer, the VAE and the scheduler; nothing of them is read, nor goes over the host's memory."""
    generator = torch.Generator(device).manual_seed(0)
    kinds = {"transformer": model.transformer, "vae": model.vae}
    made = {
        name: random_model(getattr(diffusers, kind), folder / name, dtypes[name], device, generator)
        for name, kind in kinds.items()
    }
    return {**made, "scheduler": getattr(diffusers, model.scheduler)(**model.scheduler_config)}


def random_model(
    kind: Any, folder: Path, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> nn.Module:
    """A model of a config, its weights drawn where they lie; norms begin at 1, as they do in training."""
    model, dtype_of = empty_model(kind, folder, dtype), dtype_rule(kind, dtype)
    drawn = {}
    for name, parameter in model.named_parameters():
        tensor = torch.empty(parameter.shape, dtype=dtype_of(name), device=device)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        drawn[name] = tensor.fill_(1.0) if is_norm else tensor.normal_(0.0, DEVIATION, generator=generator)
    model.load_state_dict({**model.state_dict(), **drawn}, strict=True, assign=True)
    return model.requires_grad_(False).eval().to(device)


def random_text(
    model: Model, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, *, tiny: bool
) -> Text:
    """The encoded prompts of a request."""
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    return model.text(config, 24 if tiny else model.tokens, draw)
