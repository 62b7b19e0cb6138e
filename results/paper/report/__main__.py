"""Runs `main`."""

import sys

from results.paper.report.main import main

sys.exit(main())
