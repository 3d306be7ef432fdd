"""Finds the folders of installed wheels that contain server programs, without importing them."""

from importlib.util import find_spec
from pathlib import Path

from devstack.errors import DevstackError


def package_folder(package: str, variable: str) -> Path:
    """Return an installed package's folder.

    Importing these packages would start their own server managers. Raises DevstackError if the package is missing;
    ``variable`` is the environment variable that names a server to use instead.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        wheel = package.replace("_", "-")
        raise DevstackError(f"the package {wheel} is missing: `pip install {wheel}`, or set {variable}")
    return Path(spec.submodule_search_locations[0])
