"""`python -m speechlab` is the command `speechlab`."""

import sys

from speechlab.cli.main import main

sys.exit(main())
