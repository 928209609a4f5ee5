"""The world this command was started in: several processes of it, made by torchrun, srun or mpirun."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from difftool.errors import PlanError, Problem
from difftool.planning.plan import Plan


@dataclass(frozen=True)
class Variables:
    """What one launcher tells its processes. `here` counts this machine's, `machines` all machines; one of them is
    set. `world` tells this world from others of the same user on this machine, `option` sets the number of processes.
    """

    launcher: str
    rank: str
    size: str
    world: tuple[str, ...]
    option: str
    one_each: str
    here: str | None = None
    machines: str | None = None

    @property
    def needed(self) -> list[str]:
        return [name for name in (self.rank, self.size, self.here, self.machines) if name is not None]


# The innermost launcher first: mpirun starts its daemons by srun, and any of them may start torchrun.
# SLURM_STEP_NUM_TASKS is set by srun alone; SLURM_NTASKS also in the batch script, where one command runs once.
LAUNCHERS = (
    Variables(
        launcher="torchrun",
        rank="RANK",
        size="WORLD_SIZE",
        here="LOCAL_WORLD_SIZE",
        world=("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"),
        option="--nproc-per-node",
        one_each="--nproc-per-node 1",
    ),
    Variables(
        launcher="mpirun",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        here="OMPI_COMM_WORLD_LOCAL_SIZE",
        world=("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
        option="-n",
        one_each="--map-by ppr:1:node",
    ),
    Variables(
        launcher="srun",
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        machines="SLURM_STEP_NUM_NODES",
        world=("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
        option="--ntasks",
        one_each="--ntasks-per-node 1",
    ),
)
MPICH_SIZE = "PMI_SIZE"  # with it come a rank, but nothing that tells one world from another
ITS_OWN = "or run difftool once, with --dp-size {size}: it starts its ranks itself"


@dataclass(frozen=True)
class Outside:
    """This process among the `size` that `launcher` started: all on this machine, or each on one of its own
    (`machines`). `name` is the same in all of them.
    """

    launcher: str
    rank: int
    size: int
    name: str
    machines: bool = False


def read_outside(environ: Mapping[str, str]) -> Outside | None:
    """The world around this process; None for one that is alone.

    Raises PlanError for one with several processes on each of several machines, or one that is not told completely.
    """
    worlds = [known for known in LAUNCHERS if _size(environ, known.size) > 1]
    if not worlds:
        if _size(environ, MPICH_SIZE) > 1:
            raise _refused("mpirun of MPICH", MPICH_SIZE, environ, "start it by torchrun, srun or Open MPI's mpirun")
        return None
    known = next((known for known in worlds if all(name in environ for name in known.needed)), None)
    if known is None:
        absent = ", ".join(name for name in worlds[0].needed if name not in environ)
        raise _refused(worlds[0].launcher, worlds[0].size, environ, f"set {absent} too, as {worlds[0].launcher} does")
    size, rank = int(environ[known.size]), _number(environ, known.rank)
    together, apart = (1, size) if known.machines else (size, 1)
    spread = _number(environ, known.machines or known.here or "")
    if spread not in (together, apart):
        hint = f"keep all of them on one machine, or start one on each ({known.one_each}), with --rdzv-endpoint"
        raise _refused(known.launcher, known.size, environ, hint)
    if not 0 <= rank < size:
        raise _refused(known.launcher, known.size, environ, f"{known.rank}={rank} is none of them")
    named = {name: environ.get(name) for name in known.world}
    text = "\n".join(f"{name}={value}" for name, value in {**named, "uid": os.geteuid()}.items())
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Outside(known.launcher, rank, size, name, machines=spread == apart)


def speaks(environ: Mapping[str, str]) -> bool:
    """Whether this process is the one that talks: the first of its world, as far as that can be known."""
    return all(environ.get(known.rank, "0") == "0" for known in LAUNCHERS if _size(environ, known.size) > 1)


def check_alone(environ: Mapping[str, str]) -> None:
    """Raises PlanError where others run the same beside this process: each would start a world of its own."""
    for launcher, variable in [*((known.launcher, known.size) for known in LAUNCHERS), ("mpirun", MPICH_SIZE)]:
        size = _size(environ, variable)
        if size > 1:
            raise PlanError(
                f"{launcher} runs this {size} times ({variable}={size}), and each would make every item",
                hint=f"run it once, with dp={size}: difftool starts its ranks itself; or use `difftool generate`",
            )


def check_world(plan: Plan, outside: Outside) -> None:
    """Raises PlanError where the plan takes another number of ranks than there are: none are started beside them."""
    if outside.machines:
        return _check_nodes(plan, outside)
    ranks = plan.degrees.num_gpus
    if ranks != outside.size:
        raise PlanError(
            f"num_gpus={ranks}, but {outside.launcher} started {outside.size} processes",
            hint=f"use {outside.launcher} {_option(outside)} {ranks}, or num_gpus={outside.size}",
        )


def _check_nodes(plan: Plan, outside: Outside) -> None:
    """Where each process has a machine, they are the nodes."""
    nodes = plan.nodes
    assert nodes is not None, outside  # what the recipe leaves open was taken from the launcher
    for key, asked, there in (("nnodes", nodes.count, outside.size), ("node_rank", nodes.rank, outside.rank)):
        if asked != there:
            raise PlanError(
                f"launch.{key}={asked}, but it is {there} by {outside.launcher}, which started one process on each of "
                f"{outside.size} machines",
                hint=f"leave nnodes and node_rank to {outside.launcher}",
            )


def check_fit(problems: Sequence[Problem], outside: Outside) -> None:
    """Raises PlanError where a recipe that leaves `num_gpus` open has no other problem than the size of the world."""
    if all(problem.key.partition(".")[0] == "parallel" for problem in problems):
        messages = "; ".join(problem.message for problem in problems)
        raise PlanError(
            f"{outside.launcher} started {outside.size} processes: {messages}",
            hint=f"change the degrees, or the number of processes: {outside.launcher} {_option(outside)} N",
        )


def _option(outside: Outside) -> str:
    return next(known.option for known in LAUNCHERS if known.launcher == outside.launcher)


def _size(environ: Mapping[str, str], variable: str) -> int:
    value = environ.get(variable, "1")
    return int(value) if value.isdigit() else 1


def _number(environ: Mapping[str, str], variable: str) -> int:
    value = environ[variable]
    if not value.isdigit():
        raise PlanError(f"{variable}={value!r} is no number", hint="start the processes by torchrun, srun or mpirun")
    return int(value)


def _refused(launcher: str, variable: str, environ: Mapping[str, str], hint: str) -> PlanError:
    size = environ[variable]
    message = f"{launcher} started {size} processes of this command ({variable}={size}) that cannot be one run"
    return PlanError(message, hint=f"{hint}; {ITS_OWN.format(size=size)}")
