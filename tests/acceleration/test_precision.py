"""Precision of each module: what auto means, what is refused, and that weights have what the dump says."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from acceleration.test_quantized_runs import run

import difftool
from difftool.acceleration import precision
from difftool.facts import Applied, Refused
from difftool.planning.stored import stored_numbers
from difftool.platforms.host import MIB

ROLES = {"text_encoding": ("text_encoder", "text_encoder_2"), "denoising": ("transformer",), "decoding": ("vae",)}
OLD = SimpleNamespace(  # a device without bf16
    name="cuda", default_precision=lambda role: "fp16", supports=lambda asked: asked != "bf16"
)
KEEP = {"decoding": "its VAE overflows"}


def resolved(keep_fp32=KEEP, **spec):
    return precision.resolve(spec, ROLES, OLD, keep_fp32=keep_fp32)


def test_auto_is_the_platform_s_own_but_for_stages_that_stay_in_fp32():
    chosen = {"text_encoder": "fp32", "text_encoder_2": "fp16", "transformer": "fp16", "vae": "fp32"}
    assert resolved(text_encoding=["fp32", "auto"]) == Applied(chosen)
    assert resolved(keep_fp32={}, text_encoding="fp32").detail["vae"] == "fp16"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"denoising": "bf16"}, "cuda does not compute in bf16 (stages.denoising.precision)"),
        ({"decoding": "fp16"}, "stages.decoding.precision=fp16: its VAE overflows; use fp32 or bf16"),
        (
            {"text_encoding": ["fp32"]},
            "stages.text_encoding.precision lists 1 values for 2 modules: text_encoder, text_encoder_2",
        ),
    ],
)
def test_what_cannot_hold_is_refused(spec, reason):
    assert resolved(**spec) == Refused(reason)


def test_weights_have_the_precision_that_the_dump_says(tmp_path):
    stages = {"denoising": {"precision": "bf16"}, "text_encoding": {"precision": ["fp16", "fp32"]}}
    (dump, _), (plain, _) = (
        run(tmp_path / name, stages=asked, num_inference_steps=1) for name, asked in (("mixed", stages), ("plain", {}))
    )
    asked = {"transformer": "bf16", "text_encoder": "fp16", "text_encoder_2": "fp32", "vae": "fp32"}
    assert dump["effective"]["precision"] == {"status": "applied", **asked}
    folder = Path(difftool.__file__).parent / "builtin" / "shapes-image"
    halved = sum(stored_numbers(folder / name) for name in ("transformer", "text_encoder"))
    saved = plain["ranks"][0]["weights_mb"] - dump["ranks"][0]["weights_mb"]
    assert saved * MIB == pytest.approx(2 * halved)
