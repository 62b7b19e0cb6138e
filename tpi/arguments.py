"""Options that several `tpi` commands have in common, and the forms their values take."""

import argparse
from collections.abc import Callable
from typing import Any

from tpi.decode import convert
from tpi.errors import ConfigError
from tpi.options import ALL_BLOCKS, COMPUTE_DTYPES, WIRE_DTYPES, ComputeOptions, SamplingOptions
from tpi.units import parse_bytes

_DEFAULT = ComputeOptions()
_SAMPLING = {"temperature": "0 is greedy", "top_k": "", "top_p": "", "seed": ""}


def count(text: str) -> int:
    """A whole number >= 1."""
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number >= 1")


def window(text: str) -> int | str:
    """A number of blocks, or "all"."""
    if text == ALL_BLOCKS or (text.isdecimal() and int(text) >= 1):
        return text if text == ALL_BLOCKS else int(text)
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of blocks >= 1 or 'all'")


def size(text: str) -> int:
    """A number of bytes such as 2GiB."""
    try:
        return parse_bytes(text, "size")
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def numbers(text: str) -> tuple[float, ...]:
    """Numbers such as 2,1,1."""
    try:
        return tuple(float(part) for part in text.strip("[]").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers such as 2,1,1") from None


def add_compute(parser: argparse.ArgumentParser, budget: str) -> None:
    """Add how a rank computes; `budget` is what the option for the memory budget is called."""

    def add(flag: str, name: str, help_text: str = "", **more: Any) -> None:
        default = getattr(_DEFAULT, name)
        said = "" if default is None else f"default {default}"
        words = "; ".join(word for word in (help_text, said) if word)
        parser.add_argument(flag, dest=name, default=default, help=words, **more)

    add("--window", "window", type=window, metavar="N|all", help_text="blocks in memory at once")
    add(budget, "memory_budget", type=size, metavar="SIZE",
        help_text="what a device may use, such as 2GiB; takes the place of --window")  # fmt: skip
    add("--dtype", "dtype", choices=COMPUTE_DTYPES, help_text="of computing")
    add("--allreduce", "allreduce", metavar="NAME", help_text="star, tree, ring, ...")
    add("--wire-dtype", "wire_dtype", choices=WIRE_DTYPES, help_text="of sums on the wire")
    add("--prefill-chunk", "prefill_chunk", type=count, metavar="N",
        help_text="prompt tokens in a step")  # fmt: skip


def compute_of(args: argparse.Namespace, **fixed: Any) -> ComputeOptions:
    """What the parsed options say about how to compute."""
    return ComputeOptions.named_in(vars(args), **fixed)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add how tokens are picked."""
    for name, words in _SAMPLING.items():
        default = getattr(SamplingOptions(), name)
        said = f"{words}; default {default}" if words else f"default {default}"
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=_sampled(name, type(default)), default=default, help=said)


def sampling_of(args: argparse.Namespace) -> SamplingOptions:
    """What the parsed options say about how tokens are picked."""
    return SamplingOptions(**{name: getattr(args, name) for name in _SAMPLING})


def _sampled(name: str, kind: Callable[[str], float]) -> Callable[[str], float]:
    """Parse one option of `SamplingOptions`, within the limits that are said there."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a number") from None
        try:
            convert({name: value}, SamplingOptions, "sampling", ConfigError)
        except ConfigError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None
        return value

    return parse
