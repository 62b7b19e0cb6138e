"""Verdicts on the paper's claims, from a book alone: `lab claims FOLDER`.

Every kind of evidence is judged by itself: what the paper reports, what was measured, simulated,
computed. A claim's verdict is that of the measurements where they decide, else the simulator's,
marked as such, else `undecided` with what is missing. The claims stand in
`results/paper/claims/list.py`. Read `judge` first.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from results.paper.cells.load import open_result_set
from results.paper.cells.result_set import ResultSet, backend_of, model_of
from results.paper.claims.evidence import MEASURED, REPORTED, SIMULATED, View, views
from results.paper.claims.list import CLAIMS, Claim
from results.paper.claims.verdict import REPRODUCED, UNDECIDED, Finding
from results.paper.render.cell_format import escaped
from tpi.command_line import Parser
from tpi.errors import EXIT_OK, TpiError
from tpi.units import counted


@dataclass(frozen=True, slots=True)
class Judgement:
    """A claim and its verdict.

    Attributes:
        verdict: One of `VERDICTS`.
        basis: The kind of evidence it rests on; empty where it is undecided.
        reason: Why it is undecided.
        findings: By kind of evidence, those that say anything.
        models: That the measured runs of the book are of.
        dilations: By which the measured times that it rests on were divided.
    """

    claim: Claim
    verdict: str
    basis: str
    reason: str
    findings: Mapping[str, Finding]
    models: tuple[str, ...] = ()
    dilations: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        """`reproduced (simulated)`, `reproduced (tiny)`: the verdict and on what it rests."""
        subject = self.findings[self.basis].subject if self.basis else ""
        said = [self.basis] if self.basis == SIMULATED.name else []
        if self.basis == MEASURED.name and self.dilations:
            said.append(f"dilation {', '.join(f'{factor:g}' for factor in self.dilations)}")
        said += [subject] if subject else []
        return f"{self.verdict} ({', '.join(said)})" if said else self.verdict


def judge_claims(book: ResultSet) -> list[Judgement]:
    """A judgement of every claim, in the order of `CLAIMS`."""
    models = measured_models(book)
    return [replace(judge(book, claim), models=models) for claim in CLAIMS]


def measured_models(book: ResultSet) -> tuple[str, ...]:
    """The models of the runs that were measured and have a timing, each once."""
    runs = (r for r in book.records.values() if r.metrics and backend_of(r) != "sim")
    return tuple(sorted({model_of(record) or "not named" for record in runs}))


def basis_of_all(judgements: Sequence[Judgement]) -> str:
    """One line: how many verdicts rest on what, and what the measured runs are of."""
    counts = {kind.name: 0 for kind in (MEASURED, SIMULATED)}
    for each in judgements:
        if each.basis:
            counts[each.basis] += 1
    undecided = len(judgements) - sum(counts.values())
    names = ", ".join(judgements[0].models if judgements else ()) or "none: nothing was measured"
    return (
        f"Of {len(judgements)} verdicts {counts[MEASURED.name]} rest on measured runs,"
        f" {counts[SIMULATED.name]} on simulated ones; {undecided} claims are undecided. Models of"
        f" the measured runs: {names}."
    )


def judge(book: ResultSet, claim: Claim) -> Judgement:
    """Judge one claim by every kind of evidence, and choose the verdict."""
    found = {view.kind.name: _decided(view, claim) for view in views(book)}
    shown = {
        name: finding
        for name, finding in found.items()
        if finding.has_numbers or name in (MEASURED.name, SIMULATED.name)
    }
    for kind in (MEASURED, SIMULATED):
        if found[kind.name].verdict != UNDECIDED:
            verdict, dilations = found[kind.name].verdict, _dilations(book, claim)
            return Judgement(claim, verdict, kind.name, "", shown, dilations=dilations)
    reason = "; ".join(f"{k.name}: {found[k.name].reason}" for k in (MEASURED, SIMULATED))
    return Judgement(claim, UNDECIDED, "", reason, shown)


def _dilations(book: ResultSet, claim: Claim) -> tuple[float, ...]:
    """Of the measured numbers at a claim's places, those that are not 1."""
    cells = (cell for place in claim.places for cell in book.of(place, MEASURED.evidence))
    found = {cell.dilation for cell in cells if cell.value is not None} - {1.0}
    return tuple(sorted(found))


def _decided(view: View, claim: Claim) -> Finding:
    """What a rule finds; of runs, nothing is reproduced while a place of the claim has none."""
    if view.kind == REPORTED and claim.paper_is_of:
        return Finding(UNDECIDED, reason=f"its numbers are of {claim.paper_is_of}")
    finding = claim.decide(view)
    if view.kind not in (MEASURED, SIMULATED):
        return finding
    there = sum(seen.has_value or seen.is_oom for seen in map(view.look, claim.places))
    if not 0 < there < len(claim.places):
        return finding
    coverage = f"of {len(claim.places)} places {there} are there"
    if finding.verdict == REPRODUCED:
        return replace(finding, verdict=UNDECIDED, reason=coverage, coverage=coverage)
    return replace(finding, coverage=coverage)


def markdown(judgements: Sequence[Judgement]) -> str:
    """All judgements: a table of verdicts, then each claim with its rule and its numbers."""
    lines = [
        "### Claims",
        "",
        basis_of_all(judgements),
        "",
        "| claim | verdict | the paper's own numbers |",
        "|---|---|---|",
    ]
    for each in judgements:
        own = each.findings.get(REPORTED.name)
        own_words = own.verdict if own else "none"
        lines.append(f"| {escaped(each.claim.sentence)} | {escaped(each.words)} | {own_words} |")
    sections = (escaped(line) for each in judgements for line in _section(each))
    return "\n".join([*lines, *sections]) + "\n"


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


def _section(each: Judgement) -> Iterator[str]:
    claim = each.claim
    yield from ("", f"#### {claim.name}: {each.words}", "")
    yield from (f"{claim.sentence} ({claim.source}; in our words)", "", f"Rule: {claim.rule}", "")
    if claim.note:
        yield from (f"Note: {claim.note}", "")
    if claim.paper_is_of:
        yield from (f"The paper's own numbers are of {claim.paper_is_of}.", "")
    if each.reason:
        yield from (f"Undecided: {each.reason}", "")
    for name, finding in each.findings.items():
        reason = f": {finding.reason}" if not finding.has_numbers else ""
        coverage = f" ({finding.coverage})" if finding.coverage else ""
        yield f"- {name}: {finding.verdict}{coverage}{reason}"
        if finding.has_numbers:
            yield from (f"  - {_marked(item.verdict)}{item}" for item in finding.items)


def _marked(verdict: str) -> str:
    return f"[{verdict}] " if verdict else ""


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
        text = (summary if args.summary else markdown)(judge_claims(open_result_set(args.folder)))
    except TpiError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_status
    sys.stdout.write(text)
    return EXIT_OK
