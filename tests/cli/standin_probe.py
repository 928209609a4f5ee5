"""Torch's answers without torch: those of a machine with two GPUs, and then the end that the first argument says."""

import json
import os
import signal
import sys
import time

GPU = {"model": "NVIDIA H100 80GB HBM3", "memory_mb": 81559, "free_mb": 81037, "capability": "9.0"}
ANSWERS = {
    "torch": {"version": "2.13.0", "runtime": "CUDA 13.0", "driver": "580.65", "auto": "cuda", "no_accelerator": None},
    "devices": {
        "devices": [
            {"name": "cuda:0", **GPU, "refused_precisions": {}},
            {"name": "cuda:1", **GPU, "refused_precisions": {"fp8": "not today"}},
            {"name": "cpu", "model": "Some CPU", "threads": 8, "capability": "AVX512", "refused_precisions": {}},
        ],
        "without_peer_access": [[0, 1], [1, 0]],
    },
    "libraries": {},
    "collectives": {"gloo": None, "nccl": "no network"},
    "compile": {"error": "InvalidCxxCompiler: No working C++ compiler found"},
    "attention torch_sdpa": {},
    "attention fa2": {"error": "needs flash-attn, which is not installed", "install": "pip install flash-attn"},
    "attention cudnn": {"error": "its result is wrong"},
    "attention vmoba_attn": {"kernel": "varlen"},
    "attention video_sparse_attn": {"kernel": "flex", "because": "kernel fastvideo needs fastvideo-kernel"},
    "attention sage_attn": {},
}
LAST = "attention sage_attn"


def main(behaviour: str) -> None:
    for name, found in ANSWERS.items():
        print(json.dumps({"asks": name}), flush=True)
        if behaviour == "killed" and name == LAST:
            os.kill(os.getpid(), signal.SIGSEGV)
        if behaviour == "hang" and name == LAST:
            time.sleep(600)
        if behaviour == "no_libraries" and name == "libraries":
            found = {"error": "No module named 'transformers'"}
        print(json.dumps({"name": name, "found": found}), flush=True)
    print("noise of a library", os.environ.get("HF_HUB_OFFLINE"), os.environ.get("LOCAL_RANK"), file=sys.stderr)


if sys.argv[1] == "no_torch":
    sys.exit("ModuleNotFoundError: No module named 'torch'")
main(sys.argv[1])
