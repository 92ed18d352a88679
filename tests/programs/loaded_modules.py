"""Which heavy modules a command loads: `loaded_modules.py MODULE,MODULE COMMAND...` fails where it loads one."""

import sys
from contextlib import suppress

from fedjax_rai.cli import app

heavy, *command = sys.argv[1:]
with suppress(SystemExit):
    app(command)
loaded = sorted(set(heavy.split(",")) & set(sys.modules))
sys.exit(", ".join(loaded) or None)
