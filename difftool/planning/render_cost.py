"""The predictions of a plan as text: who speaks with whom, memory of each rank, communication, and scaling."""

from collections.abc import Callable, Sequence

from difftool.planning.links import RATES, WITHIN
from difftool.planning.plan import Plan, Prediction, RankPrediction, Streaming
from difftool.planning.sizes import shown

MB = 1e6


def render_cost(plan: Plan) -> list[list[str]]:
    """The sections; none for a plan without predictions."""
    found = plan.prediction
    if found is None:
        return []
    communication = _communication(found, plan.degrees.dp)
    return [_mesh(found), _memory(found), _streaming(found.streaming), communication, _scaling(found)]


def _mesh(found: Prediction) -> list[str]:
    rows = [
        f"  {line + ' ' + str(len(groups[0])):<12} ranks {'  '.join(_ranks(group) for group in groups)}"
        for line, groups in found.lines.items()
    ]
    return ["mesh", *rows] if rows else []


def _memory(found: Prediction) -> list[str]:
    quantized, words = found.quantized, found.precision
    if quantized is not None:
        most = "at most " if quantized.at_most else ""
        words += f", {most}{quantized.layers} of the {quantized.of} layers of its blocks in {quantized.name}"
    return [f"memory per rank, the denoiser in {words}", *_alike(found.ranks, _holdings)]


def _holdings(rank: RankPrediction) -> list[str]:
    each = ", ".join(f"{name} {_size(size)}" for name, size in rank.weights.items())
    total = _size(sum(size or 0 for size in rank.weights.values()))
    activations = _size(rank.activations)
    return [f"weights {total}: {each}", f"activations of the denoiser about {activations}, an estimate"]


def _streaming(found: Streaming | None) -> list[str]:
    if found is None:
        return []
    rate = WITHIN[found.link].bandwidth / 1e9
    hidden = min(1.0, found.computing_s / found.coming_s) if found.coming_s else 1.0
    told = "all of it is hidden" if hidden == 1.0 else f"{100 * hidden:.0f} % of it is hidden"
    return [
        f"streamed blocks of the denoiser, assuming {rate:g} GB/s over {found.link} from pinned memory",
        f"  {'a step':<12} {shown(found.bytes)} come in {1e3 * found.coming_s:,.3f} ms, while a rank computes "
        f"{1e3 * found.computing_s:,.3f} ms: {told}",
    ]


def _communication(found: Prediction, replicas: int) -> list[str]:
    lengths = ", ".join(f"{count} {name}" for name, count in found.tokens.items() if name in ("image", "text"))
    head = f"communication of a denoising step, sent by a rank ({lengths} tokens{'' if found.exact else ' at most'})"
    rows = _alike(found.ranks, _sendings)
    if not rows:
        return []
    item = sum(sent.bytes for rank in found.ranks for sent in rank.item) / replicas
    return [head, *rows, f"  {'all ranks':<12} {item / MB:,.3f} MB for all steps of an item"]


def _sendings(rank: RankPrediction) -> list[str]:
    return [f"{s.line:<9} {s.collective:<11} {s.calls:>5} calls {s.bytes / MB:>12,.3f} MB" for s in rank.step]


def _scaling(found: Prediction) -> list[str]:
    rate = RATES[found.precision] / 1e12
    rows = [
        f"  {each.link:<12} {1e3 * each.computing_s:,.3f} ms computing, {1e3 * each.waiting_s:,.3f} ms waiting a step: "
        f"{each.speedup:.3g} times one card ({100 * each.efficiency:.0f} %)"
        for each in found.scaling
    ]
    return [f"predicted scaling, assuming {rate:g} TFLOP/s a card", *rows] if rows else []


def _alike(ranks: Sequence[RankPrediction], told: Callable[[RankPrediction], list[str]]) -> list[str]:
    """What is told of each rank, of those of which it is the same once."""
    found: dict[tuple[str, ...], list[int]] = {}
    for rank in ranks:
        found.setdefault(tuple(told(rank)), []).append(rank.rank)
    labels = {lines: f"rank{'s' if len(same) > 1 else ''} {_ranks(same)}" for lines, same in found.items()}
    return [f"  {'' if i else labels[lines]:<12} {line}" for lines in found for i, line in enumerate(lines)]


def _ranks(ranks: Sequence[int]) -> str:
    """0-3, or 0,4."""
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks))


def _size(size: int | None) -> str:
    if size is None:
        return "of unknown size"
    return shown(size)
