"""Where a plan's weights lie: a folder, the built-in models, or the hub's cache."""

from collections.abc import Callable
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from difftool.errors import WeightsError
from difftool.planning.plan import ModelPlan

KINDS = ("*.json", "*.safetensors", "*.txt", "*.model")  # configs, weights, vocabularies; never pickles


def locate(model: ModelPlan, components: tuple[str, ...], beat: Callable[[], None]) -> Path:
    """The folder of the plan's checkpoint, downloaded from the hub if need be. Raises WeightsError.

    `beat()` is called whenever bytes arrive.
    """
    if model.folder is not None:
        return Path(model.folder)
    if model.builtin:
        return Path(str(resources.files("difftool.builtin") / model.name.removeprefix("builtin:")))
    assert model.hub_id is not None, model
    patterns = ["model_index.json", *(f"{name}/{kind}" for name in components for kind in KINDS)]
    try:
        return Path(
            snapshot_download(
                model.hub_id, revision=model.revision, allow_patterns=patterns, tqdm_class=_reporting_bar(beat)
            )
        )
    except GatedRepoError:
        raise WeightsError(
            f"{model.hub_id} is gated",
            hint=f"accept its licence at {constants.ENDPOINT}/{model.hub_id}, then run: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise WeightsError(f"{model.hub_id} has no revision {model.revision}", hint="check model.revision") from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"the hub has no model {model.hub_id}, or it is private", hint="check the spelling, or run: hf auth login"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"{model.hub_id} is not on this machine and the hub cannot be reached ({type(error).__name__})",
            hint="fetch it on a machine with a connection, then give its folder as the model",
        ) from None


def _reporting_bar(beat: Callable[[], None]) -> type[tqdm]:
    """A progress bar that draws nothing and reports that bytes arrive."""

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{**kwargs, "file": StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            beat()
            return super().update(n)

    return ReportingBar
