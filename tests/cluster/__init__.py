import pytest

# What is asserted there shall be shown as it is for tests.
pytest.register_assert_rewrite("tests.cluster.sale")
