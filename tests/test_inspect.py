"""What a file tells of its making: `difftool inspect`, and any output as RECIPE. Files may come from strangers."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from report.dumps import dump
from tiny import difftool as run_difftool

from difftool.cli.main import main
from difftool.errors import RecipeError
from difftool.media.save import WRITERS
from difftool.media.writer import Details, metadata_text
from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.embedded import LIMIT, read_embedded
from difftool.recipe.load import load_recipe
from difftool.report.perf import write_perf

RECIPE = {"model": {"path": "builtin:shapes-image"}, "sampling": {"prompt": "a ring 赤", "seed": 7}}
INSIDE = {"recipe": RECIPE, "versions": {"difftool": "0.1.0", "torch": "2.13.0+cpu"}}
MEDIA = {
    "png": torch.zeros(3, 16, 16),
    "jpg": torch.zeros(3, 16, 16),
    "webp": torch.zeros(3, 16, 16),
    "gif": torch.zeros(3, 3, 16, 16),
    "mp4": torch.zeros(3, 3, 16, 16),
    "wav": torch.zeros(1, 100),
}


def medium(kind, content=INSIDE):
    """The bytes of a file with `content` inside: a mapping, a text as it is, or None."""
    text = content if content is None or isinstance(content, str) else metadata_text(content)
    made = MEDIA[kind]
    return WRITERS[made.ndim][kind].encode(made, Details(metadata=text, fps=8, sample_rate=8000))


@pytest.fixture
def answer(tmp_path, monkeypatch, capsys):
    """Runs `difftool ARGUMENTS…` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


def refusal(data, name="x.png"):
    """What is said of a file that cannot be a recipe."""
    Path(name).write_bytes(data)
    with pytest.raises(RecipeError) as error:
        load_recipe(name)
    assert len(str(error.value)) < 400
    return str(error.value)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# reading


@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("name", ["x.{}", "without-a-suffix"])
def test_every_medium_is_a_recipe_whatever_it_is_called(kind, name):
    path = Path(name.format(kind))
    path.write_bytes(medium(kind))
    loaded = load_recipe(str(path))
    assert loaded.recipe.sampling.prompt == "a ring 赤" and loaded.provenance["sampling.seed"] == str(path)
    assert read_embedded(path, "x").versions == INSIDE["versions"]


def test_flags_go_over_the_recipe_inside_a_picture():
    Path("x.jpg").write_bytes(medium("jpg"))
    Path("r.yaml").write_text("extends: x.jpg\nsampling: {seed: 9}\n")
    assert load_recipe("r.yaml").recipe.sampling.prompt == "a ring 赤"
    made = make_plan(load_recipe("r.yaml"), run=RunOptions())
    assert made.items[0].seed == 9


def test_a_recipe_of_any_length_and_any_letters_comes_back():
    prompt = "".join(map(chr, [*range(0x80, 0xD800), 0x1F534])) * 2
    Path("x.png").write_bytes(medium("png", {**INSIDE, "recipe": {**RECIPE, "sampling": {"prompt": prompt}}}))
    assert read_embedded(Path("x.png"), "x").recipe["sampling"]["prompt"] == prompt


def test_a_pipe_is_not_sniffed():
    command = f"{sys.executable} -m difftool plan <(printf 'model: builtin:shapes-image\\nsampling: {{prompt: x}}')"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# strangers' files


@pytest.mark.parametrize("kind", MEDIA)
def test_a_file_without_a_recipe_says_so(kind):
    assert refusal(medium(kind, None), f"x.{kind}") == f"x.{kind}: error: holds no recipe of difftool's"
    assert "holds no recipe" in refusal(medium(kind, "made by hand"), f"x.{kind}")
    assert "holds no recipe" in refusal(medium(kind, '{"prompt": {"1": "another program\'s"}}'), f"x.{kind}")


