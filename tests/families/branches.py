"""Guidance branches in one forward, and each in its own."""

from families.running import AssembledCase, run_ours
from torch import Tensor

from difftool.pipeline.batch import Batch


def joint_and_separate(assembled: AssembledCase, batch: Batch, monkeypatch) -> tuple[Tensor, Tensor]:
    """The latents after the last step of both ways, having seen that they are two."""
    kind, samples = type(assembled.config), []
    predict = kind.predict

    def counted(self, transformer, model_input, time, branch):
        samples.append(len(model_input))
        return predict(self, transformer, model_input, time, branch)

    monkeypatch.setattr(kind, "predict", counted)
    joint = run_ours(assembled, batch)[0][-1]
    assert max(samples) == 2 * len(batch.prompt)
    samples.clear()
    monkeypatch.setattr(kind, "joint", ())
    separate = run_ours(assembled, batch)[0][-1]
    assert set(samples) == {len(batch.prompt)}
    return joint, separate


def part_in_a_million(latents: Tensor) -> float:
    """Of the largest value: what fp32 rounding in other kernels amounts to over a few steps."""
    return 1e-6 * latents.abs().max().item()
