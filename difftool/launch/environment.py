"""The environment of a worker: threads pinned alike for one rank and many, and nothing that phones home."""

from collections.abc import Mapping, Sequence

from difftool.errors import PlanError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
# what a recipe says with stages.denoising.attention; a name that diffusers does not know would end the import
UNREAD = (
    "DIFFUSERS_ATTN_BACKEND",
    "DIFFUSERS_ATTN_CHECKS",
    "FASTVIDEO_KERNEL_VSA_FORCE_TRITON",
    "FASTVIDEO_VSA_SM100A",
    "FASTVIDEO_VSA_TK",
    "FASTVIDEO_VSA_TRITON",
)
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")  # CUDA's, and ROCm's, which comes before CUDA's there
FIXED = {
    "PYTHONUNBUFFERED": "1",  # the log keeps the last words of a worker that dies
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def worker_environment(
    base: Mapping[str, str], *, threads: int, offline: bool, devices: Sequence[int] | None = None
) -> dict[str, str]:
    """`base` with what a run depends on set, and without the ranks of another world and what a recipe says.

    The thread count changes the last bits of a CPU result. Of `devices` the first is the device of the machine's first
    rank, and so on.
    """
    inherited = {name: value for name, value in base.items() if name not in (*RANK_VARIABLES, *UNREAD)}
    environment = {**inherited, **FIXED, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    if devices is not None:
        environment |= dict.fromkeys(VISIBLE, ",".join(map(str, devices)))
    return environment


def check_devices(base: Mapping[str, str], devices: Sequence[int] | None) -> None:
    """Raises PlanError for devices that are named where the shell has chosen some: both would count them."""
    chosen = [name for name in VISIBLE if name in base]
    if devices is not None and chosen:
        given = f"{chosen[0]}={base[chosen[0]]}"
        raise PlanError(
            f"launch.devices={list(devices)}, and {given} is set: which devices these count is not clear",
            hint=f"use one of them: unset {chosen[0]}, or leave --devices out",
        )
