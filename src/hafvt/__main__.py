"""`python -m hafvt` is `hafvt`."""

import os
import sys

from hafvt.cli import main
from hafvt.processes import is_launched

status = main()
if is_launched():  # the launching process waits, and the end of the interpreter takes seconds with torch
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
