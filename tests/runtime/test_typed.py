"""What we have written comes back as it was; what someone has damaged is named with its file."""

import pytest
from pydantic import TypeAdapter

from hba_ray.errors import DataError
from hba_ray.runtime.typed import from_json

KIND = TypeAdapter(dict[str, int])


def test_what_was_written_comes_back() -> None:
    text = KIND.dump_json({"rows": 3}).decode()
    assert from_json(KIND, text, where="x", what="no counts", way_out="") == {"rows": 3}


@pytest.mark.parametrize(
    ("text", "says"), [('{"rows": "many"}', "rows: "), ("", "Invalid JSON"), ('{"rows": 3', "Invalid JSON"), ("[]", "an object")]
)
def test_what_is_damaged_is_named(text: str, says: str) -> None:
    with pytest.raises(DataError) as refused:
        from_json(KIND, text, where="counts.json", what="no counts", way_out="count again")
    assert (refused.value.where, refused.value.reason, refused.value.way_out) == ("counts.json", "no counts", "count again")
    assert refused.value.what.startswith("no counts: ") and says in refused.value.what
