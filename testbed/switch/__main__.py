"""`python -m testbed.switch [--seed N] PORT ...`: the switch in Python."""

import sys

from testbed.switch.switch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
