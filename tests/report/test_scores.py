"""What outputs are worth, beside those of the base: shown, and no part of a verdict."""

import pytest
from report.golden.pairs import made, sample

from difftool.report.compare import Rules, compare
from difftool.report.markdown import render_markdown
from difftool.report.measured import read_measured
from difftool.report.perf import Accuracy, OutputQuality, PerfDump, Quality, write_perf
from difftool.report.scores import compare_accuracy, list_scores

BASE = [
    {"psnr": 40.0, "max_abs": 0.1, "lpips": 0.01, "clip": 0.3, "right": True},
    {"psnr": 20.0, "max_abs": 0.3, "lpips": 0.05, "clip": 0.2, "right": True},
    {"max_abs": 0.0, "lpips": 0.0, "clip": 0.4, "right": False},
]


def quality(*outputs, accuracy=None):
    found = [OutputQuality(item=item, **values) for item, values in enumerate(outputs)]
    return Quality(tier="none", reference="refs", per_output=found, passed=True, accuracy=accuracy)


def test_the_worst_output_is_the_least_like_the_reference_and_the_least_like_its_prompt():
    found = {score.name: (score.base.worst, score.base.median) for score in list_scores(quality(*BASE), None)}
    assert found == {"psnr": (20.0, 30.0), "max_abs": (0.3, 0.1), "lpips": (0.05, 0.01), "clip": (0.2, 0.3)}


def test_a_number_that_one_side_has_not_is_left_open():
    (score,) = list_scores(quality({}), quality({"ssim": 0.5}))
    assert (score.name, score.base, score.new.worst) == ("ssim", None, 0.5)
    assert list_scores(None, quality({})) == [] and compare_accuracy(None, quality({})) is None


@pytest.fixture
def page(tmp_path):
    """The report of dumps of these blocks, without any guard against single runs."""

    def compared(base, *news, tags=()):
        dumps = []
        for number, block in enumerate((base, *news)):
            path = tmp_path / f"{number}.json"
            content = {**made([sample(0, 940.0)]), "quality": block, "tag": tags[number] if tags else None}
            write_perf(path, PerfDump.model_validate(content))
            dumps.append(read_measured(path))
        return render_markdown(compare(dumps[0], dumps[1:], Rules()))

    return compared


def test_the_report_shows_both_and_how_many_show_what_their_prompts_say(page):
    ours = Accuracy(right=2, count=3, ci95=(0.21, 0.94))
    theirs = Accuracy(right=3, count=3, ci95=(0.44, 1.0))
    text = page(quality(*BASE, accuracy=ours), quality({"psnr": 31.0, "clip_image": 0.9}, accuracy=theirs))
    assert text.partition("## Quality\n\n")[2].partition("\n\n## ")[0] == (
        "| of the outputs | base worst | base median | new worst | new median |\n"
        "| --- | --: | --: | --: | --: |\n"
        "| psnr (dB) | 20.0 | 30.0 | 31.0 | 31.0 |\n"
        "| max_abs | 0.3 | 0.1 | - | - |\n"
        "| lpips | 0.05 | 0.01 | - | - |\n"
        "| clip | 0.2 | 0.3 | - | - |\n"
        "| clip_image | - | - | 0.9 | 0.9 |\n"
        "\n"
        "- base: the outputs show what their prompts say: 2 of 3 (21 to 94 %)\n"
        "- new: the outputs show what their prompts say: 3 of 3 (44 to 100 %)"
    )


def test_several_dumps_have_columns_of_their_own(page):
    text = page(quality(*BASE), quality({"clip": 0.1}), quality({"clip": 0.5}))
    assert "| clip | 0.2 | 0.3 | 0.1 | 0.1 | 0.5 | 0.5 |\n" in text


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        (("base", "fast", "slow"), ["fast", "slow"]),
        ((None, "fast", "slow"), ["fast", "slow"]),
        (("ci", "ci", "slow"), ["new 1", "new 2"]),
        (("ci", "slow", "slow"), ["new 1", "new 2"]),
        (("ci", "slow", None), ["new 1", "new 2"]),
        (("ci", "base", "slow"), ["new 1", "new 2"]),
    ],
)
def test_dumps_are_called_by_tags_that_tell_them_apart(page, tags, names):
    text = page(*(quality({"clip": 0.1}) for _ in tags), tags=tags)
    assert text.partition("| of the outputs | base worst | base median | ")[2].startswith(f"{names[0]} worst | ")
    assert f" {names[1]} worst | {names[1]} median |\n" in text


def test_dumps_that_say_nothing_of_quality_have_no_such_section(page):
    assert "## Quality" not in page(None, None)
