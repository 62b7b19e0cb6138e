"""The command `tpi`: split a checkpoint, plan memory, run one node, generate text.

Standard output carries the answer (text, a table, events); everything else goes to standard error.
A mistake is one line and exit status 2; `errors.py` has the others. Nothing here imports torch.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from tpi.arguments import add_compute, add_sampling, compute_of, count, numbers, sampling_of
from tpi.command_line import Parser
from tpi.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError, TpiError
from tpi.model_config import DTYPES, load_preset, preset_names
from tpi.planner import report
from tpi.units import format_bytes, format_seconds

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
    plan = commands.add_parser("plan", help="predict memory and steady state, without weights")
    report.add_arguments(plan)
    plan.set_defaults(run=report.run)
    _add_generate(commands.add_parser("generate", help="generate text with N local processes"))
    node = commands.add_parser(
        "node", help="run one rank from a spec file (see tpi/program/spec.py)"
    )
    node.add_argument("spec", type=Path, metavar="SPEC", help="spec.json of this rank")
    node.set_defaults(run=_node)
    return parser


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder, or a preset's name")
    parser.add_argument("--devices", type=count, required=True, metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shares", type=numbers, metavar="2,1,1", help="weights; default: even")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the checkpoint's")
    parser.add_argument("--seed", type=int, default=0, help="for a preset's synthetic weights")
    parser.add_argument(
        "--distinct-layers", type=count, metavar="K", help="synthetic: store K layers only"
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
            text = f"\r{format_bytes(done)} of {format_bytes(total)}"
            print(text, end="", file=sys.stderr, flush=True)

    num_bytes = split(source, plan, args.out, dtype=args.dtype, progress=progress, force=args.force)
    if show:
        print(file=sys.stderr)
    done = format_bytes(num_bytes) if num_bytes else "were complete"
    print(f"{args.devices} shards in {args.out}: {done}")
    return EXIT_OK


def _source(model: str, seed: int, distinct_layers: int | None, dtype: str) -> "TensorSource":
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


def _node(args: argparse.Namespace) -> int:
    from tpi.program.host import open_spec, serve

    spec = open_spec(args.spec)
    from tpi.program.node import open_tpi  # loads torch, after its threads are set

    return serve(spec, open_tpi)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, metavar="DIR", help="what `tpi split --out DIR` wrote")
    parser.add_argument("--devices", type=count, metavar="N", help="default: as many as split")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--prompt-tokens", metavar="1,2,3", help="token ids; needs no tokenizer")
    parser.add_argument("--new-tokens", type=count, default=64, metavar="N")
    add_compute(parser, "--memory-budget")
    parser.add_argument("--threads", type=count, help="per device; default: cores / devices")
    add_sampling(parser)
    parser.add_argument("--ignore-eos", action="store_true", help="always make N new tokens")
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from tpi.launch import GenerateOptions, generate

    text_out = sys.stdout

    def show(text: str) -> None:
        text_out.write(text)
        text_out.flush()

    asked = {f.name: getattr(args, f.name) for f in fields(GenerateOptions) if f.name in args}
    options = GenerateOptions(**asked, compute=compute_of(args), sampling=sampling_of(args))
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
