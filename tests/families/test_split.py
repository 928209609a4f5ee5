"""One rank and several make the same latents: every family by Ulysses, by ring, by both, and with a rank a branch."""

import pytest
from families.cases import CASES
from families.running import requests
from pytest import mark, param

from difftool.facts import SEQUENCE
from difftool.launch.pool import RankFailed
from difftool.pipeline.registry import load_config

LIMIT = 1e-5  # of the largest latent, after the full schedule in fp32: rounding, as keys come in another order
ULYSSES, RING, BOTH = {"ulysses": 2}, {"ring": 2}, {"ring": 2, "ulysses": 2}
CFG, CFG_ULYSSES = {"cfg": 2}, {"cfg": 2, "ulysses": 2}
MODES = {
    "ulysses": (ULYSSES, "4 steps"),
    "ulysses, uneven": (ULYSSES, "uneven"),
    "ulysses, two prompts": (ULYSSES, "two prompts"),
    "ring of 3": ({"ring": 3}, "4 steps"),
    "ring, uneven": (RING, "uneven"),
    "ring, two prompts": (RING, "two prompts"),
    "ring and ulysses": (BOTH, "4 steps"),
    "ring and ulysses, uneven": (BOTH, "uneven"),
    "cfg": (CFG, "guided"),
    "cfg, truncated": (CFG, "truncated"),
    "cfg, three branches": (CFG, "skipped layers"),
    "three branches on three ranks": ({"cfg": 3}, "skipped layers"),
    "cfg and ulysses": (CFG_ULYSSES, "guided"),
}


NEED_MASKS = ("hunyuanvideo", "qwenimage")  # for texts of unlike length in one batch


def every_mode():
    """Those that a case can be split by and that mean something to it. The first case of a family and the guided ones
    stand for it; all others are slow.
    """
    seen = set()
    for case in CASES:
        given = requests(case)
        for mode, (degrees, request) in MODES.items():
            if not set(degrees) <= set(load_config(case.family, case.pipeline_class).facts.axes):
                continue
            own = request in ("4 steps", "uneven") or request in given or (request == "two prompts" and case.batches)
            if not own:
                continue
            first = (case.family, mode) not in seen
            seen.add((case.family, mode))
            yield param(case, degrees, request, id=f"{case.name}-{mode}", marks=() if first else mark.slow)


@pytest.mark.parametrize(("case", "degrees", "request_name"), list(every_mode()))
def test_split_latents_equal_those_of_one_rank(ranks, case, degrees, request_name):
    world = size(degrees)
    if case.family in NEED_MASKS and "ring" in degrees and request_name == "two prompts":
        with pytest.raises(RankFailed, match="parallel.ring passes no masks on"):
            ranks.run("families.split:compare", world=world, case=case.name, degrees=degrees, request=request_name)
        return
    answers = ranks.run("families.split:compare", world=world, case=case.name, degrees=degrees, request=request_name)
    for answer in answers:
        assert answer["difference"] <= LIMIT * answer["scale"], answer
        assert answer["again"], "the split left something behind"
        check_collectives(answer, degrees)
        alike = case.family not in NEED_MASKS or request_name != "two prompts"  # a plan's items are one sample each
        if alike and answer["predicted"] is not None:
            assert answer["sent"] == answer["predicted"]
    check_tokens(answers, degrees)
    if set(degrees) == {"cfg"} and not load_config(case.family, case.pipeline_class).joint:
        assert [answer["difference"] for answer in answers] == [0.0] * world


def size(degrees):
    ranks = 1
    for degree in degrees.values():
        ranks *= degree
    return ranks


def check_collectives(answer, degrees):
    """Two exchanges an attention for Ulysses, one message less than ranks for the ring, one gather a forward."""
    calls = answer["attentions"] * answer["forwards"]
    found = {line: {name: calls for name, (calls, _) in sent.items()} for line, sent in answer["sent"].items()}
    if "ulysses" in degrees:
        assert calls > 0 and found["ulysses"]["all_to_all"] == 2 * calls
    if "ring" in degrees:
        assert calls > 0 and found["ring"]["send"] == (degrees["ring"] - 1) * calls
    both = [axis for axis in SEQUENCE if axis in degrees]
    if both:
        line = "sequence" if len(both) == 2 else both[0]
        assert found[line]["all_gather"] == answer["forwards"] + answer["attentions"] * answer["masked"]


def check_tokens(answers, degrees):
    """What the ranks have of each stream adds up to all of it, and differs by a token at most."""
    count = degrees.get("ring", 1) * degrees.get("ulysses", 1)
    for first in range(0, len(answers), count):
        group = answers[first : first + count]
        for stream, whole in enumerate(group[0]["tokens"] if "cfg" not in degrees else ()):
            parts = [answer["local"][stream] for answer in group]
            assert sum(parts) == whole and max(parts) - min(parts) <= 1, (parts, whole)


def test_some_parts_are_uneven(ranks):
    answers = ranks.run("families.split:compare", world=2, case="flux1-dev", degrees=ULYSSES, request="uneven")
    assert [answer["local"][1] for answer in answers] == [8, 7]


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ({"dp": 2, "tp": 2}, {"dp": [[0, 2], [1, 3]], "tp": [[0, 1], [2, 3]], "replica": [[0, 1], [2, 3]]}),
        ({"cfg": 2, "ulysses": 2}, {"cfg": [[0, 2], [1, 3]], "ulysses": [[0, 1], [2, 3]], "replica": [[0, 1, 2, 3]]}),
        ({"ring": 2, "ulysses": 2}, {"ring": [[0, 2], [1, 3]], "sequence": [[0, 1, 2, 3]], "dp": [[0], [1], [2], [3]]}),
        ({"ulysses": 2, "tp": 2}, {"ulysses": [[0, 2], [1, 3]], "sequence": [[0, 2], [1, 3]], "tp": [[0, 1], [2, 3]]}),
    ],
    ids=str,
)
def test_tp_is_the_fastest_axis_and_dp_the_slowest(ranks, degrees, expected):
    answers = ranks.run("families.split:lines", degrees=degrees)
    for name, lines in expected.items():
        assert sorted({tuple(answer[name][1:]) for answer in answers}) == [tuple(line) for line in lines]
    assert all(answer[name][answer[name][0] + 1] == rank for rank, answer in enumerate(answers) for name in answer)
