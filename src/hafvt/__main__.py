"""`python -m hafvt` is `hafvt`."""

import sys

from hafvt.cli import main

sys.exit(main())
