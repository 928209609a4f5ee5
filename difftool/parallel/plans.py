"""How a denoiser is split, as data: a family publishes a plan, and `sequence` and `tensor` apply it to any of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Split:
    """Where tokens lie in an argument: along `dim`, those of these streams one after the other.

    A tensor of another `ndim` than this, or of size 1 along `dim`, is the same for every token and is left whole.
    """

    streams: tuple[str, ...]
    dim: int
    ndim: int | None = None


Splits: TypeAlias = "Split | tuple[Split, ...]"  # of a tensor, or of the tensors of a tuple


@dataclass(frozen=True)
class SequencePlan:
    """How tokens are dealt to ranks between the first block and the last.

    `blocks` are the module lists that run one after the other. `tokens` are the arguments of the first block that are
    cut, by name, each a stream; `constant` those of every block that follow the tokens: rotary tables, masks,
    modulations. `attention` names the attention modules of a block that see the tokens of all ranks, with the streams
    they see; others attend to what every rank has. `gather` is the module whose first input, or output, is put together
    again, and the streams it holds. `never_empty`: a rank without a token of a stream breaks the blocks' arithmetic.
    """

    blocks: tuple[str, ...]
    tokens: Mapping[str, Split]
    constant: Mapping[str, Splits]
    attention: Mapping[str, tuple[str, ...]]
    gather: tuple[str, Literal["input", "output"], Split] = field(
        default=("norm_out", "input", Split(("image",), dim=1))
    )
    never_empty: bool = False


Parts: TypeAlias = "int | tuple[str, ...]"  # of a layer: so many equal ones, or as wide as what these names stand for


@dataclass(frozen=True)
class Packed:
    """A layer that is several in one. A part has the width of a linear layer beside it, or of a number there."""

    path: str
    parts: Parts


@dataclass(frozen=True)
class Heads:
    """The heads of an attention module: how many of them go to ranks whole, by the name of an attribute, and the
    attributes that a rank has its own share of.
    """

    count: str
    shared_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorPlan:
    """How layers are dealt to ranks, by paths of modules in which * is any one name; one that a model lacks is left.

    Of `columns` each rank has some of the outputs, of `rows` some of the inputs: what a rank computes from the first is
    what the second takes, and their outputs are summed over the ranks. Of `gathered` each rank has some of the outputs
    too, which are put together: layers that see a sample once, such as modulations. `heads` are the attention modules,
    whose heads stay whole. `norms` take their mean over the features of all ranks. Of `vocabulary`, embeddings, each
    rank has some of the entries. `inputs` are arguments of a module, tensors or tuples of them, whose dim is cut as its
    heads are.
    """

    heads: Mapping[str, Heads]
    columns: tuple[str | Packed, ...]
    rows: tuple[str | Packed, ...]
    gathered: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    inputs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def under(path: str, *names: str) -> tuple[str, ...]:
    """Paths below a path."""
    return tuple(f"{path}.{name}" for name in names)


DOUBLE, SINGLE = "transformer_blocks.*", "single_transformer_blocks.*"
# of blocks of two streams and then of one, under the names that several of diffusers' denoisers share
TWO_STREAMS_THEN_ONE = TensorPlan(
    heads={f"{block}.attn": Heads("heads", shared_out=("heads",)) for block in (DOUBLE, SINGLE)},
    columns=(
        *under(f"{DOUBLE}.attn", "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"),
        *under(DOUBLE, "ff.net.0.proj", "ff_context.net.0.proj"),
        *under(f"{SINGLE}.attn", "to_q", "to_k", "to_v"),
        f"{SINGLE}.proj_mlp",
    ),
    rows=(
        *under(f"{DOUBLE}.attn", "to_out.0", "to_add_out"),
        *under(DOUBLE, "ff.net.2", "ff_context.net.2"),
        Packed(f"{SINGLE}.proj_out", ("attn.to_v", "proj_mlp")),
    ),
    gathered=(*under(DOUBLE, "norm1.linear", "norm1_context.linear"), f"{SINGLE}.norm.linear"),
)
