"""Every way we know a checkpoint to be damaged or hostile, made from a sound one, with what is said of it.

It has a single-file `vae`, and a `transformer` in shards. PROMISED are the names, here and in `damaged_loras`, of the
34 damages that difftool promises to refuse by file and fault.
"""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from families.cases import CASES
from safetensors.torch import load_file, save_file

CANARY = "code-ran"
STEM = "diffusion_pytorch_model.safetensors"


def build(folder: Path) -> Path:
    """A tiny pipeline with real classes and random weights."""
    pipe = CASES[0].build()
    pipe.save_pretrained(folder)
    (folder / "transformer" / STEM).unlink()
    pipe.transformer.save_pretrained(folder / "transformer", max_shard_size="40KB")
    return folder


@dataclass(frozen=True)
class Damage:
    """`make(folder)` damages a copy; `words`, a regular expression, is what the message must say, `file` what it names.

    `reads` is whether finding it takes more than headers and indexes.
    """

    name: str
    make: Callable[[Path], None]
    file: str
    words: str
    reads: bool = False


def vae(folder: Path) -> Path:
    return folder / "vae" / STEM


def index(folder: Path) -> Path:
    return folder / "transformer" / f"{STEM}.index.json"


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "transformer").glob("*-of-*.safetensors"))


def change_json(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path: Path, header: bytes, body: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def change_header(path: Path, change: Callable[[dict], None]) -> None:
    header, body = header_of(path)
    change(header)
    write(path, json.dumps(header).encode(), body)


def tensors(header: dict) -> list[dict]:
    """Entries in the order of their data."""
    found = [entry for name, entry in header.items() if name != "__metadata__"]
    return sorted(found, key=lambda entry: entry["data_offsets"])


def change_tensors(path: Path, change: Callable[[dict], None]) -> None:
    found = load_file(path)
    change(found)
    save_file(found, path, metadata={"format": "pt"})


def truncated(kept: int) -> Damage:
    def make(folder):
        vae(folder).write_bytes(vae(folder).read_bytes()[:kept])

    words = "is truncated" if kept < 0 or kept > 8 else r"truncated or not a safetensors file \(\d+ bytes\)"
    return Damage(f"truncated at {kept}", make, STEM, words)


def header_only(folder: Path) -> None:
    header, _ = header_of(vae(folder))
    write(vae(folder), json.dumps(header).encode(), b"")


def length(value: int, name: str) -> Damage:
    def make(folder):
        vae(folder).write_bytes(struct.pack("<Q", value) + vae(folder).read_bytes()[8:])

    return Damage(f"header length {name}", make, STEM, "truncated or not a safetensors file")


def offsets(name: str, change: Callable[[list[dict]], None], words: str) -> Damage:
    return Damage(name, lambda folder: change_header(vae(folder), lambda h: change(tensors(h))), STEM, words)


def content(name: str, data: bytes, words: str) -> Damage:
    return Damage(name, lambda folder: vae(folder).write_bytes(data), STEM, words)


def overlap(entries: list[dict]) -> None:
    start, stop = entries[1]["data_offsets"]
    entries[1]["data_offsets"] = [start - 4, stop - 4]


def gap(entries: list[dict]) -> None:
    for entry in entries[1:]:
        entry["data_offsets"] = [place + 4 for place in entry["data_offsets"]]


def out_of_range(entries: list[dict]) -> None:
    last = entries[-1]
    last["data_offsets"][1] += 4 * 10**12
    last["shape"] = [(last["data_offsets"][1] - last["data_offsets"][0]) // 4]


def negative(entries: list[dict]) -> None:
    entries[0]["data_offsets"][0] = -4


def unknown_dtype(entries: list[dict]) -> None:
    entries[0]["dtype"] = "F31"


def twice(folder: Path) -> None:
    header, body = header_of(vae(folder))
    name = next(name for name in header if name != "__metadata__")
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    write(vae(folder), text.encode(), body)


def first_float(header: dict, rank: int) -> dict:
    return next(entry for entry in tensors(header) if len(entry["shape"]) == rank)


def wrong_dtype(header: dict) -> None:
    first_float(header, 4)["dtype"] = "I32"


def wrong_shape(header: dict) -> None:
    entry = first_float(header, 1)
    entry["shape"] = [1, *entry["shape"]]


def missing_shard(folder: Path) -> None:
    shards(folder)[1].unlink()


def points(path: str) -> Callable[[Path], None]:
    def make(folder):
        def change(content):
            name = next(iter(content["weight_map"]))
            content["weight_map"][name] = path

        change_json(index(folder), change)

    return make


def link_out(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}-outside.safetensors"
    vae(folder).rename(outside)
    vae(folder).symlink_to(outside)


class Canary:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def hostile(folder: Path) -> bytes:
    return pickle.dumps(Canary(folder / CANARY))


def only_pickle(folder: Path) -> None:
    vae(folder).unlink()
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(hostile(folder))


def named_pickle(folder: Path) -> None:
    vae(folder).write_bytes(hostile(folder))


def indexed_pickle(folder: Path) -> None:
    (folder / "transformer" / "x.bin").write_bytes(hostile(folder))
    points("x.bin")(folder)


def zip_pickle(folder: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, vae(folder))


def own_code(folder: Path) -> None:
    (folder / "transformer" / "mine.py").write_text(f"open({str(folder / CANARY)!r}, 'w')\nclass Model: pass\n")
    change_json(folder / "model_index.json", lambda content: content.update(transformer=["mine", "Model"]))


def own_pipeline(folder: Path) -> None:
    (folder / "pipeline.py").write_text(f"open({str(folder / CANARY)!r}, 'w')\nclass Mine: pass\n")
    change_json(folder / "model_index.json", lambda content: content.update(_class_name=["pipeline", "Mine"]))


def not_a_number(folder: Path) -> None:
    def change(found):
        next(value for value in found.values() if value.ndim == 4).view(-1)[3] = torch.nan

    change_tensors(vae(folder), change)


def stale(folder: Path) -> None:
    shutil.copy(shards(folder)[0], folder / "transformer" / STEM.replace(".", "-00001-of-00009.", 1))


def single_beside_index(folder: Path) -> None:
    shutil.copy(vae(folder), folder / "transformer" / STEM)


def misplaced(folder: Path) -> None:
    def change(content):
        places = content["weight_map"]
        first = next(iter(places))
        places[first] = next(place for place in places.values() if place != places[first])

    change_json(index(folder), change)


def without_first(found: dict) -> None:
    found.pop(sorted(found)[0])


def grown(found: dict) -> None:
    found["mid_block.more.weight"] = torch.zeros(2)


def encoder(folder: Path) -> Path:
    return folder / "text_encoder" / "model.safetensors"


def longer(found: dict) -> None:
    name = next(name for name in sorted(found) if found[name].ndim == 1)
    found[name] = torch.zeros(len(found[name]) + 1)


DAMAGES = (
    *(truncated(kept) for kept in (0, 4, 8, 40, -64, -1)),
    Damage("truncated after its header", header_only, STEM, "is truncated"),
    length(0, "0"),
    length(2**63, "2^63"),
    length(10**7, "beyond the file"),
    Damage("bad JSON", lambda f: write(vae(f), b"{" * 64, b""), STEM, "cannot be read as safetensors"),
    Damage("deep JSON", lambda f: write(vae(f), b"[" * 10**6, b""), STEM, "cannot be read as safetensors"),
    Damage("header of a list", lambda f: write(vae(f), b"[1, 2]", b""), STEM, "a header that is not a mapping"),
    Damage("a tensor twice", twice, STEM, "names something twice"),
    offsets("overlap", overlap, "overlaps tensor"),
    offsets("gap", gap, "leaves a gap after tensor"),
    offsets("out of range", out_of_range, r"is truncated: it promises \d{13,} bytes"),
    offsets("negative offset", negative, "no dtype, shape or offsets of the format"),
    offsets("unknown dtype", unknown_dtype, "no dtype, shape or offsets of the format"),
    Damage(
        "trailing bytes",
        lambda f: vae(f).write_bytes(vae(f).read_bytes() + b"more"),
        STEM,
        r"followed by unknown bytes: it promises \d+ bytes and has \d+",
    ),
    Damage("no tensors", lambda f: write(vae(f), b"{}", b""), "vae", "has no tensor of AutoencoderKL's", reads=True),
    Damage("wrong dtype", lambda f: change_header(vae(f), wrong_dtype), STEM, "is I32, and its config", reads=True),
    Damage("wrong shape", lambda f: change_header(vae(f), wrong_shape), STEM, r"has shape \[1, \d+\], and", reads=True),
    Damage(
        "missing tensor", lambda f: change_tensors(vae(f), without_first), "vae", "has no tensor of Auto", reads=True
    ),
    Damage(
        "extra tensor", lambda f: change_tensors(vae(f), grown), STEM, "not take: mid_block.more.weight", reads=True
    ),
    Damage(
        "missing tensor of an encoder",
        lambda f: change_tensors(encoder(f), without_first),
        "text_encoder",
        "has no tensor of CLIPTextModel's",
        reads=True,
    ),
    Damage(
        "wrong shape in an encoder",
        lambda f: change_tensors(encoder(f), longer),
        "text_encoder",
        r"has shape \[\d+\], and its config asks for",
        reads=True,
    ),
    Damage("NaN", not_a_number, STEM, "holds NaN or infinity in", reads=True),
    Damage("missing shard", missing_shard, "-00002-of-", "weights are missing"),
    Damage("shards without index", lambda f: index(f).unlink(), "index.json", "is missing, and .* has the shards"),
    Damage("index that is no JSON", lambda f: index(f).write_text("{"), "index.json", "cannot be read"),
    Damage("index of nothing", lambda f: index(f).write_text("{}"), "index.json", "is not a shard index"),
    Damage("index ../", points(f"../vae/{STEM}"), "index.json", r"points outside its folder: \.\./vae"),
    Damage("index absolute", points("/etc/passwd"), "index.json", "points outside its folder: /etc/passwd"),
    Damage("link out", link_out, STEM, "is a link that leaves"),
    Damage("stale shard", stale, "-00001-of-00009", "which .* does not list"),
    Damage("single file beside an index", single_beside_index, STEM, "which .* does not list"),
    Damage("index and shards of two downloads", misplaced, "index.json", "places in"),
    Damage(
        "pickle", only_pickle, "diffusion_pytorch_model.bin", "is a pickle, which can run code when loaded: refused"
    ),
    Damage("pickle named .safetensors", named_pickle, STEM, "is a pickle named .safetensors"),
    Damage("zipped pickle named .safetensors", zip_pickle, STEM, "is a pickle named .safetensors"),
    Damage("pickle in the index", indexed_pickle, "x.bin", "is a pickle, which can run code"),
    content("git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
    content("HTML page", b"<!doctype html><html><body>404</body></html>", "is an HTML page, not the weights"),
    Damage("no weights", lambda f: vae(f).unlink(), STEM, "weights are missing"),
    Damage("bad config", lambda f: (f / "vae" / "config.json").write_text("{"), "config.json", "cannot be read"),
    Damage(
        "config of another class",
        lambda f: change_json(f / "vae" / "config.json", lambda c: c.update(norm_num_groups=7)),
        "config.json",
        "is no config of a AutoencoderKL",
        reads=True,
    ),
    Damage("no component folder", lambda f: shutil.rmtree(f / "vae"), "vae", "has no vae folder"),
    Damage("component with code of its own", own_code, "mine.py", "which is not run"),
    Damage("pipeline.py", own_pipeline, "model_index.json", "names no pipeline class"),
    Damage("bad model_index", lambda f: (f / "model_index.json").write_text("{"), "model_index.json", "cannot be read"),
)
PROMISED = (
    *(f"truncated {where}" for where in ("at 4", "at 8", "at 40", "after its header", "at -64", "at -1")),
    *(f"header length {value}" for value in ("0", "2^63", "beyond the file")),
    *("bad JSON", "overlap", "out of range", "gap", "trailing bytes", "truncated at 0"),
    *("wrong dtype", "wrong shape", "missing tensor", "extra tensor", "missing shard"),
    *("index ../", "index absolute", "link out", "pickle", "pickle named .safetensors", "git-lfs pointer"),
    *("HTML page", "NaN", "bad model_index", "pipeline.py"),
    *("LoRA of two ranks", "LoRA of another base", "LoRA without a match", "LoRA with half a match"),
)
