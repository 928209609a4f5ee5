"""The world this command may have been started in: several copies of it, by torchrun, srun or mpirun."""

from collections.abc import Mapping

from difftool.errors import PlanError

# SLURM_STEP_NUM_TASKS is set by srun alone; SLURM_NTASKS also in the batch script, where one command runs once
SIZES = {"torchrun": "WORLD_SIZE", "srun": "SLURM_STEP_NUM_TASKS", "mpirun": "OMPI_COMM_WORLD_SIZE"}


def check_alone(environ: Mapping[str, str]) -> None:
    """Raises PlanError where others run the same command beside this one: each would start a world of its own."""
    for launcher, variable in SIZES.items():
        size = environ.get(variable, "1")
        if size.isdigit() and int(size) > 1:
            raise PlanError(
                f"{launcher} runs this command {size} times ({variable}={size}), and each would make every item",
                hint=f"run it once, with --dp-size {size}: difftool starts its ranks itself",
            )
