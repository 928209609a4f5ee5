"""The models that score outputs: whether what `quality.metrics` names is there, before anything starts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftool.errors import WeightsError
from difftool.planning.loras import PICKLES, SUFFIX

LPIPS, CLIP = "quality.metrics.lpips", "quality.metrics.clip"
MAKE_LPIPS = (
    'make it where lpips and torchvision are installed: python -c "import lpips, safetensors.torch as s; '
    "s.save_model(lpips.LPIPS(net='alex'), 'lpips.safetensors')\""
)
GET_CLIP = "download one, for example: hf download openai/clip-vit-large-patch14 --local-dir clip"
CLIP_FILES = (  # one of each row
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json"),
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer.json", "vocab.json"),
)


def check_judges(metrics: Mapping[str, str | None]) -> None:
    """Raises WeightsError where a file or folder of `quality.metrics` is missing, or is plainly something else."""
    if metrics["lpips"] is not None:
        _check_lpips(Path(metrics["lpips"]))
    if metrics["clip"] is not None:
        _check_clip(Path(metrics["clip"]))


def _check_lpips(file: Path) -> None:
    if file.suffix in PICKLES:
        raise WeightsError(f"{LPIPS}: {file} is a pickle, which can run code when loaded: refused", hint=MAKE_LPIPS)
    if not file.is_file():
        raise WeightsError(f"{LPIPS}: there is no file {file}", hint=MAKE_LPIPS)
    if file.suffix != SUFFIX:
        raise WeightsError(f"{LPIPS}: {file} is no {SUFFIX} file", hint=MAKE_LPIPS)


def _check_clip(folder: Path) -> None:
    if not folder.is_dir():
        raise WeightsError(f"{CLIP}: there is no folder {folder}", hint=GET_CLIP)
    for names in CLIP_FILES:
        if not any((folder / name).is_file() for name in names):
            raise WeightsError(f"{CLIP}: {folder} has no {' or '.join(names)}", hint=GET_CLIP)
    kind = _read(folder / "config.json").get("model_type")
    if kind != "clip":
        raise WeightsError(
            f"{CLIP}: {folder} holds no CLIP model: its config.json has model_type {kind}", hint=GET_CLIP
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{CLIP}: {path} cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}
