"""What to say about a key that does not exist: the nearest name, our name for a foreign one, or where it belongs."""

from collections.abc import Iterable
from difflib import get_close_matches

from difftool.recipe.fields import Section
from difftool.recipe.flag_table import FLAGS
from difftool.recipe.keys import fields_of, find, known_keys
from difftool.recipe.nodes import Key, dotted

FOREIGN = {
    "num_images_per_prompt": "sampling.num_outputs_per_prompt",
    "num_videos_per_prompt": "sampling.num_outputs_per_prompt",
    "num_samples": "sampling.num_outputs_per_prompt",
    "batch_size": "sampling.num_outputs_per_prompt",
    "n": "sampling.num_outputs_per_prompt",
    "steps": "sampling.num_inference_steps",
    "num_steps": "sampling.num_inference_steps",
    "inference_steps": "sampling.num_inference_steps",
    "sampling_steps": "sampling.num_inference_steps",
    "guidance": "sampling.guidance_scale",
    "cfg_scale": "sampling.guidance_scale",
    "true_cfg": "sampling.true_cfg_scale",
    "frames": "sampling.num_frames",
    "frame_rate": "sampling.fps",
    "images": "sampling.image",
    "image_path": "sampling.image",
    "mask_image": "sampling.mask",
    "generator": "sampling.seed",
    "request": "sampling",
    "flow_shift": "sampling.scheduler.flow_shift",
    "sigmas": "sampling.scheduler.sigmas",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "pretrained_model_name_or_path": "model.path",
    "loras": "model.lora",
    "lora_scale": "model.lora",
    "custom_pipeline": "model.code",
    "local_files_only": "launch.offline",
    "torch_dtype": "stages.denoising.precision",
    "dtype": "stages.denoising.precision",
    "dit": "stages.denoising",
    "transformer": "stages.denoising",
    "denoise": "stages.denoising",
    "vae": "stages.decoding",
    "decode": "stages.decoding",
    "text_encode": "stages.text_encoding",
    "text_encoder": "stages.text_encoding",
    "attention_backend": "stages.denoising.attention",
    "attn": "stages.denoising.attention",
    "torch_compile": "stages.denoising.compile",
    "quantize": "stages.denoising.quantization",
    "quantization_config": "stages.denoising.quantization",
    "gpus": "parallel.num_gpus",
    "n_gpus": "parallel.num_gpus",
    "world_size": "parallel.num_gpus",
    "sp_size": "parallel.sp",
    "ulysses_size": "parallel.ulysses",
    "ring_size": "parallel.ring",
    "cfg_parallel": "parallel.cfg",
    "fsdp": "parallel.hsdp",
    "use_fsdp_inference": "parallel.hsdp",
    "cache_config": "cache",
    "fn": "cache.fn_compute_blocks",
    "bn": "cache.bn_compute_blocks",
    "warmup_steps": "cache.max_warmup_steps",
    "residual_threshold": "cache.residual_diff_threshold",
    "max_continuous": "cache.max_continuous_cached_steps",
    "rel_l1_thresh": "cache.teacache.threshold",
    "output_dir": "output.dir",
    "output_format": "output.format",
    "output_type": "output.format",
    "measure": "perf",
}
CUTOFF = 0.6


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like `name`, if any is like it at all."""
    close = get_close_matches(name, list(names), n=1, cutoff=CUTOFF)
    return close[0] if close else None


def our_name(name: str) -> str | None:
    """The recipe key for a name that other tools or our own flags use."""
    flags = {long.lstrip("-").replace("-", "_"): flag.key for flag in FLAGS for long in flag.names}
    return FOREIGN.get(name) or flags.get(name)


def unknown_field(path: Key, section: type[Section], *, has_value: bool = True) -> str:
    """The message for a key that `section` does not have. It starts with the dotted path."""
    name = path[-1].replace("-", "_").lower()
    fields = fields_of(section)
    return f"{dotted(path)}: unknown field{_advice(path, name, list(fields), has_value=has_value)}"


def _advice(path: Key, name: str, fields: list[str], *, has_value: bool) -> str:
    if ":" in name and not has_value:
        return "; a space is missing after ':'"
    if name in fields:
        return f", did you mean {name!r}?"
    homes = [key for key in known_keys() if key.rpartition(".")[2] == name and not key.startswith("sweep.")]
    ours = our_name(name)
    if ours is not None and ours not in homes and find((*path[:-1], name)) is None:
        return f"; difftool says {ours}"
    if homes:
        return f" here; it belongs to {_listed([key.rpartition('.')[0] or 'the top level' for key in homes])}"
    close = nearest(name, fields)
    if close is not None:
        return f", did you mean {close!r}?"
    return f"; {dotted(path[:-1]) or 'a recipe'} has {', '.join(fields)}"


def unknown_key(key: str) -> str:
    """The message for a dotted key from `--set`, Python or a sweep that names nothing."""
    name = key.rpartition(".")[2].replace("-", "_").lower()
    homes = [known for known in known_keys() if known.rpartition(".")[2] == name]
    ours = homes[0] if len(homes) == 1 else our_name(name) or nearest(key, known_keys())
    return f"{key}: unknown recipe key" + (f", did you mean {ours!r}?" if ours else "")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
