"""What formgrader and feedback show of a learner's text: its form, never its scripts."""

import nbformat
import pytest
from nbconvert import HTMLExporter
from traitlets.config.loader import PyFileConfigLoader

from qlab.grading.harmless import harmless_html, harmless_markdown
from tests.grading import REPOSITORY

SCRIPTS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)></svg>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "<div style='background:url(javascript:alert(1))'>x</div>",
)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("shown", [harmless_html, harmless_markdown])
def test_no_script_is_left(shown, script):
    left = shown(f"before\n\n{script}\n\nafter")
    assert "before" in left and "after" in left
    for tag in ("<script", "<svg", "<iframe", 'href="javascript', "url("):
        assert tag not in left
    assert "onerror" not in left or "&lt;img" in left


def test_verdicts_keep_their_form():
    card = (
        '<div class="qlab-verdict" style="border-left:4px solid #2e8540"><details><summary>x</summary>y</details></div>'
    )
    assert harmless_html(card).replace(";", "") == card


def test_markdown_is_still_markdown():
    assert harmless_markdown("**bold** and `a < b`") == "<p><strong>bold</strong> and <code>a &lt; b</code></p>\n"


def test_nbgrader_is_told_to_use_it():
    config = PyFileConfigLoader("nbgrader_config.py", path=str(REPOSITORY)).load_config()
    notebook = nbformat.v4.new_notebook()
    notebook.cells.append(nbformat.v4.new_markdown_cell("<script>alert(1)</script><img src=x onerror=alert(2)>"))
    page, _ = HTMLExporter(config=config).from_notebook_node(notebook)
    assert "<script>alert(1)" not in page and "onerror=alert(2)>" not in page.replace("&gt;", "")
