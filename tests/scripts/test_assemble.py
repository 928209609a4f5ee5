"""scripts/assemble_checkpoint.py makes one sound folder of several."""

import json
import os
import subprocess
import sys
from pathlib import Path

from difftool.components.check import check_folder

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "difftool" / "builtin" / "shapes-image"


def assemble(folder, *arguments):
    command = [sys.executable, ROOT / "scripts" / "assemble_checkpoint.py", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


def test_parts_of_several_folders_make_a_sound_checkpoint(tmp_path):
    names = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.safetensors").write_bytes(b"of a format that the family knows")
    parts = [f"{name}={SHAPES / name}" for name in names]
    made = assemble(tmp_path, "out", "FluxPipeline", *parts, "original=raw")
    assert made.stdout == "out: FluxPipeline of 6 parts\n", made.stderr
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    shipped = json.loads((SHAPES / "model_index.json").read_text())
    assert index == {"_class_name": "FluxPipeline", **{name: shipped[name] for name in names}}
    assert check_folder(tmp_path / "out", names).keys() == {"text_encoder", "transformer", "vae"}
    assert (tmp_path / "out" / "original" / "x.safetensors").is_file()


def test_a_damaged_part_is_refused(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text((SHAPES / "vae" / "config.json").read_text())
    refused = assemble(tmp_path, "out", "FluxPipeline", "vae=vae")
    assert refused.returncode == 4 and "weights are missing" in refused.stderr
    missing = assemble(tmp_path, "other", "FluxPipeline", "vae=nowhere")
    assert missing.returncode == 4 and "no folder at nowhere" in missing.stderr
    assert not (tmp_path / "other").exists()
