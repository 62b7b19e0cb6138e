"""HTML from Python values: everything is escaped unless it is `Html` already.

Only what a report needs: elements, tables, sections, one page. Nothing here refers to anything
outside the page. Read `html`, then `table`.
"""

from collections.abc import Iterable, Sequence
from html import escape

from results.marks import plain


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def html(value: object) -> Html:
    """A value as markup: escaped, in one line, unless it is markup already."""
    return value if isinstance(value, Html) else Html(escape(plain(str(value))))


def joined(parts: Iterable[object]) -> Html:
    """Parts after one another."""
    return Html("".join(html(part) for part in parts))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element: `tag("td", "a < b", cls="number")`; an attribute that is empty is left out."""
    given = "".join(
        f' {key.removesuffix("_").replace("cls", "class")}="{html(value)}"'
        for key, value in attributes.items()
        if value != ""
    )
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def image(data_uri: str, text: str) -> Html:
    """An image that lies in the page itself, and what it shows in words."""
    return Html(f'<img src="{html(data_uri)}" alt="{html(text)}">')


def table(head: Sequence[object], rows: Iterable[Sequence[object]], cls: str = "") -> Html:
    """A table; a row's cell that is a `td` or `th` already is taken as it is."""
    titles = tag("tr", *(tag("th", title, scope="col") for title in head))
    body = [tag("tr", *(_cell(value) for value in row)) for row in rows]
    return tag("div", tag("table", tag("thead", titles), tag("tbody", *body), cls=cls), cls="wide")


def _cell(value: object) -> Html:
    text = html(value)
    return text if text.startswith(("<td", "<th")) else tag("td", text)


def counted(count: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(items: Iterable[object]) -> Html:
    """An unordered list; nothing where there are no items."""
    entries = [tag("li", item) for item in items]
    return tag("ul", *entries) if entries else Html("")


def folded(summary: object, *content: object) -> Html:
    """Content that opens by a click; print shows what is open."""
    return tag("details", tag("summary", summary), *content)


def section(name: str, title: str, *content: object) -> Html:
    """A section of the page that can be linked to."""
    return tag("section", tag("h2", title), *content, id_=name)


def page(title: str, style: str, *content: object) -> str:
    """The whole file."""
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            tag("title", title),
            Html(f"<style>{style}</style>"),
        ]
    )
    whole = tag("html", tag("head", head), tag("body", tag("main", *content)), lang="en")
    return f"<!doctype html>\n{whole}\n"
