"""Time and peak host memory of loading one diffusers model, difftool's reader beside `from_pretrained`.

    python scripts/bench_loading.py                          # a random FLUX.1 transformer of 450 MB in four shards
    python scripts/bench_loading.py --folder flux/transformer --dtype bf16 --device cuda

Each load is a process of its own, the arms alternate, and a first load of each warms the disk's cache.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import diffusers
import torch

from difftool.components.check import check_component, read_config
from difftool.components.read import model_reader
from difftool.platforms.base import current

ARMS = ("difftool", "from_pretrained")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_checkpoint(folder: Path) -> None:
    """A FLUX.1 transformer of 229 million parameters with random weights, in bf16 and four shards."""
    model = diffusers.FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=4,
        num_attention_heads=10,
        joint_attention_dim=2048,
        guidance_embeds=True,
    )
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="120MB")


def load(arm: str, folder: Path, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    kind = getattr(diffusers, read_config(folder)["_class_name"])
    if arm == "difftool":
        weights = check_component(folder)
        assert weights is not None, folder
        return model_reader(kind, folder, weights, dtype=dtype, device=device)()
    return kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True).to(device)


def measure(arm: str, folder: Path, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Seconds until the weights are usable, of the clock and of the CPU, and the growth of the process' peak memory."""
    diffusers.utils.logging.disable_progress_bar()
    platform = current(device)
    platform.synchronize()  # the device is awake
    before = peak_mb()
    clock, cpu = time.perf_counter(), time.process_time()
    model = load(arm, folder, dtype, platform.device)
    for value in model.parameters():  # what is only mapped is not loaded yet
        torch.linalg.vector_norm(value.detach(), ord=torch.inf)
    platform.synchronize()
    return {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": peak_mb() - before,
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(arm: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    own = [sys.executable, __file__, "--arm", arm, "--folder", str(folder)]
    ran = subprocess.run(
        [*own, "--dtype", arguments.dtype, "--device", arguments.device], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for repeat in range(arguments.repeats + 1):
        for arm in ARMS if repeat % 2 else reversed(ARMS):
            result = in_process(arm, folder, arguments)
            if repeat:
                found[arm].append(result)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    print(f"{size:.0f} MB to {arguments.dtype} on {arguments.device}, median (least) of {arguments.repeats}")
    for key in ("seconds", "cpu_seconds", "peak_mb"):
        values = {arm: [result[key] for result in found[arm]] for arm in ARMS}
        shown = ", ".join(f"{arm} {statistics.median(v):.2f} ({min(v):.2f})" for arm, v in values.items())
        ratio = statistics.median(values[ARMS[0]]) / max(statistics.median(values[ARMS[1]]), 1e-9)
        print(f"{key:<12} {shown}, ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a model's folder with config.json; default: a random one")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arm", choices=ARMS, help="load once that way and print the numbers")
    arguments = parser.parse_args()
    if arguments.arm:
        found = measure(arguments.arm, arguments.folder, DTYPES[arguments.dtype], arguments.device)
        print(json.dumps(found))
    elif arguments.folder:
        compare(arguments.folder, arguments)
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(Path(folder))
            compare(Path(folder), arguments)


if __name__ == "__main__":
    main()
