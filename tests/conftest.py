"""What holds for every test: no network, and `gpu` tests only where there is an accelerator."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, here and in the workers tests start


@pytest.fixture(scope="session")
def accelerator() -> bool:
    """Whether torch finds an accelerator here."""
    import torch

    return torch.accelerator.is_available()


@pytest.fixture(autouse=True)
def _skip_without_accelerator(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not request.getfixturevalue("accelerator"):
        pytest.skip("needs an accelerator")
