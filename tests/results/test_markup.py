from results.markup import Html, html, image, joined, listed, page, table, tag

EVIL = "<script>alert('x')</script>&\n\x1b[31m\""


def test_text_is_escaped_in_content_and_attributes():
    text = tag("p", EVIL, title=EVIL)
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") == 2
    assert text.count("&quot;") == 2
    assert "\n" not in text
    assert "\x1b" not in text


def test_markup_is_not_escaped_twice():
    assert tag("p", tag("b", "a & b")) == "<p><b>a &amp; b</b></p>"
    assert html(Html("<b>")) == "<b>"
    assert joined([Html("<b>"), "<b>"]) == "<b>&lt;b&gt;"


def test_attributes_without_a_value_are_left_out():
    assert tag("p", cls="", id_="a") == '<p id="a"></p>'


def test_table_takes_cells_as_text_or_as_elements():
    text = table(("a", "b"), [("<", tag("td", "2", cls="number"))])
    assert '<td>&lt;</td><td class="number">2</td>' in text
    assert text.count('scope="col"') == 2


def test_an_empty_list_is_nothing():
    assert listed([]) == ""


def test_images_carry_their_words():
    assert image("data:x", 'a "b"') == '<img src="data:x" alt="a &quot;b&quot;">'


def test_page_is_a_whole_document():
    text = page("a < b", "p { color: red; }", tag("p", "x"))
    assert text.startswith("<!doctype html>\n<html")
    assert "<title>a &lt; b</title>" in text
