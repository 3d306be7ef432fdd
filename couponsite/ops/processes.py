"""The running processes: which are alive, which are silent or hang, and what each holds."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from .access import staff_page
from .layout import render_page
from .sources import processes_with_partitions


@require_safe
@staff_page("kafka_bridge.view_processheartbeat")
def processes(request: HttpRequest) -> HttpResponse:
    """List the processes, those that need attention first."""
    return render_page(request, "ops/processes.html", {"processes": processes_with_partitions()})
