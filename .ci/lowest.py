"""Print the lowest version of every dependency that pyproject.toml allows, as constraints for pip."""

from pathlib import Path

import tomllib
from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"].values()
for text in sorted({*project["dependencies"], *(text for extra in extras for text in extra)}):
    dependency = Requirement(text)
    if dependency.name != project["name"]:  # an extra that takes in others
        (floor,) = dependency.specifier
        print(f"{dependency.name}=={floor.version}")
