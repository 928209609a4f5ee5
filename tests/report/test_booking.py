"""Stages that another pipeline books together are compared together."""

import pytest
from report.dumps import SAMPLE, dump

from difftool.report.booking import NOTE, book_alike
from difftool.report.compare import compare
from difftool.report.measured import read_measured

OURS = {"text_encoding": 18.0, "latent_preparation": 1.0, "timestep_preparation": 3.0, "denoising": 70.0}
THEIRS = {"text_encoding": 22.0, "denoising": 70.0}


@pytest.fixture
def read(tmp_path):
    def measured(name, stages):
        times = {stage: ms for stage, ms in stages.items()}
        samples = [
            {
                **SAMPLE,
                "repeat": i,
                "total_ms": 92.0,
                "stages_ms": {**times, "text_encoding": times["text_encoding"] + i / 99},
            }
            for i in range(8)
        ]
        made = dump(samples=samples, stages_ms=stages)
        (tmp_path / name).write_text(made.model_dump_json(by_alias=True))
        return read_measured(tmp_path / name)

    return measured


def test_all_that_comes_before_the_denoising_is_one_stage_where_the_other_has_it_so(read):
    base, other = read("ours", OURS), read("theirs", THEIRS)
    assert compare(base, [other]).verdict == "REGRESSED"  # 18 ms against 22
    folded, noted = book_alike(base, other)
    assert folded.stages == ("text_encoding", "denoising")
    assert folded.series["text_encoding"].per_run == pytest.approx([22.0 + i / 99 for i in range(8)])
    assert compare(folded, [noted]).verdict == "NO_CHANGE"
    assert noted.notes == (NOTE,) and folded.series["total"] == base.series["total"]


def test_dumps_with_the_same_stages_stay_as_they_are(read):
    base, other = read("ours", OURS), read("again", OURS)
    assert book_alike(base, other) == (base, other)