@pytest.mark.parametrize("kind", MEDIA)
def test_a_file_cut_anywhere_is_refused_or_still_tells_all(kind):
    whole = medium(kind)
    for left in range(0, len(whole), max(1, len(whole) // 60)):
        Path("cut").with_suffix(f".{kind}").write_bytes(whole[:left])
        try:
            found = read_embedded(Path(f"cut.{kind}"), "cut")
        except RecipeError as error:
            assert str(error).startswith("cut: error: ")
        else:
            assert found.recipe == RECIPE


@pytest.mark.parametrize("kind", MEDIA)
def test_a_file_with_any_byte_changed_never_ends_in_another_error(kind):
    whole = bytearray(medium(kind))
    for at in range(0, len(whole), max(1, len(whole) // 100)):
        for value in (0x00, 0xFF):
            changed = whole.copy()
            changed[at] = value
            Path(f"odd.{kind}").write_bytes(changed)
            try:
                read_embedded(Path(f"odd.{kind}"), "odd")
            except RecipeError as error:
                assert str(error).startswith("odd")


def png(*chunks):
    """A PNG of raw chunks: (kind, body) or (kind, body, promised size)."""
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body, *size in chunks:
        data += struct.pack(">I", size[0] if size else len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    return data


KEY = b"difftool\0"


def test_a_png_cut_in_its_text_is_refused():
    whole = medium("png")
    assert refusal(whole[: whole.index(b"sampling")]) == (
        "x.png: error: it is cut short; no recipe can be read from it"
    )


def test_a_png_cut_after_its_text_still_tells_how_to_make_it_again():
    whole = medium("png")
    Path("x.png").write_bytes(whole[: whole.index(b"IDAT")])
    assert load_recipe("x.png").recipe.sampling.seed == 7


def test_a_huge_text_is_refused_before_it_is_read():
    promised = png((b"iTXt", KEY, 2**31 - 1))
    assert "its text of 2147483638 bytes is longer than any recipe" in refusal(promised)


def test_a_text_that_unpacks_without_end_is_refused():
    bomb = zlib.compress(b"{" + b" " * 50_000_000)
    assert "its packed text is damaged or longer" in refusal(png((b"iTXt", KEY + b"\1\0\0\0" + bomb)))


def test_a_packed_text_is_read():
    packed = zlib.compress(metadata_text(INSIDE).encode())
    Path("x.png").write_bytes(png((b"iTXt", KEY + b"\1\0\0\0" + packed), (b"IEND", b"")))
    assert load_recipe("x.png").recipe.sampling.seed == 7


def test_a_text_with_a_wrong_checksum_is_refused():
    changed = medium("png").replace(b'"seed": 7', b'"seed": 8')
    assert "its text does not match its checksum" in refusal(changed)


def test_a_longer_text_than_a_recipe_is_refused_in_every_container():
    for kind in ("png", "gif", "mp4", "wav"):
        text = '{"recipe": "' + "x" * (2 * LIMIT) + '"}'
        assert "is longer than any recipe" in refusal(medium(kind, text), f"x.{kind}")


BOMB = '{"a0": &a0 [x, x, x, x, x, x, x, x, x], ' + ", ".join(
    f'"a{i}": &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 6)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"recipe": {"model": ', "x.png (recipe inside):1:"),
        ('{"recipe": {"model": "x"}, "recipe": {}, "versions": {}}', "recipe: duplicate key, first on line 1"),
        ('{"recipe": ' + "[" * 5000 + "]" * 5000 + "}", "nested deeper than 32 levels"),
        (BOMB + "}", "more than 50000 values, counting what aliases repeat"),
        ('{"recipe": !!python/object:os.system {}}', "the tag !!python/object:os.system is not allowed"),
        ('{"recipe": {"model": "x", "modle": 3}, "versions": {}}', "modle: unknown field"),
        ('{"recipe": [1], "versions": {}}', "holds no recipe of difftool's"),
        (r'{"recipe": {"\u001b[2J": 1}, "versions": {}}', "has keys or versions that difftool never writes"),
        (r'{"recipe": {"model": "x"}, "versions": {"torch": "\u001b[2J"}}', "has keys or versions that difftool"),
    ],
)
def test_a_hostile_text_inside_meets_the_limits_of_a_recipe_file(text, words):
    assert words in refusal(medium("png", text))


def test_chunks_of_others_are_stepped_over():
    text = medium("png")
    at = text.index(b"iTXt") - 4
    other = png((b"iTXt", b"Comment\0\0\0\0\0hello"), (b"iTXt", b""), (b"tEXt", b"difftool\0no"))[8:]
    Path("x.png").write_bytes(text[:at] + other + text[at:])
    assert load_recipe("x.png").recipe.sampling.seed == 7


def test_boxes_and_exif_that_lead_nowhere_are_refused():
    whole = medium("mp4")
    at = whole.index(b"udta")
    assert "its boxes are damaged" in refusal(whole[:at - 4] + b"\xff" * 4 + whole[at:], "x.mp4")
    assert "its boxes are damaged" in refusal(whole[:at - 4] + b"\0\0\0\2" + whole[at:], "x.mp4")
    exif = medium("jpg").replace(b"MM\0*\0\0\0\x08", b"MM\0*\xff\xff\xff\xf0")
    assert "its blocks are damaged" in refusal(exif, "x.jpg")


def test_a_picture_saved_again_by_another_program_holds_no_recipe():
    with Image.open(io.BytesIO(medium("png"))) as picture:
        picture.save("again.png")
    assert "holds no recipe" in refusal(Path("again.png").read_bytes(), "again.png")


# the command

SHOWN = """model:
  path: builtin:shapes-image
sampling:
  prompt: "a ring 赤"
  seed: 7
"""


def test_inspect_prints_the_recipe_with_seed_and_versions(answer):
    Path("x.webp").write_bytes(medium("webp"))
    head = "file      x.webp (WebP)\nseed      7\nversions  difftool 0.1.0, torch 2.13.0+cpu\n\n"
    assert answer("inspect", "x.webp") == (0, head + SHOWN, "")
    assert answer("inspect", "x.webp", "--recipe") == (0, SHOWN, "")


def test_inspect_json_is_one_object(answer):
    Path("x.wav").write_bytes(medium("wav"))
    code, out, err = answer("inspect", "x.wav", "--json")
    assert (code, err) == (0, "") and out.count("\n") == 1
    assert json.loads(out) == {"file": "x.wav", "kind": "WAV", "seed": 7, **INSIDE}


def test_inspect_of_a_perf_dump_shows_the_medians_too(answer):
    metric = {"n": 3, "median": 100.0, "mad": 0.0, "cv_pct": 0.0, "min": 1.0, "max": 200.0}
    facts = {"name": "x", "sha256": "a", "workload_sha256": "b", "resolved": RECIPE, "provenance": {}}
    sample = dump().samples[0].model_dump()
    made = dump(
        recipe=facts,
        env={"packages": {"torch": "2.13.0", "numpy": "2"}},
        samples=[{**sample, "repeat": i} for i in range(3)],
        summary={"denoising": metric, "decoding": {**metric, "median": 30.26}, "total": {**metric, "median": 131.0}},
    )
    write_perf(Path("perf.json"), made)
    assert answer("inspect", "perf.json")[1] == (
        "file      perf.json (perf dump, ok)\n"
        "seed      7\n"
        "versions  difftool 0.1.0, torch 2.13.0\n"
        "\n"
        "stage      ms, median of 3\n"
        "denoising            100.0\n"
        "decoding              30.3\n"
        "total                131.0\n"
        "\n" + SHOWN
    )
    assert json.loads(answer("inspect", "perf.json", "--json")[1])["stages_ms"]["total"] == 131.0


def test_the_printed_recipe_makes_the_same_item(answer):
    Path("x.png").write_bytes(medium("png"))
    Path("again.yaml").write_text(answer("inspect", "x.png", "--recipe")[1])
    plans = [make_plan(load_recipe(name), run=RunOptions()) for name in ("x.png", "again.yaml")]
    assert plans[0].items == plans[1].items


def test_what_a_terminal_obeys_is_printed_escaped(answer):
    text = {**INSIDE, "recipe": {**RECIPE, "sampling": {"prompt": "\x9b2J\x1b[2J\u2028"}}}
    Path("x.png").write_bytes(medium("png", text))
    assert '  prompt: "\\u009b2J\\u001b[2J\\u2028"\n' in answer("inspect", "x.png", "--recipe")[1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.png",
            medium("png", None),
            "error: x.png: holds no recipe of difftool's\n"
            "hint: every medium but npz gets one, unless output.embed_metadata is false\n",
        ),
        (
            "x.npz",
            b"PK",
            "error: x.npz: holds no recipe of difftool's\n"
            "hint: every medium but npz gets one, unless output.embed_metadata is false\n",
        ),
        (
            "r.yaml",
            b"model: x",
            "error: r.yaml is no picture, video, sound or perf dump\n"
            "hint: difftool plan shows what a recipe file would run\n",
        ),
        (
            "nowhere.png",
            None,
            "error: nowhere.png: there is no such file\nhint: give a picture, video, sound or perf dump\n",
        ),
    ],
)
def test_a_file_that_tells_nothing_is_exit_2(answer, name, content, said):
    if content is not None:
        Path(name).write_bytes(content)
    assert answer("inspect", name) == (2, "", said)


def test_recipe_and_json_exclude_each_other(answer):
    assert answer("inspect", "x.png", "--recipe", "--json")[0] == 2


def test_inspect_answers_without_torch():
    Path("x.png").write_bytes(medium("png"))
    code = (
        "import sys; from difftool.cli.main import main; main(['inspect', 'x.png'])\n"
        "sys.exit(str({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "set()\n", done.stderr


# for real


def test_a_picture_makes_itself_again_byte_for_byte(commanded, tmp_path):
    red, blue = (path.read_bytes() for path in commanded)
    again = run_difftool("generate", commanded[1], "-o", "again.png", "-q", cwd=tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "again.png\n", "")
    assert (tmp_path / "again.png").read_bytes() == blue != red
