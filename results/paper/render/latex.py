"""One of the paper's tables as a LaTeX fragment for `input` that needs `booktabs` alone.

Whatever comes from records is escaped, and all of it is plain ASCII.
"""

import unicodedata
from collections.abc import Callable, Mapping

from results.paper.cells.result_set import ResultSet
from results.paper.render.cell_format import LEGEND, SAMPLES, STAND_IN_LEGEND, FormattedCell
from results.paper.render.footnotes import Footnotes, below
from results.paper.render.layouts import label_of, title_of
from results.paper.render.sections import Section, sections_of

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    # A plain double quote needs another font encoding; the rest are letters of another alphabet.
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "\N{MICRO SIGN}": r"$\mu$", "\N{GREEK SMALL LETTER MU}": r"$\mu$",
    "\N{GREEK SMALL LETTER GAMMA}": r"$\gamma$", "\N{GREEK SMALL LETTER TAU}": r"$\tau$",
    "\N{MULTIPLICATION SIGN}": r"$\times$", "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\le$", "\N{GREATER-THAN OR EQUAL TO}": r"$\ge$",
    "\N{MINUS SIGN}": r"$-$", "\N{EN DASH}": "--", "\N{EM DASH}": "---",
    "\N{LEFT FLOOR}": r"$\lfloor$", "\N{RIGHT FLOOR}": r"$\rfloor$",
    "\N{LEFT CEILING}": r"$\lceil$", "\N{RIGHT CEILING}": r"$\rceil$",
}  # fmt: skip
_DRESS: Mapping[str, Callable[[FormattedCell, str], str]] = {
    "measured": lambda _, text: rf"\textbf{{{text}}}",
    "dilated": lambda cell, text: rf"{text}$^{{d{cell.dilation:g}}}$",
    "simulated": lambda _, text: rf"\textit{{$\sim${text}}}",
    "computed": lambda _, text: rf"$=$\,{text}",
    # In braces: a bracket after \\ would be taken as its argument.
    "reported": lambda _, text: rf"{{[{text}]}}",
    "absent": lambda _, text: text,
}


def latex(results: ResultSet, exhibit: str) -> str:
    """A table as a LaTeX fragment."""
    notes = Footnotes.of(results, exhibit)
    sections = [_tabular(section, notes, exhibit) for section in sections_of(results, exhibit)]
    texts = [f"({number}) {escape(text)}" for number, text in enumerate(notes.texts, 1)]
    texts += [escape(line) for line in (*notes.shared_lines(), *below(results, exhibit))]
    title = title_of(exhibit).partition(": ")[2]
    legend = [f"{latex_of(cell)} {escape(LEGEND[cell.kind])}" for cell in SAMPLES]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape(title)} (measured at scale {escape(results.scale)})}}",
            rf"\label{{tab:{exhibit}}}",
            "\n\\par\\medskip\n".join(sections),
            r"\par\medskip\raggedright",
            *(
                rf"{text}\par"
                for text in ["; ".join([*legend, escape(STAND_IN_LEGEND)]) + ".", *texts]
            ),
            r"\end{table}",
            "",
        ]
    )


def latex_of(cell: FormattedCell) -> str:
    """A cell as LaTeX, with the mark of its kind."""
    dressed = _DRESS[cell.kind](cell, escape(cell.text))
    return dressed + (rf" \textsc{{{escape(cell.stand_in)}}}" if cell.stand_in else "")


def escape(text: str) -> str:
    """Text that LaTeX sets as it is: nothing in it is a command, and all of it is ASCII."""
    return "".join(_SPECIAL.get(c) or (c if c.isascii() else _ascii(c)) for c in text)


def _ascii(char: str) -> str:
    decomposed = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    return "".join(_SPECIAL.get(c, c) for c in decomposed) or f"[U+{ord(char):04X}]"


def _tabular(section: Section, notes: Footnotes, exhibit: str) -> str:
    lines = [
        *([rf"{escape(section.heading)}\par\smallskip"] if section.heading else []),
        rf"\begin{{tabular}}{{ll{'l' * len(section.columns)}}}",
        r"\toprule",
        " & ".join(["", "source", *(escape(c.title) for c in section.columns)]) + r" \\",
        r"\midrule",
    ]
    for number, group in enumerate(section.groups):
        lines += [r"\addlinespace"] if number else []
        for index, line in enumerate(group.lines):
            name = "" if index else escape(label_of(group.row, exhibit))
            texts = [name, escape(line.label)]
            for cells in line.cells:
                text, marks = notes.joined(cells, latex_of), notes.numbers(cells).strip()
                texts.append(text + (rf"\textsuperscript{{{marks}}}" if marks else ""))
            lines.append(" & ".join(texts) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
