"""Print the paths of this machine's lowest and highest CPython that pyproject.toml allows, unless they are this one."""

import os
import re
import subprocess
import sys
from pathlib import Path

LOWEST = (3, 10)  # requires-python
VERSION = "import platform, sys; print(platform.python_implementation() == 'CPython' and tuple(sys.version_info[:2]))"

folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
folders += sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))
found: dict[tuple[int, int], Path] = {}
for folder in folders:
    for path in sorted(folder.glob("python3.*")):
        name = re.fullmatch(r"python3\.(\d+)", path.name)
        version = (3, int(name[1])) if name else (0, 0)
        # Asked, since a pyenv shim of a version that is not active only fails.
        if version >= LOWEST and version not in found and os.access(path, os.X_OK):
            done = subprocess.run([path, "-c", VERSION], capture_output=True, text=True, check=False)
            if done.stdout.strip() == str(version):
                found[version] = path
for version in sorted({min(found), max(found)} - {sys.version_info[:2]} if found else ()):
    print(found[version])
