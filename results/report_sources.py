"""The report's section on source versions: whether all records are of the same program text.

A run's name holds a hash of the text that its numbers come from, and the driver notes the version
in the index. Where one table was run again after a change, records of older text stay behind the
others, and are named here. Read `sources_section` first.
"""

from collections.abc import Iterator

from results.book import Book
from results.markup import Html, counted, section, table, tag

Versions = dict[str, dict[str, list[str]]]


def sources_section(book: Book) -> Html:
    """How many versions there are, and of which runs each is if they are several."""
    versions = versions_of(book)
    most = max((len(found) for found in versions.values()), default=1)
    parts = [tag("p", f"{counted(most, 'source version')} among the records.")]
    if rows := list(_rows(book, versions)):
        command = tag("code", f"make paper SCALE={book.scale}")
        parts += [table(("program", "version", "runs"), rows), tag("p", "To renew them: ", command)]
    unknown = sum(1 for entry in book.entries if entry.run_id and not entry.source)
    if unknown:
        words = f"The index does not say which version {counted(unknown, 'cell')} rest on."
        parts.append(tag("p", words, cls="dim"))
    return section("sources", "Source versions", *parts)


def versions_of(book: Book) -> Versions:
    """By program and version the runs; the present one is there where older ones are."""
    versions: Versions = {}
    for entry in book.entries:
        if entry.run_id and entry.source:
            runs = versions.setdefault(entry.program, {}).setdefault(entry.source, [])
            if entry.run_id not in runs:
                runs.append(entry.run_id)
    for program, found in versions.items():
        if program in book.sources:
            found.setdefault(book.sources[program], [])
    return versions


def _rows(book: Book, versions: Versions) -> Iterator[tuple[str, str, str]]:
    for program, found in versions.items():
        for version, runs in found.items() if len(found) > 1 else ():
            word = "present" if version == book.sources.get(program) else "older"
            yield program, f"{version} ({word})", ", ".join(runs) or "none"
