"""What tests of adapters share: descriptors that nothing had to be extracted for."""

from collections.abc import Iterator

import pytest

from tests.helpers.described import use_made_up


@pytest.fixture(scope="module")
def made_up() -> Iterator[None]:
    """For the time of a module experiments have the descriptors of `described`."""
    with pytest.MonkeyPatch.context() as patch:
        use_made_up(patch)
        yield
