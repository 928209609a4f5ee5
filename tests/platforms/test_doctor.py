"""What is tried on a device: a result that is wrong counts as a failure, like one that never comes."""

import torch

from difftool.platforms import doctor


def test_a_precision_whose_products_are_wrong_is_refused(monkeypatch):
    monkeypatch.setattr(doctor, "_product_fp8", lambda device: torch.zeros(16, 16))
    assert doctor._refused_precisions(torch.device("cpu")) == {"fp8": "its products are wrong"}
