"""Work in a folder as a run does: `enter_folder.py FOLDER`."""

import sys
from pathlib import Path

from fedjax_rai.runs import files

with files.alone(Path(sys.argv[1])):
    pass
