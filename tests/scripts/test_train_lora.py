"""Training a LoRA: a short run leaves a file that changes the built-in model and is the same every time."""

import json
import subprocess
import sys

from safetensors import safe_open
from tiny import ROOT


def trained(folder):
    tiny = ("--pictures", "50", "--steps", "2", "--batch", "4")
    command = [sys.executable, "-W", "ignore", ROOT / "scripts" / "train_lora.py", "--style", "night", "--out", folder]
    ran = subprocess.run([*map(str, command), *tiny], capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return folder / "night.safetensors"


def test_a_short_training_leaves_a_lora_that_says_how_it_was_made(tmp_path):
    path = trained(tmp_path)
    with safe_open(path, "pt") as file:
        header, names = file.metadata(), list(file.keys())
        moved = [name for name in names if "lora_B" in name and file.get_tensor(name).abs().max() > 0]
    assert json.loads(header["lora_adapter_metadata"])["transformer.lora_alpha"] == 8
    assert json.loads(header["difftool"])["training"]["steps"] == 2
    assert len(names) == 2 * len(moved) and moved
