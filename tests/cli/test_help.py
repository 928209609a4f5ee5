"""The help is the manual page: these literals are what a newcomer reads. It must come at once."""

import subprocess
import sys

import pytest
import typer

from difftool.cli.main import app


def test_the_application_lists_its_commands(difftool):
    answer = difftool("--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == (
        "Usage: difftool [OPTIONS] COMMAND [ARGS]...\n"
        "\n"
        "  Run, plan and measure diffusion pipelines described by recipes.\n"
        "\n"
        "Commands:\n"
        "  generate      Run a recipe: prompts in, media and a perf dump out.\n"
        "  plan          Check and resolve a recipe and print what would run; what...\n"
        "  profile       Run a recipe under a profiler: a trace of every rank, the...\n"
        "  bench         Measure a recipe: warm-up, repeats, and a race against...\n"
        "  calibrate     Fit TeaCache's coefficients to a recipe, and write one...\n"
        "  inspect       Print the recipe, seed and versions inside an output file.\n"
        "  compare-perf  Compare perf dumps with the first of them.\n"
        "  schema        Print the JSON Schema of recipes, dumps, reports or events.\n"
        "  doctor        Say what this machine can do, or check a model's files.\n"
        "  history       Keep perf dumps over time: add, show and bless sessions.\n"
        "  models        List the models that run and what each supports; fetch one.\n"
        "  recipes       List, show and copy the built-in recipes.\n"
        "\n"
        "Options:\n"
        "  --version             print the version\n"
        "  --install-completion  install completion for this shell\n"
        "  --show-completion     print the completion script of this shell\n"
        "  --help                show this page\n"
        "\n"
        "  The shortest run:\n"
        "\n"
        "  difftool generate builtin:shapes-image -p 'a red circle' -o red.png\n"
    )


def test_no_argument_shows_the_same_page(difftool):
    assert difftool() == difftool("--help")


def test_help_shows_the_common_flags_with_their_recipe_keys(difftool):
    assert difftool("plan", "--help").out == (
        "Usage: difftool plan [OPTIONS] [RECIPE]\n"
        "\n"
        "  Check and resolve a recipe and print what would run; what is refused ends\n"
        "  with the exit code of a run.\n"
        "\n"
        "Arguments:\n"
        "  RECIPE  a recipe file, a built-in recipe, a model or a generated file\n"
        "\n"
        "Common:\n"
        "  -p, --prompt sampling.prompt          what to make; repeatable\n"
        "  --prompt-file sampling.prompts.file   prompts from x.txt, x.jsonl or -\n"
        "                                        (stdin)\n"
        "  --seed sampling.seed                  a number, or random\n"
        "  --height sampling.height              pixels\n"
        "  --width sampling.width                pixels\n"
        "  --num-frames sampling.num_frames      frames of a video\n"
        "  --num-inference-steps sampling.num_inference_steps\n"
        "                                        denoising steps\n"
        "  --guidance-scale sampling.guidance_scale\n"
        "                                        how closely to follow the prompt\n"
        "  --num-gpus parallel.num_gpus          devices to use, or auto\n"
        "  --device launch.device                auto, cuda, cpu or mps\n"
        "  --memory-budget memory.budget         device memory to stay within, such as\n"
        "                                        24GiB\n"
        "  -o, --output PATH                     x.png names the one file, x/ the\n"
        "                                        folder\n"
        "\n"
        "Options:\n"
        "  -c, --config RECIPE  the same as RECIPE\n"
        "  -s, --set KEY=VALUE  any key of the recipe; repeatable\n"
        "  --help-all           show every flag\n"
        "  --resolved           print the complete recipe, every value filled in\n"
        "  -q, --quiet          print nothing but errors; the exit code tells\n"
        "  --json               print the plan as one JSON object\n"
        "  --help               show this page\n"
    )


def test_help_all_adds_every_panel(difftool):
    page = difftool("generate", "--help-all").out
    titles = [line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "Arguments:",
        "Common:",
        "Model:",
        "Parallel:",
        "Stages:",
        "Sampling:",
        "Run:",
        "Options:",
    ]
    assert "  --tp-size, --tensor-parallel-size parallel.tp\n" in page
    assert "  --vae-slicing stages.decoding.slicing\n" in page


def commands(command, words=()):
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


EVERY = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_has_a_full_page(difftool, words):
    answer = difftool(*words, "--help-all")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: {' '.join(('difftool', *words))} ")


def test_the_full_page_is_named_only_where_it_holds_more(difftool):
    assert difftool("schema", "--help-all") == difftool("schema", "--help")
    assert "help-all" not in difftool("schema", "--help").out and "help-all" in difftool("bench", "--help").out
    assert difftool("schema", "--nope").err.endswith("hint: see difftool schema --help\n")


def test_a_flag_that_a_command_needs_is_marked(difftool):
    assert "  -o, --output FILE    the recipe with what was found; required\n" in difftool("calibrate", "--help").out
    assert "measured by this one; required\n" in difftool("history", "bless", "--help").out


def test_every_flag_that_takes_a_value_says_which():
    options = [param for command in EVERY.values() for param in command.params if param.param_type_name == "option"]
    valued = [param for param in options if not param.is_flag]
    assert len(valued) > 100
    assert [param.opts for param in valued if not param.metavar] == []


def test_every_flag_of_the_table_is_on_the_full_page(difftool):
    from difftool.recipe.flag_table import FLAGS

    page = difftool("generate", "--help-all").out
    assert [flag.names for flag in FLAGS if not all(name in page for name in flag.names)] == []


@pytest.mark.parametrize("words", ["--help", "generate --help-all"])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\n"
        "from difftool.cli.main import main\n"
        f"main({words.split()!r})\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:])), file=sys.stderr)"
    )
    heavy = ["torch", "numpy", "diffusers", "transformers", "rich", "yaml", "psutil"]
    ran = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert ran.stderr == "[]\n"


def test_the_version_is_printed(difftool):
    answer = difftool("--version")
    assert answer.code == 0 and answer.out.startswith("difftool ")
