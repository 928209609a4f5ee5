"""The real command and a session whose weights wait while nothing needs them."""

import hashlib

import numpy as np
import pytest
from tiny import difftool, read_json

import difftool as package

AWAY = ("--text-encoder-cpu-offload", "--vae-cpu-offload", "--enable-layerwise-offload")


def test_weights_that_wait_change_no_byte_of_the_files_and_the_dump_says_where_they_were(commanded, tmp_path):
    done = difftool(
        *("generate", "shapes-image", "-p", "a red circle", "-p", "a blue star", "--seed", "7", "--device", "cpu"),
        *("--num-inference-steps", "4", *AWAY, "--perf-dump-path", "perf.json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    made = [tmp_path / line for line in done.stdout.splitlines()]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in made] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in commanded
    ]
    dump = read_json(tmp_path / "perf.json")
    said = dump["effective"]["offload"]
    assert said.pop("status") == "applied" and said.keys() == {"text_encoder", "text_encoder_2", "transformer", "vae"}
    assert {component["waits"] for component in said.values()} == {"disk"}
    waiting = sum(component["bytes"] for component in said.values())
    assert dump["ranks"][0]["weights_mb"] * 2**20 == pytest.approx(waiting, rel=0.1)  # and of one its ends stay
    transformer = said["transformer"]
    assert (transformer["mode"], transformer["blocks"], transformer["of"]) == ("layerwise", 8, 8)
    # two items of four steps and two branches, and two that did not come: each item ends with one on its way
    assert transformer["moved"]["comings"] == 2 * (4 * 2 * 8 + 1)


@pytest.mark.slow
def test_loras_go_into_weights_that_wait_and_out_again():
    def made(session):
        return np.asarray(session.generate(prompt="a red circle", seed=7).images[0])

    here = {"launch.device": "cpu"}
    away = {**here, "stages.denoising.offload": "layerwise", "stages.text_encoding.offload": "after_use"}
    expected, found = [], []
    for pictures, overrides in ((expected, here), (found, away)):
        with package.load("builtin:shapes-image", overrides=overrides) as session:
            pictures.append(made(session))
            session.set_lora("builtin:outline")
            pictures.append(made(session))
            session.unset_lora()
            pictures.append(made(session))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
