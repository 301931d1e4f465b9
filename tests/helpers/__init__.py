"""What tests share. Assertions of those that hold things against each other say what differs."""

import pytest

pytest.register_assert_rewrite("tests.helpers.chaos", "tests.helpers.recorded")
