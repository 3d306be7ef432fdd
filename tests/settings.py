"""The project's settings and the stub app with which kafka_bridge is tested."""

from couponsite.settings import *  # noqa: F403
from couponsite.settings import INSTALLED_APPS, KAFKA_GROUPS
from tests.stub_app.routes import GROUPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.stub_app"]
# The app registers its groups in every test; its routes are in force in tests/bridge only.
KAFKA_GROUPS = {**KAFKA_GROUPS, **GROUPS}
# An alert that is cleared ends at once: most tests run without an evaluator.
ALERT_END_SECONDS = 0.0
