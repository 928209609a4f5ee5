"""The attention of the text encoders, which transformers computes: set on each model, never for the whole process."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from difftool.attention import Needs, Site, explained, faults
from difftool.components.loaded import Components
from difftool.errors import PlanError
from difftool.facts import Refused

KEY = "stages.text_encoding.attention"
# a recipe's name -> that of transformers
THEIRS = {
    "torch_sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
    "flex": "flex_attention",
}
OURS = {theirs: ours for ours, theirs in THEIRS.items()}


def refusal(name: str, sites: Mapping[str, Site]) -> Refused | None:
    """Why the encoders, at their sites, cannot use what is asked for; None where they can. Their kernels of `fa2` and
    `fa3` take a text's padding as lengths, so masks are no reason.
    """
    for component, site in sites.items() if name != "auto" else ():
        if found := faults(name, site, Needs()):
            return Refused(f"{KEY}={name}, for {component}: {explained(name, found)}")
    return None


def apply(components: Components, names: Sequence[str], name: str) -> dict[str, str]:
    """Sets it where it is asked for, and tells what each encoder has. Raises PlanError for one that cannot have it."""
    found = {}
    for component, model in ((each, getattr(components, each)) for each in names):
        if name != "auto" and model is not None:
            _set(component, model, name)
        if isinstance(model, PreTrainedModel):
            has = model.config._attn_implementation
            found[component] = OURS.get(has, has)
    return found


def _set(component: str, model: object, name: str) -> None:
    said = f"{KEY}={name}: {component} is {type(model).__name__}, which"
    hint = f"use {KEY}=auto"
    if not isinstance(model, PreTrainedModel) or not model._can_set_attn_implementation():
        raise PlanError(f"{said} has an attention of its own", hint=hint)
    try:
        model.set_attn_implementation(THEIRS[name])
    except (ValueError, ImportError) as error:
        raise PlanError(f"{said} cannot use it: {str(error).splitlines()[0]}", hint=hint) from error
    if model.config._attn_implementation != THEIRS[name]:
        raise PlanError(f"{said} keeps {model.config._attn_implementation}", hint=hint)
