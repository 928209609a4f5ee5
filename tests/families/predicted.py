"""What planning predicts of a tiny checkpoint's request: from configs and values alone, besides the text lengths."""

import importlib
import math
from dataclasses import replace

from difftool.anatomy import Cost
from difftool.facts import AXES
from difftool.planning.communication import Asked, Known, forwards, item_traffic, joins_branches
from difftool.planning.plan import Degrees

KEYS = ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length", "last_image", "extra")


def cost_of(facts) -> Cost:
    module, _, name = facts.cost.partition(":")
    return getattr(importlib.import_module(module), name)


def own_configs(assembled):
    """The configs of the built modules, as planning reads them from their files."""
    configs = dict(assembled.config.configs(assembled.components))
    return {**configs, "index": {**configs["index"], "_class_name": assembled.config.pipeline_class}}


def asked_for(assembled, batch) -> Asked:
    """`batch` has been through the denoising, or up to it: its branches know their text."""
    known = {branch.name: Known(lengths(branch.kwargs), branch.active) for branch in batch.branches}
    return Asked(
        {key: getattr(batch, key) for key in KEYS},
        [picture.image.size for picture in batch.image],
        guided="negative" in known,
        known=known,
    )


def lengths(kwargs):
    """Text tokens of each sample."""
    if "cap_feats" in kwargs:
        return tuple(len(text) for text in kwargs["cap_feats"])
    samples, tokens = kwargs["encoder_hidden_states"].shape[:2]
    return (tokens,) * samples


def predicted_traffic(assembled, batch, degrees, rank, *, hsdp="none", element=4):
    """What a rank sends for a request, by line. None for a family that says nothing of its cost."""
    if assembled.config.facts.cost is None:
        return None
    asked = asked_for(assembled, batch)
    solved = Degrees(**{**dict.fromkeys(AXES, 1), **degrees}, num_gpus=math.prod(degrees.values()), hsdp=hsdp)
    cost = cost_of(assembled.config.facts)
    calls = forwards(cost, own_configs(assembled), asked, joined=joins_branches(solved))
    calls = [replace(call, anatomy=as_seen(call.anatomy, batch)) for call in calls]
    return item_traffic(calls, len(batch.timesteps), solved, rank, element)


def as_seen(anatomy, batch):
    """With the tokens of a picture that a tiny image encoder makes: fewer than the real one's, and what is less than
    512 tokens of text and picture together is all taken for text, as diffusers does.
    """
    if batch.image_embeds is None:
        return anatomy
    picture = batch.image_embeds[0].shape[0] * batch.image_embeds[0].shape[1] // len(batch.prompt)
    together = anatomy.tokens["text"] + picture
    text = min(512, together)
    return replace(anatomy, tokens={**anatomy.tokens, "text": text, "picture": together - text})
