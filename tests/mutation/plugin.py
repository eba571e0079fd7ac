"""A pytest plugin that runs the tests with one module mutated: ``AUTOPRUNE_MUTANT="<module>|<name of the mutant>"``.

No file is changed: whoever imports the module in this process gets the mutant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from tests.mutation.mutants import VARIABLE, mutants


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        source = self.get_source(fullname)
        assert source is not None
        (mutant,) = (mutant for mutant in mutants(source) if mutant.name == _NAME)
        return compile(mutant.of(source), self.path, "exec")


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


_MODULE, _, _NAME = os.environ[VARIABLE].partition("|")
assert _MODULE not in sys.modules, f"{_MODULE} was imported before it could be changed"
sys.meta_path.insert(0, _Finder())
