"""Reads a prepared set beside a tensorflow that must not be imported: `prepared_rows.py SOURCE ROWS`."""

import importlib.abc
import sys
from importlib.machinery import ModuleSpec

from fedjax_rai.data.records import Records

imported = []


class Tensorflow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a tensorflow, which libraries may look for, and notes where it is imported."""

    def find_spec(self, fullname, path=None, target=None):
        return ModuleSpec(fullname, self) if fullname.partition(".")[0] == "tensorflow" else None

    def exec_module(self, module):
        imported.append(module.__name__)
        raise ImportError("imported")


sys.meta_path.insert(0, Tensorflow())
source, rows = sys.argv[1:]
records = Records(source)
read = [records[i] for i in reversed(range(len(records)))]
assert len(read) == int(rows), len(read)
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules and not imported, imported
assert "jax" not in sys.modules
