"""Runs the story of one document: starts its processes, lets it happen, and says whether everything held."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from django.conf import settings
from rich.console import Console

from common.processes.lifecycle import first_line
from demo.environment import DemoEnvironment, choose_web_port
from demo.processes import WebProcess, procfile_process
from demo.stories.client import StoryClient
from demo.stories.document import read_document
from demo.stories.narration import Narration
from demo.stories.receiver import Receiver
from demo.stories.seed_000 import Seed000
from demo.stories.seed_001 import Seed001
from demo.stories.seed_002 import Seed002
from demo.stories.seed_003 import Seed003
from demo.stories.seed_004 import Seed004
from demo.stories.story import Scene, Story, StoryFailed, ToldBefore
from demo.stories.topics import TopicObserver, all_topics
from devstack import ManagedProcess

STORIES: Mapping[str, type[Story]] = {story.number: story for story in (Seed000, Seed001, Seed002, Seed003, Seed004)}
# Name of devstack's stack, which its command passes on.
_STACK = "DEVSTACK_NAME"


class StoryRun:
    """One story from the empty database to the verdict; it stops processes and deletes topics however it ends."""

    def __init__(self, story: Story, *, log_folder: Path, console: Console) -> None:
        self._story = story
        self._console = console
        self._environment = DemoEnvironment(log_folder, console)
        self._say = self._environment.say
        self._file = f"seeds/seed-{story.number}.md"
        self._narration = Narration(console, read_document(settings.BASE_DIR / self._file))

    def run(self, *, stay: bool) -> bool:
        """Tell the story and return whether all of it happened; with ``stay`` keep serving until interrupted.

        Raises ServiceUnavailable when a service does not answer and TimeoutError when the web process does not.
        """
        # Log lines of this process, as of a broker that the story kills, would stand between the steps; what does not
        # happen is said by a step.
        self._environment.log_own_lines(logging.CRITICAL)
        port = choose_web_port()
        login = self._environment.prepare()
        with Receiver() as receiver, self._environment.topics(), closing(TopicObserver(all_topics())) as topics:
            env = {"PORT": str(port), "HOST": "127.0.0.1", **self._story.settings(receiver)}
            web = WebProcess(env, self._environment.log("web"))
            others = [
                procfile_process(role, env, self._environment.log(name), name=name) for role, name in self._story.roles
            ]
            with self._environment.running(web, others, port):
                processes: dict[str, ManagedProcess] = {process.name: process for process in (web, *others)}
                scene = Scene(
                    self._narration, StoryClient(port), topics, receiver, processes, self._environment.log_folder,
                    os.environ.get(_STACK) or None,
                )  # fmt: skip
                try:
                    held = self._tell(scene)
                except ToldBefore as error:
                    self._say("")
                    self._say(f"FAIL {error}")
                    return False
                if stay:
                    self._environment.stay(port, login)
        return held

    def _tell(self, scene: Scene) -> bool:
        complaints = []
        self._narration.opening(self._file)
        try:
            self._story.tell(scene)
        except ToldBefore:
            raise
        except (StoryFailed, TimeoutError) as error:
            complaints.append(first_line(error))
        complaints += self._narration.unseen()
        self._say("")
        for line in complaints:
            self._say(f"FAIL {line}")
        self._say(f"{self._narration.count()} arrows of {self._file} were observed")
        if not self._environment.invariants_hold():
            return False
        self._say("verdict: " + ("something does not hold" if complaints else "everything holds"))
        return not complaints
