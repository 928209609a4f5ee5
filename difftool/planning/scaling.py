"""How much faster many cards would be than one: a prediction, from counted work and traffic and assumed speeds."""

from collections.abc import Mapping, Sequence

from difftool.planning.communication import Forward, lines_of, rounds
from difftool.planning.links import BETWEEN, RATES, WITHIN, Link
from difftool.planning.plan import Degrees, Scaling, Sending


def step_flops(calls: Sequence[Forward], degrees: Degrees) -> tuple[float, float]:
    """Of one rank in the first step, as if the denoiser's work was dealt out evenly: all, and those of attention to
    tokens of other ranks.
    """
    split = degrees.ring * degrees.ulysses * degrees.tp
    longest = [max(dealt, key=lambda call: call.anatomy.flops()) for dealt in rounds(calls, 0, degrees.cfg)]
    work = sum(call.samples * call.anatomy.flops() for call in longest)
    return work / split, sum(call.samples * call.anatomy.across_flops() for call in longest) / split


def waiting_seconds(step: Sequence[Sending], links: Mapping[str, Link], *, computing: float, attending: float) -> float:
    """How long a rank waits for others in a step in which it computes for so many seconds, and attends for some of
    them: the ring speaks while it attends, and shared weights come while it computes.
    """
    hidden = {"ring": attending, "hsdp": computing}
    took: dict[str, float] = {}
    for sent in step:
        link = links[sent.line]
        took[sent.line] = took.get(sent.line, 0.0) + sent.bytes / link.bandwidth + sent.calls * link.seconds
    return sum(max(0.0, each - hidden.get(line, 0.0)) for line, each in took.items())


def scaled(link: str, one: float, own: float, waiting: float, degrees: Degrees) -> Scaling:
    """`one` is what a step takes on a single card, `own` what each of these computes, in seconds."""
    speedup = degrees.dp * one / (own + waiting)
    return Scaling(
        link=link, computing_s=own, waiting_s=waiting, speedup=speedup, efficiency=speedup / degrees.num_gpus
    )


def scaling(
    alone: Sequence[Forward],
    calls: Sequence[Forward],
    degrees: Degrees,
    steps: Sequence[Sequence[Sending]],
    *,
    precision: str,
    nodes: int,
) -> tuple[Scaling, ...]:
    """For every kind of link. `alone` are the forwards of one card, `calls` those of the ranks, `steps` what each rank
    sends in one.
    """
    if degrees.num_gpus == 1:
        return ()
    single = Degrees(num_gpus=1, dp=1, cfg=1, ring=1, ulysses=1, tp=1, hsdp="none")
    one = step_flops(alone, single)[0] / RATES[precision]
    own, attending = (flops / RATES[precision] for flops in step_flops(calls, degrees))
    found = []
    for name, links in _kinds(degrees, nodes).items():
        waits = [waiting_seconds(step, links, computing=own, attending=attending) for step in steps]
        found.append(scaled(name, one, own, max(waits), degrees))
    return tuple(found)


def _kinds(degrees: Degrees, nodes: int) -> dict[str, dict[str, Link]]:
    """The link of every line, by kind: of cards in one machine or, for lines that cross, of several."""
    lines = lines_of(degrees)
    if nodes == 1:
        return {name: dict.fromkeys(lines, link) for name, link in WITHIN.items()}
    each = degrees.num_gpus // nodes
    crosses = {
        line: any(len({rank // each for rank in ranks}) > 1 for ranks in groups) for line, groups in lines.items()
    }
    return {
        f"NVLink and {name}": {line: far if crosses[line] else WITHIN["NVLink"] for line in lines}
        for name, far in BETWEEN.items()
    }
