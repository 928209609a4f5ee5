"""LoRAs of a session, in the weights of the worker that stays: put in, mixed, switched and taken out again."""

import numpy as np
import pytest

import difftool
from difftool.builtin.styles import STYLES
from difftool.errors import RecipeError, WeightsError


def made(session, prompt="a red circle"):
    result = session.generate(prompt=prompt, seed=7)
    return np.asarray(result.images[0].convert("RGB")), result.perf


@pytest.mark.slow
def test_loras_change_the_pictures_of_the_loaded_model_and_leave_no_trace(tmp_path):
    """Switched to from Python, so that each is merged into weights that held others before."""
    with difftool.load("builtin:shapes-image", overrides={"launch.device": "cpu"}) as session:
        plain, first = made(session)
        session.set_lora("builtin:outline")
        outlined, perf = made(session)
        assert first.measure.load_ms > 0 and perf.measure.load_ms == 0
        assert not STYLES["outline"].shows(plain) and STYLES["outline"].shows(outlined)
        (record,) = perf.effective["lora"]["adapters"]
        assert (record["nickname"], record["alpha"], record["missing"]) == ("outline", [8.0], [])
        assert record["modules"]["transformer"]["keys"] == record["modules"]["transformer"]["of"]

        session.set_lora(["builtin:outline", "builtin:night"])
        both, perf = made(session)
        assert STYLES["outline"].shows(both) and STYLES["night"].shows(both)
        session.set_lora(nickname=["night", "outline"])  # known by now
        other_order, swapped = made(session)
        assert [a["nickname"] for a in swapped.effective["lora"]["adapters"]] == ["night", "outline"]
        assert np.abs(both.astype(int) - other_order).max() <= 1  # a sum in another order
        assert perf.recipe.workload_sha256 != swapped.recipe.workload_sha256

        session.set_lora(nickname="outline", strength=0)
        assert np.array_equal(made(session)[0], plain)
        session.set_lora(nickname="night", strength=1.0)
        night = made(session)[0]
        assert STYLES["night"].shows(night) and not STYLES["outline"].shows(night)
        session.unset_lora()
        again, perf = made(session)
        assert np.array_equal(again, plain) and "lora" not in perf.effective and perf.measure.load_ms == 0


def test_what_set_lora_cannot_do_is_said_at_once_and_changes_nothing(tmp_path):
    with difftool.load("builtin:shapes-image") as session:
        with pytest.raises(RecipeError, match="no built-in LoRA is named 'outlin'"):
            session.set_lora("builtin:outlin")
        with pytest.raises(RecipeError, match="set_lora.strength=….: 3 values for 2 LoRAs; give one for each"):
            session.set_lora(["builtin:outline", "builtin:night"], strength=[1, 2, 3])
        with pytest.raises(RecipeError, match="no LoRA was set as 'mine' before; give its path .none."):
            session.set_lora(nickname="mine")
        with pytest.raises(RecipeError, match="has no transformer_2; use all or transformer"):
            session.set_lora("builtin:outline", target="transformer_2")
        with pytest.raises(WeightsError, match="there is no LoRA at"):
            session.set_lora(tmp_path / "none.safetensors")
        assert session._loras == []
