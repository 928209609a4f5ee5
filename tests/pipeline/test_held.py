"""What stands in for a module during the loop computes once, and leaves when the loop ends, however it ends."""

import pytest
import torch
from torch import nn

from difftool.pipeline.held import Held, Remembered, remembered, replaced


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, given, *, plus=0):
        self.calls += 1
        return given + plus


def test_a_tensor_given_again_is_answered_as_before_and_another_by_itself():
    module = Counting()
    owner, given = nn.ModuleDict({"rope": module}), torch.ones(2)
    with remembered(owner, "rope"):
        assert owner.rope(given) is owner.rope(given)
        assert owner.rope(torch.zeros(2)).tolist() == [0, 0] and module.calls == 2


def test_a_key_says_what_the_answer_depends_on():
    module = Counting()
    table = Remembered(module, key=lambda given, plus: plus)
    assert table(torch.ones(2), plus=1) is table(torch.zeros(2), plus=1)
    assert table(torch.zeros(2), plus=5).tolist() == [5, 5] and module.calls == 2


def test_the_modules_are_back_after_an_error():
    first, second = Counting(), Counting()
    owner = nn.ModuleDict({"rope": first, "embed": second})
    with pytest.raises(KeyError), replaced(owner, rope=Held(1), embed=Held(2)):
        assert (owner.rope(torch.ones(2)), owner.embed(plus=3)) == (1, 2)
        raise KeyError
    assert owner.rope is first and owner.embed is second
