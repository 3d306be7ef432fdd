"""The files that describe a deployment, as their own tools read them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]

# What must be set, with values that no URL or shell would take as they are.
REQUIRED = {"SECRET_KEY": "k" * 64, "POSTGRES_PASSWORD": "p@ss w/rd$"}
SINGLE: dict[str, str] = {}
CLUSTER = {"COMPOSE_PROFILES": "cluster"}

# ``$$``, or ``${NAME}`` with what is to be taken instead: ``:-`` if it is empty, ``:+`` if it is not, ``:?`` to fail.
_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?::(?P<operator>[-+?])(?P<operand>[^}]*))?\})")


@dataclass(frozen=True)
class Variable:
    """A place of ``docker-compose.yml`` where a variable is used."""

    name: str
    operator: str | None
    operand: str


@dataclass(frozen=True)
class Instruction:
    """An instruction of a Dockerfile, its continued lines joined; ``stage`` counts from 0."""

    stage: int
    name: str
    arguments: str


def compose_text() -> str:
    return (ROOT / "docker-compose.yml").read_text()


def compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """The composition with ``variables`` (and REQUIRED) put in; services of profiles that are off are left out."""
    environment = {**REQUIRED, **variables}
    model: dict[str, Any] = _interpolated(yaml.safe_load(compose_text()), environment)
    profiles = set(environment.get("COMPOSE_PROFILES", "").split(","))
    model["services"] = {
        name: service
        for name, service in model["services"].items()
        if not service.get("profiles") or profiles & set(service["profiles"])
    }
    return model


def compose_variables() -> list[Variable]:
    """Every use of a variable; comments do not count."""
    return [
        Variable(match["name"], match["operator"], match["operand"] or "")
        for text in _texts(yaml.safe_load(compose_text()))
        for match in _VARIABLE.finditer(text)
        if not match["escaped"]
    ]


def procfile() -> dict[str, str]:
    """The command line of each process."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))


def example_settings() -> set[str]:
    """The variables of ``.env.example``."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return {line.partition("=")[0] for line in lines if line and not line.startswith("#")}


def dockerfile() -> list[Instruction]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    instructions: list[Instruction] = []
    stage = -1
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, arguments = line.split(maxsplit=1)
            stage += name == "FROM"
            instructions.append(Instruction(stage, name, arguments))
    return instructions


def final_stage(name: str) -> list[str]:
    """The arguments of each instruction of that name in the stage that becomes the image."""
    instructions = dockerfile()
    return [one.arguments for one in instructions if one.stage == instructions[-1].stage and one.name == name]


def copied_into_image() -> list[str]:
    """What the image takes from the checkout, relative to it."""
    sources = [arguments.split()[:-1] for arguments in final_stage("COPY")]
    return [source for names in sources for source in names]


def ignored_for_image(path: str) -> bool:
    """Whether ``.dockerignore`` keeps a path from the builder: the last pattern that fits it or a folder above it."""
    ignored = False
    candidates = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = re.compile(_as_regex(line.removeprefix("!")))
            if any(pattern.fullmatch(candidate) for candidate in candidates):
                ignored = not line.startswith("!")
    return ignored


def requires_python() -> str:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["requires-python"])


def _as_regex(pattern: str) -> str:
    """``*`` stops at a slash, ``**/`` is any number of folders."""
    parts = re.split(r"(\*\*/|\*)", pattern)
    return "".join({"**/": "(?:.*/)?", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)


def _interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolated(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, environment) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _put_in(match, environment), value)
    return value


def _put_in(match: re.Match[str], environment: Mapping[str, str]) -> str:
    if match["escaped"]:
        return "$"
    value, operand = environment.get(match["name"], ""), match["operand"] or ""
    if match["operator"] == "+":
        return operand if value else ""
    if match["operator"] == "?" and not value:
        raise KeyError(f"{match['name']} {operand}")
    return value or (operand if match["operator"] == "-" else "")


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
