"""Which heavy modules an import loads: `imported_modules.py MODULE,MODULE NAME` fails where NAME loads one."""

import importlib
import sys

heavy, name = sys.argv[1:]
importlib.import_module(name)
loaded = sorted(set(heavy.split(",")) & set(sys.modules))
sys.exit(", ".join(loaded) or None)
