"""The one table of flags that are recipe keys: it makes the command line, the keys of flat files and the hints."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "path", "word", "int", "number", "switch", "stage_mode", "devices", "file_name"]
Panel = Literal["common", "model", "parallel", "stages", "sampling", "run"]
STAGE_OFFLOADS = tuple(f"stages.{s}.offload" for s in ("text_encoding", "image_encoding", "denoising", "decoding"))


@dataclass(frozen=True)
class Flag:
    """One flag. `names[0]` is the one that is shown; `key` is the recipe key it sets, and its metavar.

    kind: `text` and `path` are taken as they stand; `word`, `int` and `number` are read by the type of the key; a
    `switch` takes no value and sets `value` (`off` is what false means in a flat file; None there: nothing) on `key`
    and on `also`; `stage_mode` is STAGE=MODE; `devices` is 4,5,6,7; `file_name` is a name whose suffix, if it is a
    medium's, sets `output.format`. `refined_by` names the flag that may be given beside this one and wins.
    """

    names: tuple[str, ...]
    key: str
    kind: Kind
    help: str
    panel: Panel
    repeatable: bool = False
    value: object = None
    off: object = None
    also: tuple[str, ...] = ()
    refined_by: str = ""


FLAGS: tuple[Flag, ...] = (
    Flag(("--prompt", "-p"), "sampling.prompt", "text", "what to make", "common", repeatable=True),
    Flag(("--prompt-file",), "sampling.prompts.file", "path", "prompts from x.txt, x.jsonl or - (stdin)", "common"),
    Flag(("--seed",), "sampling.seed", "int", "a number, or random", "common"),
    Flag(("--height",), "sampling.height", "int", "pixels", "common"),
    Flag(("--width",), "sampling.width", "int", "pixels", "common"),
    Flag(("--num-frames",), "sampling.num_frames", "int", "frames of a video", "common"),
    Flag(("--num-inference-steps",), "sampling.num_inference_steps", "int", "denoising steps", "common"),
    Flag(("--guidance-scale",), "sampling.guidance_scale", "number", "how closely to follow the prompt", "common"),
    Flag(("--num-gpus",), "parallel.num_gpus", "int", "devices to use, or auto", "common"),
    Flag(("--device",), "launch.device", "word", "auto, cuda, cpu or mps", "common"),
    Flag(("--memory-budget",), "memory.budget", "word", "device memory to stay within, such as 24GiB", "common"),
    Flag(("--model-path",), "model.path", "path", "hub id, folder, .safetensors file or builtin:NAME", "model"),
    Flag(("--model-id",), "model.id", "text", "hub id whose family a renamed folder is", "model"),
    Flag(("--revision",), "model.revision", "text", "commit, branch or tag of the hub repository", "model"),
    Flag(("--backend",), "model.backend", "word", "auto, native or diffusers", "model"),
    Flag(("--trust-remote-code",), "model.trust_remote_code", "switch",
         "run code from the hub; --revision must be a commit", "model", value=True, off=False),
    Flag(("--offline",), "launch.offline", "switch", "fetch nothing from the hub", "model", value=True, off=False),
    Flag(("--vae-path",), "model.components.vae", "path", "another VAE", "model"),
    Flag(("--lora-path",), "model.lora", "path", "a LoRA: file, folder, hub id or builtin:", "model", repeatable=True),
    Flag(("--lora-nickname",), "model.lora", "text", "name of the LoRA, one for each", "model", repeatable=True),
    Flag(("--lora-strength",), "model.lora", "number", "factor of the LoRA, one for each", "model", repeatable=True),
    Flag(("--tp-size", "--tensor-parallel-size"), "parallel.tp", "int", "tensor-parallel ranks", "parallel"),
    Flag(("--sp-degree",), "parallel.sp", "int", "sequence-parallel ranks, ulysses times ring", "parallel"),
    Flag(("--ulysses-degree", "--usp"), "parallel.ulysses", "int", "sequence parallel by heads", "parallel"),
    Flag(("--ring-degree",), "parallel.ring", "int", "sequence parallel in a ring", "parallel"),
    Flag(("--cfg-parallel-size",), "parallel.cfg", "int", "guidance branches side by side", "parallel"),
    Flag(("--dp-size",), "parallel.dp", "int", "replicas that share out the items", "parallel"),
    Flag(
        ("--use-hsdp",),
        "parallel.hsdp",
        "switch",
        "shard the weights over all ranks",
        "parallel",
        value="all",
        off="none",
        refined_by="--hsdp-shard-size",
    ),
    Flag(("--hsdp-shard-size",), "parallel.hsdp", "int", "shard the weights over so many ranks", "parallel"),
    Flag(("--nnodes",), "launch.nnodes", "int", "machines", "parallel"),
    Flag(("--node-rank",), "launch.node_rank", "int", "which of the machines this one is", "parallel"),
    Flag(("--rdzv-endpoint",), "launch.rdzv_endpoint", "text", "host:port where the machines meet", "parallel"),
    Flag(("--devices",), "launch.devices", "devices", "CUDA devices to use, by index: 4,5,6,7", "parallel"),
    Flag(("--attention-backend", "--diffusers-attention-backend"), "stages.denoising.attention", "word",
         "auto, or a backend by our name or diffusers'", "stages"),
    Flag(("--dit-precision",), "stages.denoising.precision", "word", "auto, fp32, bf16 or fp16", "stages"),
    Flag(("--vae-precision",), "stages.decoding.precision", "word", "auto, fp32, bf16 or fp16", "stages"),
    Flag(("--text-encoder-precisions",), "stages.text_encoding.precision", "word",
         "one for all text encoders, or repeated for each", "stages", repeatable=True),
    Flag(("--vae-tiling",), "stages.decoding.tiling.name", "switch", "decode in tiles", "stages",
         value="on", off="none"),
    Flag(("--vae-slicing",), "stages.decoding.slicing", "switch", "decode one picture at a time", "stages",
         value=True, off=False),
    Flag(("--compile",), "stages.denoising.compile", "word", "auto, none, regional or full", "stages"),
    Flag(("--enable-torch-compile",), "stages.denoising.compile", "switch", "compile the repeated blocks", "stages",
         value="regional", off="none"),
    Flag(("--enforce-eager",), "stages.denoising.compile", "switch", "compile nothing", "stages", value="none"),
    Flag(("--offload",), "stages.STAGE.offload", "stage_mode", "STAGE=auto, none, after_use, module or layerwise",
         "stages", repeatable=True),
    Flag(("--text-encoder-cpu-offload",), "stages.text_encoding.offload", "switch",
         "free the text encoders after use", "stages", value="after_use", off="none"),
    Flag(("--dit-cpu-offload",), "stages.denoising.offload", "switch", "free the transformer after use", "stages",
         value="after_use", off="none"),
    Flag(("--vae-cpu-offload",), "stages.decoding.offload", "switch", "free the VAE after use", "stages",
         value="after_use", off="none"),
    Flag(("--enable-cpu-offload",), STAGE_OFFLOADS[0], "switch", "free every component after use", "stages",
         value="after_use", off="none", also=STAGE_OFFLOADS[1:]),
    Flag(("--enable-layerwise-offload",), "stages.denoising.offload", "switch",
         "stream the transformer block by block", "stages", value="layerwise", off="none"),
    Flag(("--pin-cpu-memory",), "launch.pin_memory", "switch", "page-locked host memory", "stages",
         value=True, off=False),
    Flag(("--cache-backend",), "cache.backend", "word", "none, dbcache or teacache", "stages"),
    Flag(("--negative-prompt",), "sampling.negative_prompt", "text", "what to steer away from", "sampling"),
    Flag(("--image",), "sampling.image", "path", "an input picture", "sampling", repeatable=True),
    Flag(("--mask",), "sampling.mask", "path", "where to edit", "sampling"),
    Flag(("--fps",), "sampling.fps", "int", "frames per second of the saved video", "sampling"),
    Flag(("--guidance-scale-2",), "sampling.guidance_scale_2", "number", "of the second transformer", "sampling"),
    Flag(("--true-cfg-scale",), "sampling.true_cfg_scale", "number", "true classifier-free guidance", "sampling"),
    Flag(("--max-sequence-length",), "sampling.max_sequence_length", "int", "prompt tokens kept", "sampling"),
    Flag(("--num-outputs-per-prompt",), "sampling.num_outputs_per_prompt", "int", "outputs of each prompt", "sampling"),
    Flag(("--output-path",), "output.dir", "text", "folder for the media", "run"),
    Flag(("--output-file-name",), "output.name", "file_name", "name of the files", "run"),
    Flag(("--prompt-embeds-dir",), "launch.prompt_embeds_dir", "path", "keeps text encodings from run to run", "run"),
    Flag(("--warmup",), "perf.warmup", "int", "untimed runs first, or auto", "run"),
    Flag(("--repeats",), "perf.repeats", "int", "measured runs of every item", "run"),
    Flag(("--tag",), "perf.tag", "text", "a label in the perf dump", "run"),
)
FOREIGN_FLAGS = {
    "--torch-dtype": "--dit-precision",
    "--dtype": "--dit-precision",
    "--precision": "--dit-precision",
    "--num-images-per-prompt": "--num-outputs-per-prompt",
    "--num-videos-per-prompt": "--num-outputs-per-prompt",
    "--n": "--num-outputs-per-prompt",
    "--steps": "--num-inference-steps",
    "--num-steps": "--num-inference-steps",
    "--cfg-scale": "--guidance-scale",
    "--cfg": "--guidance-scale",
    "--model": "--model-path",
    "--model-name": "--model-path",
    "--gpus": "--num-gpus",
    "--world-size": "--num-gpus",
    "--sp-size": "--sp-degree",
    "--sequence-parallel-size": "--sp-degree",
    "--ulysses-size": "--ulysses-degree",
    "--ring-size": "--ring-degree",
    "--tp-degree": "--tp-size",
    "--enable-cfg-parallel": "--cfg-parallel-size",
    "--use-fsdp-inference": "--use-hsdp",
    "--dit-layerwise-offload": "--enable-layerwise-offload",
    "--lora-scale": "--lora-strength",
    "--image-path": "--image",
    "--image-paths": "--image",
    "--prompts": "--prompt-file",
    "--prompt-file-path": "--prompt-file",
    "--cache": "--cache-backend",
    "--gpu-ids": "--devices",
    "--regional-compile": "--compile",
    "--performance-mode": "--memory-budget",
    "--diffusion-load-format": "--backend",
}
