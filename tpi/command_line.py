"""How every command of this repository answers a mistake in its arguments: one line, status 2."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line instead of a usage text and a line."""

    def error(self, message: str) -> NoReturn:
        """End the program, as argparse does."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")
