"""What a denoiser's blocks take and make, as data: a family publishes it, and a cache of features follows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# what a block makes: the image's states alone, or the text's too, in this order; the image's come first into all of
# them, and the text's second where they are made
Makes = Literal["image", "image, text", "text, image"]


@dataclass(frozen=True)
class CachePlan:
    """`blocks` are the module lists that run one after the other in a forward, each with what its blocks make: what
    a list adds to its input in one step may stand for what it would add in the next ones. `attention` is the module of
    a block of the first list that is given its modulated input.
    """

    blocks: Mapping[str, Makes]
    attention: str
