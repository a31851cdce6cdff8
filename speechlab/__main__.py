"""`python -m speechlab` is the command `speechlab`."""

import sys

from speechlab.cli import main

sys.exit(main())
