"""The command line: ``python -m devstack up|down|status|logs|run``."""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from devstack.command import run_in_foreground
from devstack.errors import DevstackError
from devstack.processes import last_lines
from devstack.stack import Stack

_FOLLOW_SECONDS = 0.2


class _Terminated(BaseException):
    """SIGTERM or SIGHUP was received. A BaseException, so that only ``main`` handles it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit code."""
    options = _parser().parse_args(arguments)
    if not sys.platform.startswith("linux"):
        print("devstack: runs on Linux only: set the three addresses in the environment", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGHUP, _terminate)
    try:
        code: int = options.action(options)
    except DevstackError as error:
        print(f"devstack: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of the output has closed the pipe, as `head` does: nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except _Terminated:
        return 128 + signal.SIGTERM
    return code


def _up(options: argparse.Namespace) -> int:
    addresses = Stack(options.name, options.brokers).up()
    for variable, value in addresses.environment().items():
        quoted = value.replace("'", "'\\''")
        print(f"export {variable}='{quoted}'")
    return 0


def _down(options: argparse.Namespace) -> int:
    Stack(options.name).down(wipe=options.wipe)
    return 0


def _status(options: argparse.Namespace) -> int:
    parts = Stack(options.name).status()
    for part in parts:
        process = f"pid {part.pid or '-':<9} port {part.port or '-'}"
        print(f"{part.name:<10} {part.condition:<9} {f'named by {part.variable}' if part.variable else process}")
    return 0 if all(part.condition in {"running", "external"} for part in parts) else 1


def _logs(options: argparse.Namespace) -> int:
    paths = Stack(options.name).log_paths()
    if options.part:
        if options.part not in paths:
            raise DevstackError(f"no part {options.part!r}: choose one of {', '.join(paths)}")
        paths = {options.part: paths[options.part]}
    positions = {}
    for name, path in paths.items():
        positions[path] = path.stat().st_size if path.exists() else 0
        for line in last_lines(path, options.lines).splitlines():
            print(f"{name:<10} {line}")
    while options.follow:
        sys.stdout.flush()
        time.sleep(_FOLLOW_SECONDS)
        for name, path in paths.items():
            size = path.stat().st_size if path.exists() else 0
            if size > positions[path]:
                with path.open("rb") as file:
                    file.seek(positions[path])
                    text = file.read(size - positions[path])
                for line in text.decode(errors="replace").splitlines():
                    print(f"{name:<10} {line}")
            # The size may have shrunk, if the stack was wiped.
            positions[path] = size
    return 0


def _run(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise DevstackError("no command to run: devstack run -- COMMAND...")
    if shutil.which(command[0]) is None:
        raise DevstackError(f"cannot run {command[0]!r}: there is no such program")
    with Stack(options.name, options.brokers).used(fresh=options.fresh) as addresses:
        code = run_in_foreground(command, {**os.environ, **addresses.environment()})
        # From here on only SIGKILL may prevent stopping the servers.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="devstack", description="PostgreSQL, Redis and Kafka on this machine, for development and tests."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument(
        "--name",
        default=os.environ.get("DEVSTACK_NAME", "dev"),
        help="the stack (default: $DEVSTACK_NAME or %(default)s)",
    )
    sized = argparse.ArgumentParser(add_help=False)
    sized.add_argument(
        "--brokers",
        type=int,
        help="number of Kafka brokers (default: as the stack has; for new ones $DEVSTACK_BROKERS, or 1, on the ports in"
        " $DEVSTACK_KAFKA_PORTS that are free)",
    )

    up = commands.add_parser(
        "up", parents=[named, sized], help="start what is not running, print the addresses as exports"
    )
    up.set_defaults(action=_up)
    down = commands.add_parser("down", parents=[named], help="stop all servers of the stack")
    down.add_argument("--wipe", action="store_true", help="delete data and logs as well")
    down.set_defaults(action=_down)
    status = commands.add_parser("status", parents=[named], help="show each part; exit 0 when all run")
    status.set_defaults(action=_status)
    logs = commands.add_parser("logs", parents=[named], help="show the ends of the logs")
    logs.add_argument("part", nargs="?", metavar="PART", help="postgres, redis, kafka-1, ... (default: all)")
    logs.add_argument("--lines", type=int, default=20, help="lines per log (default: %(default)s)")
    logs.add_argument("--follow", action="store_true", help="follow the logs until interrupted")
    logs.set_defaults(action=_logs)
    run = commands.add_parser(
        "run", parents=[named, sized], help="run a command with the stack up, exit with the command's code"
    )
    run.add_argument("--fresh", action="store_true", help="delete the data first; only when the stack is down")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="command to run")
    run.set_defaults(action=_run)
    return parser


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main())
