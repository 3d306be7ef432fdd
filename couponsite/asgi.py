"""The ASGI application of the intake: ``granian --interface asgi --loop uvloop couponsite.asgi:application``."""

from __future__ import annotations

import gc
import os
import resource
import sys

import django
from django.core.exceptions import ImproperlyConfigured

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "couponsite.settings")

try:
    django.setup(set_prefix=False)
    from common.processes.stack_dump import StackDumper
    from couponsite.database import limit_statements
    from couponsite.intake.server import Intake
    from couponsite.parent_death import end_with_parent
    from kafka_bridge.operating.heartbeat import Heartbeat
    from kafka_bridge.outbox.backpressure import outbox_backpressure
    from kafka_bridge.outbox.wake import RelayWaker

    end_with_parent()
    # Before any other thread: they inherit that the signal is blocked.
    StackDumper().start()
    limit_statements()
    heartbeat = Heartbeat("web")
    application = Intake(tick=heartbeat.loop())
    outbox_backpressure.start()
    RelayWaker().start()
    heartbeat.run_until_exit()
except ImproperlyConfigured as error:
    sys.exit(str(error))

# Connections that send nothing cost only a file descriptor each.
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

# Objects loaded by now live as long as the process: excluding them from collections cuts the tail latency.
gc.collect()
gc.freeze()
