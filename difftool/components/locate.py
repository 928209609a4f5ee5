"""Where a plan's weights lie: a folder, the built-in models, or the hub's cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Any

from huggingface_hub import constants, list_repo_files, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from difftool.components.accounting import WeightSource
from difftool.components.lora_file import PEFT_CONFIG
from difftool.components.replaced import Place
from difftool.errors import RecipeError, WeightsError
from difftool.planning.plan import ComponentPlan, LoraPlan, ModelPlan

# configs, weights, vocabularies, chat templates; never pickles
KINDS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
KEYS = {  # where the revision of each is given
    "model": "model.revision",
    "component": "its revision in model.components",
    "LoRA": "model.lora.revision",
    "source": "revision in the family's weight_sources",
}


def locate(
    model: ModelPlan, components: tuple[str, ...], beat: Callable[[], None], *, sources: Sequence[WeightSource] = ()
) -> Path:
    """The folder of the plan's checkpoint, downloaded from the hub if need be. Raises WeightsError.

    `beat()` is called whenever bytes arrive. Those `sources` that are folders of the checkpoint are fetched with it.
    """
    if model.folder is not None:
        return Path(model.folder)
    if model.builtin:
        return Path(str(resources.files("difftool.builtin") / model.name.removeprefix("builtin:")))
    assert model.hub_id is not None, model
    code = ("*.py",) if model.trust_remote_code else ()
    inside = [source for source in sources if source.repo is None and not Path(source.folder or "").is_absolute()]
    own = [f"{source.folder or source.component}/{pattern}" for source in inside for pattern in source.patterns]
    patterns = [*code, *needed_files(model, components, (*KINDS, *code)), *own]
    with _hub_errors(model.hub_id, model.revision, "model"):
        return _download(model.hub_id, model.revision, patterns, beat)


def needed_files(model: ModelPlan, components: Iterable[str], kinds: Sequence[str] = KINDS) -> list[str]:
    """Patterns of a pipeline repository's files, without the weights of components that come from elsewhere."""
    found = ["model_index.json"]
    for name in components:
        elsewhere = model.components.get(name)
        if elsewhere is None:
            found += [f"{name}/{kind}" for kind in kinds]
        elif elsewhere.file is not None or elsewhere.weight_name is not None:
            found.append(f"{name}/config.json")
    return found


def locate_components(model: ModelPlan, folder: Path, beat: Callable[[], None]) -> dict[str, Place]:
    """Where the plan's replaced components lie, downloaded if need be; `folder` is the model's. Raises WeightsError."""
    found = {}
    for name, plan in model.components.items():
        if plan.file is not None:
            found[name] = Place(folder / name, Path(plan.file))
        elif plan.folder is not None:
            found[name] = Place(Path(plan.folder))
        else:
            found[name] = _hub_component(name, plan, folder, beat)
    return found


def _hub_component(name: str, plan: ComponentPlan, model: Path, beat: Callable[[], None]) -> Place:
    """A component of a hub repository: a file, the folder that is named, the pipeline's of that name, or the root."""
    assert plan.hub_id is not None, plan
    with _hub_errors(plan.hub_id, plan.revision, "component"):
        if plan.weight_name is not None:
            file = _download(plan.hub_id, plan.revision, [plan.weight_name], beat) / plan.weight_name
            if not file.is_file():
                raise WeightsError(f"{plan.hub_id} has no {plan.weight_name}", hint="check the file's name on the hub")
            return Place(model / name, file)
        inside = plan.subfolder
        if inside is None:
            root = _download(plan.hub_id, plan.revision, ["config.json", "model_index.json"], beat)
            inside = name if (root / "model_index.json").is_file() else ""
        return Place(_download_folder(plan.hub_id, plan.revision, inside, KINDS, beat))


def locate_sources(sources: Sequence[WeightSource], beat: Callable[[], None]) -> tuple[WeightSource, ...]:
    """A family's weight sources; those of the hub as folders of this machine, downloaded if need be.

    Raises WeightsError.
    """
    return tuple(source if source.repo is None else _hub_source(source, source.repo, beat) for source in sources)


