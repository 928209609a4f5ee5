"""What holds for every test: no network, and `gpu` tests only where there is an accelerator."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from difftool.launch.environment import worker_environment
from difftool.launch.pool import RankPool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it runs in the background
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, here and in the workers tests start


# files of minutes, the longest first: what begins last would have one process working and the other waiting
LONGEST = (
    "test_resume",
    "acceleration/test_compilation",
    "test_split_ranks",
    "test_multi_rank",
    "test_nodes",
    "families/test_pairs",
    "test_cached_run",
    "test_custom_page",
    "test_end_to_end",
    "launch/test_nodes",
    "test_shared_weights",
    "scripts/test_bench_gpu",
    "test_outer_launchers",
    "test_quality",
    "scripts/test_pareto",
    "test_family_page",
    "test_docs",
    "families/test_checkpoints",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest files."""
    places = {f"{name}.py": place for place, name in enumerate(LONGEST)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: places.get(item.path.relative_to(tests).as_posix(), len(places)))


@pytest.fixture(scope="session")
def accelerator() -> bool:
    """Whether torch finds an accelerator here."""
    import torch

    return torch.accelerator.is_available()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    """Four CPU ranks that stay for all tests: `ranks.run("parallel.bodies:total", world=2, value=3)`."""
    tests = Path(__file__).parent
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    environment = worker_environment(here, threads=1, offline=True)
    with RankPool(4, log=tmp_path_factory.mktemp("ranks") / "ranks.log", environment=environment) as pool:
        yield pool


@pytest.fixture(scope="session")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What `difftool generate` makes of two prompts with the built-in model, seeds 7 and 8, in 4 steps."""
    from tiny import difftool

    folder = tmp_path_factory.mktemp("commanded")
    request = ("-p", "a red circle", "-p", "a blue star", "--seed", 7, "--num-inference-steps", 4, "-o", "made/", "-q")
    done = difftool("generate", "shapes-image", *request, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [folder / line for line in done.stdout.splitlines()]


@pytest.fixture(autouse=True)
def _skip_without_accelerator(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not request.getfixturevalue("accelerator"):
        pytest.skip("needs an accelerator")
