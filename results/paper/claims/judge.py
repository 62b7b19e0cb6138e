"""Verdicts on the paper's claims: `lab claims FOLDER`.

Every kind of evidence is judged by itself. A claim's verdict is that of the measurements where they
decide, else the simulator's, marked as such, else `undecided` with what is missing.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from results.paper.cells.load import open_result_set
from results.paper.cells.result_set import ResultSet
from results.paper.claims.evidence import KINDS, MEASURED, REPORTED, SIMULATED, View
from results.paper.claims.list import CLAIMS, Claim
from results.paper.claims.verdict import REPRODUCED, UNDECIDED, Finding, joined
from results.paper.render.cell_format import escaped
from tpi.command_line import Parser
from tpi.errors import EXIT_OK, TpiError
from tpi.units import counted

# Of every template: a misspelled name is an error, and its own lines leave none behind.
TEMPLATES: dict[str, Any] = {
    "undefined": StrictUndefined,
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """A claim and its verdict."""

    claim: Claim
    verdict: str  # one of `VERDICTS`
    basis: str  # the kind of evidence it rests on; empty where it is undecided
    reason: str  # why it is undecided
    findings: Mapping[str, Finding]  # by kind of evidence, those that say anything
    dilations: tuple[float, ...] = ()  # by which the measured times that it rests on were divided

    @property
    def words(self) -> str:
        """`reproduced (simulated)`, `reproduced (tiny)`: the verdict and on what it rests."""
        subject = self.findings[self.basis].subject if self.basis else ""
        marks = [self.basis] if self.basis == SIMULATED.name else []
        if self.basis == MEASURED.name and self.dilations:
            marks.append(f"dilation {', '.join(f'{factor:g}' for factor in self.dilations)}")
        marks += [subject] if subject else []
        return f"{self.verdict} ({', '.join(marks)})" if marks else self.verdict


def judge_claims(results: ResultSet) -> list[Judgement]:
    """A judgement of every claim, in the order of `CLAIMS`."""
    return [judge(results, claim) for claim in CLAIMS]


def basis_of_all(results: ResultSet, judgements: Sequence[Judgement]) -> str:
    """One line: how many verdicts rest on what, and what the measured runs are of."""
    counts = Counter(each.basis for each in judgements)
    runs = [r for r in results.records.values() if r.metrics and not r.is_simulated]
    models = sorted({record.config.model.name or "not named" for record in runs})
    names = ", ".join(models) or "none: nothing was measured"
    return (
        f"Of {len(judgements)} verdicts {counts[MEASURED.name]} rest on measured runs,"
        f" {counts[SIMULATED.name]} on simulated ones; {counts['']} claims are undecided. Models of"
        f" the measured runs: {names}."
    )


def judge(results: ResultSet, claim: Claim) -> Judgement:
    """Judge one claim by every kind of evidence, and choose the verdict."""
    found = {kind.name: _decided(View(results, kind), claim) for kind in KINDS}
    shown = {
        name: finding
        for name, finding in found.items()
        if finding.has_numbers or name in (MEASURED.name, SIMULATED.name)
    }
    for kind in (MEASURED, SIMULATED):
        if found[kind.name].verdict != UNDECIDED:
            cells = (cell for p in claim.places for cell in results.of(p, MEASURED.evidence))
            dilations = {cell.dilation for cell in cells if cell.value is not None} - {1.0}
            verdict = found[kind.name].verdict
            return Judgement(claim, verdict, kind.name, "", shown, tuple(sorted(dilations)))
    reason = "; ".join(f"{k.name}: {found[k.name].reason}" for k in (MEASURED, SIMULATED))
    return Judgement(claim, UNDECIDED, "", reason, shown)


def _decided(view: View, claim: Claim) -> Finding:
    """What a rule finds; of runs, nothing is reproduced while a place of the claim has none."""
    if view.kind == REPORTED and claim.paper_is_of:
        return Finding(UNDECIDED, reason=f"its numbers are of {claim.paper_is_of}")
    finding = joined(claim.decide(view))
    if view.kind not in (MEASURED, SIMULATED):
        return finding
    there = sum(seen.has_value or seen.is_oom for seen in map(view.look, claim.places))
    if not 0 < there < len(claim.places):
        return finding
    coverage = f"of {len(claim.places)} places {there} are there"
    if finding.verdict == REPRODUCED:
        return replace(finding, verdict=UNDECIDED, reason=coverage, coverage=coverage)
    return replace(finding, coverage=coverage)


def markdown(results: ResultSet, judgements: Sequence[Judgement]) -> str:
    """All judgements: a table of verdicts, then each claim with its rule and its numbers."""
    # Not HTML: `escaped` is applied to every value.
    loader, finalize = PackageLoader(__package__, "."), lambda value: escaped(str(value))
    environment = Environment(loader=loader, autoescape=False, finalize=finalize, **TEMPLATES)
    basis = basis_of_all(results, judgements)
    return environment.get_template("claims.md.j2").render(basis=basis, judgements=judgements)


def summary(judgements: Sequence[Judgement]) -> str:
    """The claims that are decided: a table of verdicts, each with the number that decides it."""
    decided = [each for each in judgements if each.basis]
    lines = ["| the paper says | here | found |", "|---|---|---|"]
    for each in decided:
        found = each.findings[each.basis].items
        deciding = next(item for item in found if item.verdict == each.verdict)
        words = (each.claim.sentence, each.words, str(deciding))
        lines.append(f"| {' | '.join(map(escaped, words))} |")
    rest = len(judgements) - len(decided)
    return "\n".join([*lines, "", f"{counted(rest, 'other claim')}: undecided."]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(
        prog="lab claims",
        description="Judge the paper's claims by the run records of one folder.",
    )
    parser.add_argument("folder", type=Path, help="with index.json and the run records")
    parser.add_argument("--summary", action="store_true", help="only a table of what is decided")
    args = parser.parse_args(argv)
    try:
        results = open_result_set(args.folder)
        judgements = judge_claims(results)
    except TpiError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_status
    results.warn()
    sys.stdout.write(summary(judgements) if args.summary else markdown(results, judgements))
    return EXIT_OK
