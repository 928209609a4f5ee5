"""What a denoiser is made of, in numbers: from this one description follow its parameters, FLOPs and communication.

A family describes one forward; nothing here knows a family, and nothing imports torch. A stream is a kind of token
("image", "text"); the stream "sample" is what is computed once for a sample, "times" once for each time it is told.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from difftool.facts import Configs
from difftool.traffic import parts

Streams = tuple[str, ...]
Shapes = tuple[tuple[int, int], ...]  # of parameters: rows, and values in a row
FP32 = 4  # bytes
SAMPLE, TIMES = ("sample",), ("times",)


@dataclass(frozen=True)
class Linear:
    """`count` matrices [outputs, inputs], each applied to the tokens of these streams, one after the other in a tensor.

    `split` is how tensor parallel cuts it: by outputs (column), by inputs with a sum over the ranks (row), by outputs
    that are put together again (gathered), or not. `fp32`: it stays so, whatever the denoiser's precision.
    A convolution whose kernel is its stride is one, of the inputs that lie under the kernel.
    """

    inputs: int
    outputs: int
    streams: Streams = SAMPLE
    split: Literal["column", "row", "gathered"] | None = None
    bias: bool = True
    count: int = 1
    fp32: bool = False

    def shapes(self, tp: int = 1, index: int = 0) -> Shapes:
        """Of one rank. The bias of a row cut is added once, and whole on every rank."""
        outputs = parts(self.outputs, tp)[index] if self.split in ("column", "gathered") else self.outputs
        inputs = parts(self.inputs, tp)[index] if self.split == "row" else self.inputs
        return ((outputs, inputs), *(((outputs, 1),) if self.bias else ())) * self.count


@dataclass(frozen=True)
class Attention:
    """Softmax attention of `width` = heads x head width. `across`: it sees tokens that are dealt to several ranks."""

    queries: Streams
    keys: Streams
    width: int
    across: bool = False


@dataclass(frozen=True)
class Block:
    """`count` equal blocks of the module list `name`; "" is everything outside the lists.

    `scales` are parameters besides the linears that every rank has whole, `fp32_scales` those of them that stay in
    fp32. `norms` are the streams over which a norm
    across heads runs, with a scale as long as `width`, which tensor parallel cuts: its mean of squares is a sum over
    the ranks. `dealt`: it is one of the blocks whose tokens sequence parallelism deals to ranks; ranks that share
    weights gather such a block when it runs, and all else for the whole forward.
    """

    name: str
    count: int
    linears: tuple[Linear, ...]
    attentions: tuple[Attention, ...] = ()
    scales: Shapes = ()
    fp32_scales: Shapes = ()
    norms: tuple[Streams, ...] = ()
    width: int = 0
    dealt: bool = True

    def shapes(self, element: int, tp: int = 1, index: int = 0) -> Shapes:
        """Rows, and bytes in a row, of the parameters of one of them, on one rank."""
        linears = [
            (rows, values * (FP32 if linear.fp32 else element))
            for linear in self.linears
            for rows, values in linear.shapes(tp, index)
        ]
        cut = vectors(parts(self.width, tp)[index]) * len(self.norms)
        scales = [(rows, values * element) for rows, values in (*self.scales, *cut)]
        return (*linears, *scales, *((rows, values * FP32) for rows, values in self.fp32_scales))

    def parameters(self) -> int:
        """Of one of them."""
        scales = (*self.scales, *self.fp32_scales, *vectors(self.width) * len(self.norms))
        shapes = (*scales, *(shape for linear in self.linears for shape in linear.shapes()))
        return sum(rows * values for rows, values in shapes)


@dataclass(frozen=True)
class Anatomy:
    """One forward of a denoiser, for a request.

    `tokens` is the length of each stream, of which `dealt` are cut among sequence ranks between the first block and
    the last; after it `gathered` are put together again, `width` values a token, in fp32 or in the denoiser's own
    precision. `prediction` is how many values a sample's prediction has. `mask_bytes` is what the attention mask of a
    sample's token takes, where samples of unlike length share a forward.
    """

    tokens: Mapping[str, int]
    dealt: Streams
    gathered: Streams
    width: int
    blocks: tuple[Block, ...]
    prediction: int
    gathered_fp32: bool = False
    prediction_fp32: bool = False
    mask_bytes: int = 0

    def length(self, streams: Streams) -> int:
        """Tokens of these streams."""
        known = {**dict.fromkeys((*SAMPLE, *TIMES), 1), **self.tokens}
        return sum(known[stream] for stream in streams)

    def parameters(self) -> int:
        """Of the whole denoiser."""
        return sum(block.count * block.parameters() for block in self.blocks)

    def weight_bytes(self, element: int, tp: int = 1, index: int = 0) -> int:
        """Of the whole denoiser, on one rank; `element` is bytes of a value in its precision."""
        shapes = [(block.count, *shape) for block in self.blocks for shape in block.shapes(element, tp, index)]
        return sum(count * rows * size for count, rows, size in shapes)

    def shared_bytes(self, element: int, ranks: int, index: int) -> int:
        """Of the whole denoiser, on one of the ranks that share its weights: some rows of each parameter."""
        shapes = [(block.count, *shape) for block in self.blocks for shape in block.shapes(element)]
        return sum(count * _own_rows(rows, ranks, index) * size for count, rows, size in shapes)

    def gathers(self, element: int, ranks: int) -> list[tuple[int, int]]:
        """(how many, bytes of a rank's part) of the gathers that ranks which share weights make in a forward."""
        lengths = [sum(-(-rows // ranks) * size for rows, size in block.shapes(element)) for block in self.blocks]
        apart = [(block.count, length) for block, length in zip(self.blocks, lengths, strict=True) if block.dealt]
        rest = [block.count * length for block, length in zip(self.blocks, lengths, strict=True) if not block.dealt]
        return [*apart, (1, sum(rest))]

    def flops(self) -> int:
        """Of the matrix products of one sample, two for a multiplication and its addition: linears, and the scores and
        sums of attention. Elementwise work is left out, as torch's FlopCounterMode does.
        """
        return sum(block.count * self.block_flops(block) for block in self.blocks)

    def block_flops(self, block: Block) -> int:
        """Those of one of equal blocks."""
        linears = sum(2 * li.count * li.inputs * li.outputs * self.length(li.streams) for li in block.linears)
        return linears + sum(map(self._attention_flops, block.attentions))

    def across_flops(self) -> int:
        """Those of them that are attention to tokens of other ranks."""
        across = [(block.count, at) for block in self.blocks for at in block.attentions if at.across]
        return sum(count * self._attention_flops(attention) for count, attention in across)

    def _attention_flops(self, attention: Attention) -> int:
        return 4 * self.length(attention.queries) * self.length(attention.keys) * attention.width


@dataclass(frozen=True)
class Request:
    """What of a request a denoiser's cost depends on.

    `pictures` are the widths and heights of its condition pictures. `texts` is the number of text tokens of every
    sample in the forward; without it one sample of the longest text that the request allows. `branch` is the guidance
    branch it is a forward of.
    """

    values: Mapping[str, Any]
    pictures: Sequence[tuple[int, int]] = ()
    texts: Sequence[int] = ()
    branch: str = "positive"

    def text(self, longest: int) -> int:
        """Text tokens of the longest sample."""
        return max(self.texts, default=longest)


def _own_rows(rows: int, ranks: int, index: int) -> int:
    """Of so many, as torch.chunk deals them out: the last ranks may have fewer, or none."""
    each = -(-rows // ranks)
    return max(0, min(each, rows - index * each))


def no_further(values: Mapping[str, Any]) -> Mapping[str, range]:
    return {}


@dataclass(frozen=True)
class Cost:
    """What a family publishes of its denoiser's cost.

    `others` are the parameters of its other components by name, of a published checkpoint whose files are not here.
    `joint`: the positive and the negative branch may share one forward. `exact`: the text has the same length whatever
    the prompt. `further` are branches besides these two, with the steps they are active in.
    """

    anatomy: Callable[[Configs, Request], Anatomy]
    others: Callable[[Configs], Mapping[str, int]]
    joint: bool = False
    exact: bool = True
    further: Callable[[Mapping[str, Any]], Mapping[str, range]] = field(default=no_further)


def published_cost(where: str) -> Cost:
    """A family's, by the "module:NAME" of its facts."""
    module, _, name = where.partition(":")
    found: Cost = getattr(importlib.import_module(module), name)
    return found


def latent_grid(values: Mapping[str, Any], side: int, frames: int = 1) -> tuple[int, int, int]:
    """Frames, rows and columns of a request's latents, of which one is `side` pixels wide and `frames` frames long."""
    count = values.get("num_frames") or 1
    return (count - 1) // frames + 1, values["height"] // side, values["width"] // side


def vectors(*lengths: int) -> Shapes:
    """Of parameters with one dimension."""
    return tuple((length, 1) for length in lengths)


def embedder(inputs: int, width: int, streams: Streams = SAMPLE, *, bias: bool = True) -> tuple[Linear, Linear]:
    """Two linears with an activation between them."""
    return Linear(inputs, width, streams, bias=bias), Linear(width, width, streams, bias=bias)


def feed_forward(
    width: int, inner: int, streams: Streams, *, gates: int = 1, bias: bool = True
) -> tuple[Linear, Linear]:
    """Up and down; with a gate, the way up is twice as wide."""
    up = Linear(width, gates * inner, streams, "column", bias)
    return up, Linear(inner, width, streams, "row", bias)


def modulation(inputs: int, outputs: int, streams: Streams = SAMPLE) -> Linear:
    """Shifts, scales and gates of a block."""
    return Linear(inputs, outputs, streams, "gathered")


def self_attention(width: int, streams: Streams, *, bias: bool = True) -> tuple[Linear, Linear]:
    """Queries, keys and values, and the way out, of these streams."""
    return Linear(width, width, streams, "column", bias, count=3), Linear(width, width, streams, "row", bias)
