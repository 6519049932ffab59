"""What learners wrote, as a page that sets grades may show it: with its form, without its scripts."""

from typing import Any

LAYOUT = ("blockquote", "br", "dd", "details", "div", "dl", "dt", "hr", "img", "li", "ol", "p", "pre", "summary", "ul")
WORDS = ("a", "abbr", "b", "code", "del", "em", "i", "s", "small", "span", "strong", "sub", "sup")
TABLES = ("table", "tbody", "td", "th", "thead", "tr")
TAGS = frozenset((*LAYOUT, *WORDS, *TABLES, *(f"h{level}" for level in range(1, 7))))
ATTRIBUTES = {
    "*": ["class", "data-outcome", "id", "title", "style"],
    "a": ["href"],
    "img": ["alt", "src"],
    "details": ["open"],
    "td": ["colspan", "rowspan"],
    "th": ["colspan", "rowspan"],
}
STYLES = ("border-left", "color", "list-style", "margin", "margin-left", "overflow-wrap", "padding", "padding-left")


def harmless_html(element: Any) -> str:
    """Return HTML in which only the tags, attributes and styles of text are left; the rest is shown as text.

    It takes the place of nbconvert's own filter, which would strip the verdicts of their colors and folds.
    """
    import bleach  # noqa: PLC0415 - nbgrader's HTML pages alone need it
    from bleach.css_sanitizer import CSSSanitizer  # noqa: PLC0415

    text = element.decode() if isinstance(element, bytes) else str(element)
    sanitizer = CSSSanitizer(allowed_css_properties=STYLES)
    return bleach.clean(text, tags=TAGS, attributes=ATTRIBUTES, css_sanitizer=sanitizer)


def harmless_markdown(source: str) -> str:
    """Return Markdown as harmless HTML."""
    from nbconvert.filters import markdown2html  # noqa: PLC0415 - as above

    return harmless_html(markdown2html(source))
