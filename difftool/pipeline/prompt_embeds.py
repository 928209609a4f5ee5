"""Text encodings on the disk: a run that asks for one that an earlier run made reads it, and no encoder.

A file is named by the hash of all that the encoding depends on: the text and what else the family's encoding of it
reads, the contents of the encoders' and tokenizers' files, precision, LoRAs, versions, device and threads. What is read
is what was written, bit for bit. Files may be deleted at any time.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from difftool.files import make_folder, write_atomic
from difftool.pipeline.batch import Embeds
from difftool.pipeline.encodings import Key
from difftool.planning.plan import Plan
from difftool.platforms.base import Platform
from difftool.profiling.environment import commit_hash, describe_environment

DIGESTS = "digests.json"  # beside the encodings: what the files of encoders held, so that they are hashed once


class PromptEmbeds:
    """The encodings of a folder that were made under the same conditions, `made_by`; they come to `device`."""

    def __init__(self, folder: Path, made_by: Mapping[str, object], device: torch.device):
        self.folder, self.device = folder, device
        self._made_by = json.dumps(made_by, sort_keys=True)

    def __contains__(self, key: Key) -> bool:
        return self._file(key).is_file()

    def read(self, key: Key) -> Embeds | None:
        """None where there is none that can be read; it is then made again."""
        try:
            with safe_open(self._file(key), framework="pt", device=str(self.device)) as file:
                # cloned: a tensor in the middle of a file is not aligned as torch's own, and kernels differ by that
                tensors = {name: file.get_tensor(name).clone() for name in file.offset_keys()}
                count = int((file.metadata() or {}).get("entries", ""))
        except (OSError, SafetensorError, ValueError):
            return None
        return _nested(tensors, count)

    def write(self, key: Key, embeds: Embeds) -> None:
        """Raises OutputError."""
        make_folder(self.folder)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in _flat(embeds).items()}
        write_atomic(
            self._file(key), save(tensors, metadata={"encoding": json.dumps(key), "entries": str(len(embeds))})
        )

    def _file(self, key: Key) -> Path:
        digest = hashlib.sha256(json.dumps([self._made_by, key]).encode()).hexdigest()
        return self.folder / f"{digest}.safetensors"


def open_prompt_embeds(
    plan: Plan, parts: Iterable[Path], precision: Mapping[str, object], platform: Platform
) -> PromptEmbeds | None:
    """The plan's folder; None where it names none. `parts` are the folders or files of all that encodes a text."""
    if plan.prompt_embeds_dir is None:
        return None
    folder = Path(plan.prompt_embeds_dir)
    made_by = {
        "pipeline": [plan.model.pipeline_class, plan.model.code_sha256],
        "files": files_digest(parts, folder),
        "stage": plan.stages["text_encoding"],
        "precision": dict(precision),
        "loras": [lora.model_dump() for lora in plan.loras],
        "threads": plan.threads,
        "environment": describe_environment(platform)["fingerprint"],
        "difftool": [metadata.version("difftool"), commit_hash()],
    }
    return PromptEmbeds(folder, made_by, platform.device)


def files_digest(folders: Iterable[Path], remembered: Path) -> str:
    """Of the names and contents of all files in these folders, or of these files.

    The contents of a file of the same size and time as before are taken from `remembered`, which is written anew.
    Raises OutputError.
    """
    files = [path for root in folders for path in (sorted(root.rglob("*")) if root.is_dir() else [root])]
    known = _known(remembered / DIGESTS)
    found = {str(path.resolve()): _digest(path, known) for path in files if path.is_file()}
    make_folder(remembered)
    write_atomic(remembered / DIGESTS, json.dumps({**known, **found}, indent=1).encode())
    contents = [(path.name, found[str(path.resolve())]["sha256"]) for path in files if path.is_file()]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _known(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    stat = path.stat()
    seen = {"size": stat.st_size, "time_ns": stat.st_mtime_ns}
    before = known.get(str(path.resolve()))
    if isinstance(before, dict) and {**before, **seen} == before:
        return before
    with path.open("rb") as file:
        return {**seen, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flat(embeds: Embeds) -> dict[str, Tensor]:
    """Tensors by their place: "1", or "1.0" of a list with one for each sample; nothing of an entry that is None."""
    found: dict[str, Tensor] = {}
    for i, entry in enumerate(embeds):
        if isinstance(entry, Tensor):
            found[str(i)] = entry
        elif entry is not None:
            found |= {f"{i}.{j}": part for j, part in enumerate(entry)}
    return found


def _nested(tensors: Mapping[str, Tensor], count: int) -> Embeds:
    found: dict[int, Any] = {}
    for name, tensor in sorted(tensors.items(), key=lambda pair: [int(part) for part in pair[0].split(".")]):
        place, _, sample = name.partition(".")
        if sample:
            found.setdefault(int(place), []).append(tensor)
        else:
            found[int(place)] = tensor
    return [found.get(place) for place in range(count)]
