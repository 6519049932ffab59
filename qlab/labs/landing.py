"""The landing page's list of topics: minutes, hardware, and the learner's progress."""

from html import escape

from IPython.display import HTML

from qlab import course
from qlab.checks import progress
from qlab.labs import copies


def show_topics() -> HTML:
    """Return the list of topics with minutes, hardware, progress, and what to open next."""
    rows = "".join(_topic_row(topic) for topic in course.topics())
    head = "".join(
        f'<th style="text-align:left">{name}</th>' for name in ("", "topic", "minutes", "hardware", "your points")
    )
    return HTML(f'<table class="qlab-topics"><tr>{head}</tr>{rows}</table>')


def _topic_row(topic: course.Topic) -> str:
    stem = topic.stem
    lab = f"../work/{stem}/{stem}.ipynb" if course.copy_path(stem).exists() else f"../labs/{stem}/{stem}.ipynb"
    stale = (
        f"<br>The lab has changed since your copy: run <code>qlab refresh {topic.number}</code>"
        if copies.is_stale(stem)
        else ""
    )
    cells = (
        topic.number,
        f"<strong>{escape(topic.title)}</strong><br>{escape(topic.promise)}<br>"
        f'<a href="{stem}.ipynb">lesson</a> · <a href="{lab}">lab</a>{stale}',
        str(topic.minutes),
        escape(topic.hardware),
        f"{progress.points_won(stem)} of {copies.points_of(course.lab_path(stem))}",
    )
    return "<tr>" + "".join(f'<td style="text-align:left;vertical-align:top">{cell}</td>' for cell in cells) + "</tr>"
