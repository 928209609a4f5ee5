"""What holds for every test: no network, and `gpu` tests only where there is an accelerator."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from difftool.launch.environment import worker_environment
from difftool.launch.pool import RankPool

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, here and in the workers tests start


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


@pytest.fixture(autouse=True)
def _skip_without_accelerator(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not request.getfixturevalue("accelerator"):
        pytest.skip("needs an accelerator")
