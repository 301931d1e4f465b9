"""Variables are set for a block, and what the user has set stays."""

import os

import pytest

from hba_ray.environ import variables


def test_what_the_user_has_set_stays_and_the_rest_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HBA_MINE", "mine")
    monkeypatch.delenv("HBA_OURS", raising=False)
    with pytest.raises(KeyboardInterrupt), variables({"HBA_MINE": "other", "HBA_OURS": "ours"}):
        assert (os.environ["HBA_MINE"], os.environ["HBA_OURS"]) == ("mine", "ours")
        raise KeyboardInterrupt
    assert os.environ["HBA_MINE"] == "mine" and "HBA_OURS" not in os.environ
