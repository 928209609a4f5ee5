"""Where a plan's weights lie: a folder, the built-in models, or the hub's cache."""

from importlib import resources
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from difftool.errors import WeightsError
from difftool.planning.plan import ModelPlan

KINDS = ("*.json", "*.safetensors", "*.txt", "*.model")  # configs, weights, vocabularies; never pickles


def locate(model: ModelPlan, components: tuple[str, ...]) -> Path:
    """The folder of the plan's checkpoint, downloaded from the hub if need be. Raises WeightsError."""
    if model.folder is not None:
        return Path(model.folder)
    if model.builtin:
        return Path(str(resources.files("difftool.builtin") / model.name.removeprefix("builtin:")))
    assert model.hub_id is not None, model
    patterns = ["model_index.json", *(f"{name}/{kind}" for name in components for kind in KINDS)]
    try:
        return Path(snapshot_download(model.hub_id, revision=model.revision, allow_patterns=patterns))
    except GatedRepoError:
        raise WeightsError(
            f"{model.hub_id} is gated",
            hint=f"accept its licence at {constants.ENDPOINT}/{model.hub_id}, then run: hf auth login",
        ) from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"the hub has no model {model.hub_id}, or it is private", hint="check the spelling, or run: hf auth login"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"{model.hub_id} is not on this machine and the hub cannot be reached ({type(error).__name__})",
            hint="fetch it on a machine with a connection, then give its folder as the model",
        ) from None
