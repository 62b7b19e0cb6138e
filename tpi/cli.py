"""The command `tpi`: split a checkpoint, plan memory, run one node, generate text.

Standard output carries the answer (text, a table, events); everything else goes to standard error.
A mistake is one line and exit status 2; `errors.py` has the others. Nothing here imports torch.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tpi.command_line import Parser
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError, TpiError
from tpi.units import format_bytes, format_seconds, parse_bytes

if TYPE_CHECKING:
    from tpi.weights.checkpoint import TensorSource


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except TpiError as exc:
        print(f"tpi {args.command}: {exc}", file=sys.stderr)
        return exc.exit_status
    except KeyboardInterrupt:
        print(f"tpi {args.command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`tpi ... | head`): nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tpi", description="Tensor-parallel LLM inference on several small devices."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_split(commands.add_parser("split", help="cut a checkpoint into one folder per device"))
    _add_plan(commands.add_parser("plan", help="predict memory and steady state, without weights"))
    _add_generate(commands.add_parser("generate", help="generate text with N local processes"))
    node = commands.add_parser(
        "node", help="run one rank from a spec file (see tpi/program/spec.py)"
    )
    node.add_argument("spec", type=Path, metavar="SPEC", help="spec.json of this rank")
    node.set_defaults(run=_node)
    return parser


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.strip("[]").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers such as 2,1,1") from None


def _window(text: str) -> int | None:
    if text == "all":
        return None
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of blocks >= 1 or 'all'")


def _positive(text: str) -> int:
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number >= 1")


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:  # false for NaN too
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0 to 100")
    return value


def _size(text: str) -> int:
    try:
        return parse_bytes(text, "size")
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


# --- tpi split -----------------------------------------------------------------------------


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder, or a preset's name")
    parser.add_argument("--devices", type=_positive, required=True, metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shares", type=_shares, metavar="2,1,1", help="weights; default: even")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: the checkpoint's"
    )
    parser.add_argument("--seed", type=int, default=0, help="for a preset's synthetic weights")
    parser.add_argument(
        "--distinct-layers", type=_positive, metavar="K", help="synthetic: store K layers only"
    )
    parser.add_argument("--force", action="store_true", help="replace shards of another model")
    parser.set_defaults(run=_split)


def _split(args: argparse.Namespace) -> int:
    from tpi.weights.shard import make_shard_plan
    from tpi.weights.split import split

    source = _source(args.model, args.seed, args.distinct_layers, args.dtype or "bfloat16")
    plan = make_shard_plan(source.config, args.devices, args.shares)
    show = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if show:
            print(
                f"\r{format_bytes(done)} of {format_bytes(total)}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    result = split(source, plan, args.out, dtype=args.dtype, progress=progress, force=args.force)
    if show:
        print(file=sys.stderr)
    done = "were complete" if result.was_complete else format_bytes(result.written_bytes)
    print(f"{args.devices} shards in {args.out}: {done}")
    return EXIT_OK


def _source(model: str, seed: int, distinct_layers: int | None, dtype: str) -> "TensorSource":
    from tpi.model_config import load_preset, preset_names
    from tpi.weights.checkpoint import open_checkpoint
    from tpi.weights.synthetic import SyntheticSource

    if Path(model).is_dir():
        return open_checkpoint(Path(model))
    if model in preset_names():
        return SyntheticSource(
            load_preset(model), seed=seed, dtype=dtype, distinct_layers=distinct_layers
        )
    raise ConfigError(
        f"MODEL: {model!r} is neither a folder nor a preset; presets: {', '.join(preset_names())}"
    )


# --- tpi plan ------------------------------------------------------------------------------


def _add_plan(parser: argparse.ArgumentParser) -> None:
    from tpi.planner import report as plan_report

    plan_report.add_arguments(parser)
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from tpi.planner import report as plan_report

    return plan_report.run(args)


# --- tpi node ------------------------------------------------------------------------------


def _node(args: argparse.Namespace) -> int:
    from tpi.program.entry import open_spec

    spec = open_spec(args.spec)
    from tpi.program.node import run_node

    return run_node(spec)


# --- tpi generate --------------------------------------------------------------------------


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, metavar="DIR", help="what `tpi split --out DIR` wrote")
    parser.add_argument("--devices", type=_positive, metavar="N", help="default: as many as split")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--prompt-tokens", metavar="1,2,3", help="token ids; needs no tokenizer")
    parser.add_argument("--new-tokens", type=_positive, default=64, metavar="N")
    parser.add_argument("--window", type=_window, default=2, metavar="N|all", help="default: 2")
    parser.add_argument("--memory-budget", type=_size, metavar="BYTES", help="such as 2GiB")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--allreduce", default="star", metavar="NAME", help="star, tree, ring, ... (default star)"
    )
    parser.add_argument("--wire-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=_positive, help="per device; default: cores / devices")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.0, help="0 (default) is greedy"
    )
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ignore-eos", action="store_true", help="always make N new tokens")
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from tpi.comm.allreduces.registry import find_allreduce
    from tpi.launch import GenerateOptions, generate

    find_allreduce(args.allreduce)  # an unknown one is refused before anything is started
    text_out = sys.stdout

    def show(text: str) -> None:
        text_out.write(text)
        text_out.flush()

    options = GenerateOptions(
        **{k: v for k, v in vars(args).items() if k not in ("run", "command")}
    )
    summary = generate(options, show)
    print()
    print(
        f"TTFT {format_seconds(summary.ttft_s)}, "
        + (f"{format_seconds(summary.token_latency_s)}/token, " if summary.token_latency_s else "")
        + f"{summary.num_tokens} tokens\npeak memory per device: "
        + ", ".join(format_bytes(peak) for peak in summary.peak_bytes),
        file=sys.stderr,
    )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
