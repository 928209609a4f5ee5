"""A flag about every stage, given for a model that has not every stage: it is about those that there are."""

from collections.abc import Collection

from difftool.planning.conflicts import sees
from difftool.recipe.load import Loaded, lay_over
from difftool.recipe.overrides import Override

IMAGES, OTHERS = "stages.image_encoding.offload", [f"stages.{s}.offload" for s in ("text_encoding", "decoding")]


def of_its_stages(loaded: Loaded, components: Collection[str]) -> Loaded:
    """The recipe without the offload of an image encoder that there is none of, where one flag, or key of a flat file,
    set that of every stage. What is asked for by name stays, to be refused.
    """
    given = loaded.provenance.get(IMAGES)
    one_place = given is not None and (
        given.startswith("--") or given[-1].isdecimal()
    )  # a mapping is a place as a whole
    if sees(components) or not one_place or given not in [loaded.provenance.get(key) for key in OTHERS]:
        return loaded
    assert given is not None
    return lay_over(loaded, [Override(IMAGES, None, given)])
