"""Settings that exclude each other, in one table. Values a single key may not have belong to the schema, and what a
kernel of attention cannot do to `difftool.attention`, which chooses by it too.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from difftool.errors import Problem
from difftool.planning.plan import Degrees
from difftool.planning.tree import at, word_of

ROLES = ("text_encoding", "image_encoding", "denoising", "decoding")


def sees(components: Collection[str]) -> bool:
    """Whether a pipeline of these components has an image encoder."""
    return any(name.startswith("image_encoder") for name in components)


@dataclass(frozen=True)
class Situation:
    """What a conflict is judged by: the recipe, the solved degrees, and whose pipeline runs: native, with these
    components, or diffusers.
    """

    recipe: Mapping[str, Any]
    degrees: Degrees
    backend: str = "native"
    components: tuple[str, ...] = ()

    @property
    def replica(self) -> int:
        """How many ranks make an item together."""
        return self.degrees.num_gpus // self.degrees.dp

    @property
    def is_blind(self) -> bool:
        """Whether there is no image encoder."""
        return self.backend == "native" and not sees(self.components)

    def get(self, key: str) -> Any:
        """A recipe value by its dotted key."""
        return at(self.recipe, key)


@dataclass(frozen=True)
class Conflict:
    """`holds` is true where the settings exclude each other; `key` is where the problem is shown, and its `{value}`."""

    key: str
    holds: Callable[[Situation], bool]
    message: str


CONFLICTS = (
    Conflict(
        "stages.text_encoding.tp",
        lambda s: s.get("stages.text_encoding.tp") not in (1, s.replica),
        "stages.text_encoding.tp={value}, and {replica} ranks make an item together; use {valid}",
    ),
    Conflict(
        "stages.text_encoding.tp",
        lambda s: (
            s.get("stages.text_encoding.tp") > 1 and s.get("stages.text_encoding.offload") not in ("auto", "none")
        ),
        "stages.text_encoding.tp={value} leaves a part of each encoder on every rank, and stages.text_encoding.offload "
        "moves whole ones; use one of them",
    ),
    Conflict(
        "launch.device",
        lambda s: s.get("launch.device") == "mps" and s.degrees.num_gpus > 1,
        "launch.device=mps has one device, and num_gpus={num_gpus}; use num_gpus=1",
    ),
    Conflict(
        "stages.decoding.parallel",
        lambda s: s.get("stages.decoding.parallel") == "tiled" and s.replica == 1,
        "stages.decoding.parallel={value} deals tiles to the ranks that make an item, and one makes it; use none, or "
        "split items by cfg, ulysses, ring or tp",
    ),
    Conflict(
        "stages.decoding.parallel",
        lambda s: s.get("stages.decoding.parallel") == "tiled" and word_of(s.get("stages.decoding.tiling")) == "none",
        "stages.decoding.parallel={value} deals tiles out, and stages.decoding.tiling=none makes none; leave one of "
        "them out",
    ),
    Conflict(
        "launch.prompt_embeds_dir",
        lambda s: s.get("launch.prompt_embeds_dir") is not None and s.get("stages.text_encoding.tp") > 1,
        "launch.prompt_embeds_dir: ranks that encode a text together must all encode it; use stages.text_encoding.tp=1",
    ),
    Conflict(
        "launch.prompt_embeds_dir",
        lambda s: s.get("launch.prompt_embeds_dir") is not None and s.get("perf.repeats") > 1,
        "launch.prompt_embeds_dir: with perf.repeats above 1 every sample pays for its encoding; leave one of them out",
    ),
    Conflict(
        "launch.prompt_embeds_dir",
        lambda s: s.get("launch.prompt_embeds_dir") is not None and s.backend == "diffusers",
        "launch.prompt_embeds_dir: a pipeline that diffusers runs by itself encodes every text; leave it out",
    ),
    Conflict(
        "stages.denoising.compile",
        lambda s: s.get("stages.denoising.compile") == "full" and s.get("cache.backend") != "none",
        "stages.denoising.compile={value} makes one graph of a forward, and a cache decides at every step which of its "
        "blocks run; use regional, or cache=none",
    ),
    *(
        Conflict(
            f"stages.{role}.offload",
            lambda s, role=role: (  # type: ignore[misc]
                word_of(s.get(f"stages.{role}.offload")) == "layerwise" and s.get(f"stages.{role}.compile") == "full"
            ),
            f"stages.{role}.offload=layerwise brings each block before it runs, and stages.{role}.compile=full makes "
            "one graph of all; use regional, or after_use",
        )
        for role in ("text_encoding", "denoising")
    ),
    *(
        Conflict(
            key,
            lambda s, key=key: s.backend == "diffusers" and word_of(s.get(key)) not in (None, "auto", "none"),  # type: ignore[misc]
            f"{key}: a pipeline that diffusers runs by itself keeps its weights on the device; leave it out",
        )
        for key in (*(f"stages.{role}.offload" for role in ROLES), "memory.budget")
    ),
    *(
        Conflict(
            f"stages.image_encoding.{key}",
            lambda s, key=key: (  # type: ignore[misc]
                word_of(s.get(f"stages.image_encoding.{key}")) not in ("auto", "none") and s.is_blind
            ),
            f"stages.image_encoding.{key}={{value}}: this model has no image encoder; leave it out",
        )
        for key in ("precision", "offload")
    ),
    Conflict(
        "stages.denoising.offload",
        lambda s: s.degrees.sharing > 1 and word_of(s.get("stages.denoising.offload")) not in ("auto", "none"),
        "stages.denoising.offload: parallel.hsdp={sharing} deals the weights out to ranks, which gather each block "
        "when it runs; use one of them",
    ),
    Conflict(
        "memory.budget",
        lambda s: s.degrees.sharing > 1 and s.get("memory.budget") is not None,
        "memory.budget: parallel.hsdp={sharing} deals the weights out already; leave one of them out",
    ),
    Conflict(
        "launch.on_oom",
        lambda s: s.get("launch.on_oom") == "fallback" and s.get("launch.nnodes") > 1,
        "launch.on_oom={value} starts the workers anew, which several machines do not; use fail",
    ),
    Conflict(
        "cache.backend",
        lambda s: s.get("cache.backend") != "none" and s.degrees.sharing > 1 and s.replica % s.degrees.sharing > 0,
        "cache.backend={value}: replicas share weights, so all must run the same blocks, and each decides for its own "
        "item; use parallel.hsdp=none, or share within a replica",
    ),
    Conflict(
        "parallel.hsdp",
        lambda s: s.get("parallel.hsdp") != "none" and s.degrees.tp > 1,
        "parallel.hsdp={value} shards over the ranks that tensor parallel splits; use tp=1 or hsdp=none",
    ),
    Conflict(
        "parallel.hsdp",
        lambda s: s.degrees.sharing > 1 and word_of(s.get("stages.denoising.quantization")) != "none",
        "parallel.hsdp={value} puts a block together from shares of its weights, and knows none of quantized ones; "
        "leave stages.denoising.quantization out, or use hsdp=none",
    ),
)


def check_conflicts(situation: Situation) -> list[Problem]:
    """Every conflict that holds."""
    replica = situation.replica
    valid = "1" if replica == 1 else f"1 or {replica}"
    degrees = situation.degrees
    facts = {"num_gpus": degrees.num_gpus, "replica": replica, "sharing": degrees.sharing, "valid": valid}
    found = [conflict for conflict in CONFLICTS if conflict.holds(situation)]
    return [Problem(c.key, c.message.format(value=situation.get(c.key), **facts)) for c in found]