def _hub_source(source: WeightSource, repo: str, beat: Callable[[], None]) -> WeightSource:
    with _hub_errors(repo, source.revision, "source"):
        folder = _download_folder(repo, source.revision, source.folder or "", source.patterns, beat)
    return replace(source, repo=None, revision=None, folder=str(folder))


def locate_lora(lora: LoraPlan, beat: Callable[[], None]) -> Path:
    """The file of a plan's LoRA, downloaded from the hub if need be, with the trainer's config beside it.

    Raises WeightsError, and RecipeError where a repository holds several files and none is named.
    """
    if lora.file is not None:
        return Path(lora.file)
    assert lora.hub_id is not None, lora
    with _hub_errors(lora.hub_id, lora.revision, "LoRA"):
        name = lora.weight_name or _only_file(lora)
        config = f"{name.rpartition('/')[0]}/{PEFT_CONFIG}".lstrip("/")
        folder = _download(lora.hub_id, lora.revision, [name, config], beat)
    if not (folder / name).is_file():
        raise WeightsError(f"{lora.hub_id} has no {name}", hint="check the file's name on the hub")
    return folder / name


def _only_file(lora: LoraPlan) -> str:
    """The one LoRA of a repository; of one that cannot be reached, the one that was fetched before."""
    assert lora.hub_id is not None, lora
    try:
        every = list_repo_files(lora.hub_id, revision=lora.revision)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (HTTPError, OSError):
        folder = Path(snapshot_download(lora.hub_id, revision=lora.revision, local_files_only=True))
        every = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    names = sorted(name for name in every if name.endswith(".safetensors"))
    if len(names) > 1:
        listed = ", ".join(names)
        raise RecipeError(f"{lora.hub_id} holds {len(names)} LoRAs; name one of them in weight_name: {listed}")
    if not names:
        raise WeightsError(f"{lora.hub_id} holds no .safetensors file", hint="take a repository that has one")
    return names[0]


def _download(
    hub_id: str, revision: str | None, patterns: list[str], beat: Callable[[], None], *, ignored: Sequence[str] = ()
) -> Path:
    """A repository's folder, with those of its files that any of the patterns fits; `*` goes over `/` too."""
    wanted = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": list(ignored)}
    return Path(snapshot_download(hub_id, **wanted, tqdm_class=_reporting_bar(beat)))


def _download_folder(
    hub_id: str, revision: str | None, inside: str, kinds: Sequence[str], beat: Callable[[], None]
) -> Path:
    """A folder of a repository, `""` its root, with those of its files that any of `kinds` fits; not its folders."""
    prefix = f"{inside}/" if inside else ""
    patterns, deeper = [prefix + kind for kind in kinds], [f"{prefix}*/*"]
    return _download(hub_id, revision, patterns, beat, ignored=deeper) / inside


@contextmanager
def _hub_errors(hub_id: str, revision: str | None, what: str) -> Iterator[None]:
    """Says for people what the hub answers. `what` is sought there, a word of KEYS."""
    try:
        yield
    except GatedRepoError:
        raise WeightsError(
            f"{hub_id} is gated",
            hint=f"accept its licence at {constants.ENDPOINT}/{hub_id}, then run: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise WeightsError(f"{hub_id} has no revision {revision}", hint=f"check {KEYS[what]}") from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"the hub has no {what} {hub_id}, or it is private", hint="check the spelling, or run: hf auth login"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if constants.HF_HUB_OFFLINE:
            raise WeightsError(
                f"{hub_id} is not on this machine, and nothing is fetched offline",
                hint=f"with a connection: difftool models fetch {hub_id if what == 'model' else 'RECIPE'}",
            ) from None
        place = "file" if what == "LoRA" else "folder"
        raise WeightsError(
            f"{hub_id} is not on this machine and the hub cannot be reached ({type(error).__name__})",
            hint=f"fetch it on a machine with a connection, then give its {place} as the {what}",
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
