"""The keys of a LoRA file, whatever tool wrote them: which layer of which module each is for, and what it is of it.

A file is read without knowing its format. A key is a module's prefix, a layer's name and a suffix; the layer is looked
up among all the names it goes by: diffusers' own, the one in the model's original code, and both with _ for dots.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from difftool.errors import WeightsError

# the end of a key -> what its tensor is. Sources: PEFT and diffusers (lora_A, lora_B), sd-scripts (lora_down, lora_up,
# alpha), diffusers before PEFT (lora.down, lora_linear_layer.down), x-flux (down, up), ComfyUI (diff, diff_b)
SUFFIXES = (
    (r"\.(lora_A(\.\w+)*?|lora_down|lora\.down|lora_linear_layer\.down|down)\.weight", "down"),
    (r"\.(lora_B(\.\w+)*?|lora_up|lora\.up|lora_linear_layer\.up|up)\.weight", "up"),
    (r"\.lora_B(\.\w+)*?\.bias", "bias"),
    (r"\.alpha", "alpha"),
    (r"\.diff", "diff"),
    (r"\.diff_b", "diff_b"),
)
# adapters of another kind than W + B A, by what their keys hold
OTHER_KINDS = (
    (r"\.(dora_scale|lora_magnitude_vector)", "DoRA"),
    (r"\.hada_w", "LoHa"),
    (r"\.lokr_w", "LoKr"),
    (r"(^|\.)(oft_|boft_)", "OFT"),
    (r"\.lora_mid\.", "LoCon with a Tucker core"),
    (r"\.[ab][12]\.weight$", "GLoRA"),
    (r"\.(on_input|ia3_l)", "(IA)^3"),
    (r"\.lora_embedding_", "LoRA of an embedding"),
)
DENOISER = ""  # the module of keys that name none
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
WRAPPERS = ("base_model.model.", "model.")  # PEFT's, and that of single-file checkpoints
PREFIXES = (  # the first that fits says which module the rest is a layer of
    *((f"{name}.", name) for name in TEXT_ENCODERS),
    *((f"lora_te{i}_", name) for i, name in enumerate(TEXT_ENCODERS, start=1)),
    ("lora_te_", "text_encoder"),
    *(
        (prefix, DENOISER)
        for prefix in ("transformer.", "diffusion_model.", "unet.", "lora_unet_", "lora_transformer_")
    ),
)


@dataclass(frozen=True)
class Key:
    """One key, taken apart. `layer` is a name that some tool gives a layer."""

    text: str
    module: str
    layer: str
    part: str


@dataclass(frozen=True)
class Place:
    """Where a name leads: the part `index` of `count` of the layer's output rows; the whole of it is 0 of 1."""

    layer: str
    index: int = 0
    count: int = 1


Names = Mapping[str, tuple[Place, ...]]  # a layer's name -> the layers it stands for; fused ones stand for several


def read_keys(texts: Iterable[str], file: str) -> tuple[list[Key], list[str]]:
    """Every key taken apart, and those that no format of ours has. Raises WeightsError for an adapter of another kind.

    `file` is what messages call it.
    """
    known, unknown = [], []
    for text in texts:
        for pattern, kind in OTHER_KINDS:
            if re.search(pattern, text):
                raise WeightsError(
                    f"{file} is not a plain LoRA but {kind} (its key {text}): refused",
                    hint="difftool merges W + strength * alpha / rank * B A; ask its author for a LoRA",
                )
        found = _key(text)
        if found is None:
            unknown.append(text)
        else:
            known.append(found)
    return known, unknown


def _key(text: str) -> Key | None:
    for pattern, part in SUFFIXES:
        for match in re.finditer(pattern, text):
            if match.end() == len(text):
                module, layer = split_module(text[: match.start()])
                return Key(text, module, layer, part)
    return None


def split_module(name: str) -> tuple[str, str]:
    """`text_encoder.encoder.layers.0` -> ("text_encoder", "encoder.layers.0"); a name without a prefix is the
    denoiser's.
    """
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    for prefix, module in PREFIXES:
        if name.startswith(prefix):
            return module, name.removeprefix(prefix)
    return DENOISER, name


def own_names(layers: Iterable[str]) -> dict[str, tuple[Place, ...]]:
    """Every layer by its own name, with dots and with _. A text encoder's also as if it were inside a `text_model`."""
    own = {name: (Place(name),) for name in layers}
    return _flattened({**own, **{f"text_model.{name}": place for name, place in own.items()}})


def original_names(layers: Collection[str], original: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[Place, ...]]:
    """The layers by their names in the model's original code, and by their own where those are no other layer's.

    `original` is a family's table: a name with `{}` for the number of a block -> the layers it stands for, in the order
    of its rows; `norm_out.linear#1/2` is the second half of one.
    """
    found: dict[str, tuple[Place, ...]] = {}
    for name, targets in original.items():
        places = [_place(target) for target in targets]
        pattern = re.compile(re.escape(places[0].layer).replace(r"\{\}", r"(\d+)"))
        for layer in layers:
            match = pattern.fullmatch(layer)
            if match is None:
                continue
            number = match.groups()[:1]
            here = tuple(Place(p.layer.format(*number), p.index, p.count) for p in places)
            if all(place.layer in layers for place in here):
                found[name.format(*number)] = here
    return {**own_names(layers), **_flattened(found)}


def _place(target: str) -> Place:
    layer, part, which = target.partition("#")
    if not part:
        return Place(layer)
    index, _, count = which.partition("/")
    return Place(layer, int(index), int(count))


def _flattened(names: Mapping[str, tuple[Place, ...]]) -> dict[str, tuple[Place, ...]]:
    return {**{name.replace(".", "_"): places for name, places in names.items()}, **names}


def choose_names(wanted: Collection[str], own: Names, original: Names) -> Names:
    """The vocabulary that more of the wanted names are in; diffusers' own where both have as many.

    Two, because the same name can mean different layers: Wan's original norm3 is diffusers' norm2.
    """
    counts = Counter({"own": sum(name in own for name in wanted), "original": sum(name in original for name in wanted)})
    return original if counts["original"] > counts["own"] else own
