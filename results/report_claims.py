"""The report's verdicts: one table of all claims, then each with its rule, numbers and cells.

Read `claims_section` first.
"""

from collections.abc import Iterator, Sequence

from results.claims import Judgement, basis_of_all
from results.evidence import REPORTED, SIMULATED
from results.markup import Html, counted, folded, html, joined, listed, section, table, tag
from results.verdicts import VERDICTS, Finding, Item


def claims_section(judgements: Sequence[Judgement]) -> Html:
    """All claims, verdicts first."""
    rows = [
        (
            tag("a", each.claim.sentence, href=f"#claim-{each.claim.name}"),
            verdict_of(each),
            _own(each),
        )
        for each in judgements
    ]
    head = ("claim, in our words", "verdict", "by the paper's own numbers")
    counts = [(verdict, sum(j.verdict == verdict for j in judgements)) for verdict in VERDICTS]
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts)
    return section(
        "claims",
        "Verdicts",
        tag("p", f"{len(judgements)} claims: {total}."),
        tag("p", basis_of_all(judgements)),
        tag("p", _HOW, cls="dim"),
        table(head, rows),
        *(_claim(each) for each in judgements),
    )


_HOW = (
    "Each kind of evidence is judged by itself and never mixed. A verdict is that of the"
    " measurements where they decide, else the simulator's (dashed), else undecided. A claim about"
    " several models fails with one of them and holds only with all of them, every cell it needs"
    " run; an interval that holds the bound decides nothing."
)


def badge(verdict: str, words: str = "", cls: str = "") -> Html:
    """A verdict in its colour."""
    return tag("span", words or verdict, cls=f"verdict {verdict.replace(' ', '-')} {cls}".strip())


def verdict_of(each: Judgement) -> Html:
    """A claim's verdict; a dashed edge where only the simulator decides."""
    return badge(each.verdict, each.words, "basis" if each.basis == SIMULATED.name else "")


def _own(each: Judgement) -> Html:
    found = each.findings.get(REPORTED.name)
    return html("it gives none") if found is None else badge(found.verdict)


def _claim(each: Judgement) -> Html:
    claim, other = each.claim, each.claim.paper_is_of
    return tag(
        "div",
        tag("h3", claim.sentence, " ", verdict_of(each)),
        tag("p", f"Source: {claim.source}; in our words.", cls="dim"),
        tag("p", tag("b", "Rule: "), claim.rule),
        *([tag("p", tag("b", "Note: "), claim.note)] if claim.note else []),
        *([tag("p", f"The paper's own numbers are of {other}.")] if other else []),
        *([tag("p", tag("b", "Undecided: "), each.reason)] if each.reason else []),
        *(_finding(name, finding) for name, finding in each.findings.items()),
        *_places(each),
        cls="claim",
        id_=f"claim-{claim.name}",
    )


def _finding(name: str, finding: Finding) -> Html:
    coverage = f" {finding.coverage}" if finding.coverage else ""
    title = joined([tag("b", name), ": ", badge(finding.verdict), coverage])
    if not finding.has_numbers:
        return tag("p", title, f" {finding.reason}")
    return joined([tag("p", title), listed(_item(item) for item in finding.items)])


def _item(item: Item) -> Html:
    return joined([badge(item.verdict), " ", item]) if item.verdict else html(item)


def _places(each: Judgement) -> Iterator[Html]:
    if each.claim.places:
        names = (tag("code", place) for place in each.claim.places)
        yield folded(f"Needs {counted(len(each.claim.places), 'cell')}", listed(names))
