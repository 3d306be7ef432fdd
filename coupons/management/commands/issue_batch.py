from __future__ import annotations

import json
import logging
from argparse import ArgumentParser
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from common.api.errors import DomainError
from common.processes.lifecycle import StopFlag, check_database
from kafka_bridge.operating.worker_command import WorkerCommand, record_command

from ...bulk_issue.input_file import BadUserFile, UserFile
from ...bulk_issue.progress import progress
from ...bulk_issue.results_file import BadResultsFile, ResultsFile
from ...bulk_issue.run import BatchRun, Interrupted
from ...issuance.accept_bulk import BulkIssue
from ...models import Coupon
from ...policy import name_refusal

logger = logging.getLogger(__name__)


class Command(WorkerCommand):
    help = (
        "Issues a coupon to the users of a file (header userId, one id per line), waits for the results and writes them"
        " to a file (userId, requestId, status, reason; a row per line). After an interruption, run the same command"
        " again to continue: each user gets one request per batch, also a user who is in the file twice."
    )

    role = "batch"
    needs = (check_database,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("coupon_type", metavar="TYPE")
        parser.add_argument("users", type=Path, metavar="users.csv")
        parser.add_argument(
            "--id",
            metavar="S",
            help="the batch's id: the same id with a longer file requests coupons for the new users only, another id"
            " for all users again; default: a hash of TYPE and file",
        )
        parser.add_argument(
            "--results", type=Path, metavar="FILE", help="default: users.results.csv in the folder of the file"
        )
        parser.add_argument(
            "--no-wait", action="store_true", help="end after the last request is accepted, without results"
        )

    def work(self, stop: StopFlag, **options: Any) -> None:
        coupon = Coupon.objects.filter(coupon_type=options["coupon_type"]).first()
        if coupon is None:
            raise CommandError(f"There is no coupon {options['coupon_type']!r}.")
        path: Path = options["users"]
        results_path: Path = options["results"] or path.with_suffix(".results.csv")
        try:
            with ExitStack() as stack:
                users = stack.enter_context(UserFile(path))
                if results_path.exists() and results_path.samefile(path):
                    raise CommandError("--results must not be the input file")
                # Opened before anything is accepted: without a writable results file the batch must not begin.
                results = None if options["no_wait"] else stack.enter_context(ResultsFile(results_path))
                total, digest = users.count_lines(stop)
                batch = BulkIssue(coupon.id, coupon.coupon_type, _batch_id(options["id"], coupon.coupon_type, digest))
                record_command(
                    action="coupon.issue_batch",
                    subject=f"coupon {coupon.coupon_type}",
                    after={"batchId": batch.batch_id, "lines": total},
                )
                run = BatchRun(batch, stop=stop, tick=self.heartbeat.loop())
                try:
                    _run_batch(run, users, total, results)
                except Interrupted:
                    logger.info("stopped at line %d of %d: run the same again to continue", run.lines_done, total)
                    return
                except DomainError as error:
                    raise CommandError(_refusal(error, run, total)) from error
        except (BadUserFile, BadResultsFile) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(json.dumps(_summary(batch, run, None if results is None else results_path)))


def _run_batch(run: BatchRun, users: UserFile, total: int, results: ResultsFile | None) -> None:
    with progress("accepted", total) as report:
        run.accept(users.lines(), report)
    if results is not None:
        with progress("results", total) as report:
            run.write_results(users.lines(), results, report)
        results.finish()


def _batch_id(given: str | None, coupon_type: str, digest: str) -> str:
    if given is None:
        return f"{coupon_type}:{digest}"
    if why := name_refusal(given):
        raise CommandError(f"--id {why}")
    return given


def _refusal(error: DomainError, run: BatchRun, total: int) -> str:
    if not run.lines_done:
        return error.detail
    return f"{error.detail} The batch is at line {run.lines_done} of {total}: run the same again to continue."


def _summary(batch: BulkIssue, run: BatchRun, results: Path | None) -> dict[str, Any]:
    return {
        "couponId": batch.coupon_id,
        "couponType": batch.coupon_type,
        "batchId": batch.batch_id,
        "accepted": run.accepted,
        "repeated": run.repeated,
        "invalid": run.invalid,
        "outcomes": dict(run.outcomes),
        "results": None if results is None else str(results),
    }
