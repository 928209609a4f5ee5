"""Tiny checkpoints on disk."""

from functools import cache

import pytest
from families.running import assemble_case, case_named


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`saved(name)`: the folder of a case's checkpoint, written once."""

    @cache
    def save(name):
        folder = tmp_path_factory.mktemp("checkpoints") / name
        assemble_case(name)
        case_named(name).build().save_pretrained(folder)
        return folder

    return save
