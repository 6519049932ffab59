"""Grades in nbgrader's own gradebook, the rows that `nbgrader autograde` would write, a transaction for many."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from qlab.grading.faults import NoGradebook, first_line, gradebook_fault, quiet_nbgrader, whole_or_none
from qlab.grading.places import Places
from qlab.grading.work import Judged
from qlab.labs import notebooks

NO_RESPONSE = "No response."  # nbgrader's own words for an answer that was not touched
NEEDS_NBGRADER = 'grading needs nbgrader for its gradebook: pip install -c constraints.txt -e ".[teach]"'


@dataclass(frozen=True)
class Graded:
    """What the gradebook is to hold of one submission, and when that was handed in."""

    judged: Judged
    timestamp: datetime | None = None


class Book:
    """An open gradebook, for one assignment."""

    def __init__(self, assignment: str, releases: Mapping[str, NotebookNode], places: Places) -> None:
        try:
            from nbgrader import api  # noqa: PLC0415 - only instructors have nbgrader
        except ImportError:
            raise NoGradebook(NEEDS_NBGRADER) from None
        self._api, self._places, self._name = api, places, assignment
        self._is_read = False
        with self._told(), own_tools(), whole_or_none(places.database):
            self._book = api.Gradebook(places.database, places.course_id)
        try:
            with self._told():
                self._assignment = self._book.update_or_create_assignment(assignment).id
                for name, release in releases.items():
                    if not self._knows(name, release):
                        self._save_cells(name, release)
                self._read_ids()
        except NoGradebook:
            self.close()
            raise

    def close(self) -> None:
        self._book.close()

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def holds(self, judged: Judged) -> bool:
        """Tell whether the gradebook has exactly these points already."""
        if not self._is_read:
            return False
        submitted = self._submitted.get((judged.student, judged.notebook))
        points = {self._cells[judged.notebook].get(r.grade_id): float(r.points) for r in judged.results}
        return submitted is not None and points == self._scores.get(submitted, {})

    def write(self, graded: Sequence[Graded]) -> None:
        """Write the points of some submissions, all or none; writing them again changes nothing."""
        session = self._book.db
        with self._told():
            try:
                if not self._is_read:
                    self._read_ids()
                for one in graded:
                    self._add_submission(one)
                self._set_grades(graded)
                self._set_comments(graded)
                session.commit()
                self._set_penalties(graded)
            except Exception:
                self._is_read = False
                with suppress(Exception):  # what broke the writing may break this too
                    session.rollback()
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in one sentence what went wrong with the gradebook, whatever nbgrader and its database raise for it."""
        with quiet_nbgrader():
            try:
                yield
            except NoGradebook:
                raise
            except Exception as error:
                raise gradebook_fault(error, self._places.database) from error

    def _knows(self, name: str, release: NotebookNode) -> bool:
        """Tell whether the gradebook's cells of a notebook are those of the release."""
        api, session = self._api, self._book.db
        found = session.query(api.Notebook).filter_by(name=name, assignment_id=self._assignment).one_or_none()
        if found is None:
            return False
        cells = {cell.name: (cell.cell_type, cell.source, cell.checksum) for cell in found.source_cells}
        graded = {cell.name: cell.max_score for cell in found.grade_cells}
        marked = {notebooks.marks(c)["grade_id"]: c for c in release.cells if notebooks.marks(c).get("grade_id")}
        wanted = {n: (c.cell_type, c.source, notebooks.marks(c).get("checksum")) for n, c in marked.items()}
        most = {n: float(notebooks.points(c)) for n, c in notebooks.graded_cells(release).items()}
        return cells == wanted and graded == most

    def _save_cells(self, name: str, release: NotebookNode) -> None:
        """Let nbgrader itself record the release's cells, as `nbgrader generate_assignment` does."""
        from nbgrader.preprocessors import SaveCells  # noqa: PLC0415 - heavy, and needed once for an assignment

        where = {"notebook": name, "assignment": self._name, "db_url": self._places.database}
        try:
            SaveCells().preprocess(release, {"nbgrader": where})
        except RuntimeError as error:  # the cells are others, and grades for the old ones are there
            raise NoGradebook(f"the gradebook knows {self._name} with other cells: {first_line(error)}") from None

    def _read_ids(self) -> None:
        """Read what of this assignment is there already, in a few queries, however many submissions there are."""
        api, session = self._api, self._book.db
        self._notebooks = {
            name: id
            for name, id in session.query(api.Notebook.name, api.Notebook.id).filter_by(assignment_id=self._assignment)
        }
        self._cells = {name: self._cell_ids(api.GradeCell, id) for name, id in self._notebooks.items()}
        self._answers = {name: self._cell_ids(api.SolutionCell, id) for name, id in self._notebooks.items()}
        self._students = {id for (id,) in session.query(api.Student.id)}
        handed_in = session.query(api.SubmittedAssignment.student_id, api.SubmittedAssignment.id)
        self._submissions = dict(handed_in.filter_by(assignment_id=self._assignment).all())
        owner = {id: student for student, id in self._submissions.items()}
        name_of = {id: name for name, id in self._notebooks.items()}
        self._submitted = {}
        table = api.SubmittedNotebook.__table__.c
        for id, assignment, notebook in session.query(table.id, table.assignment_id, table.notebook_id):
            if assignment in owner and notebook in name_of:
                self._submitted[owner[assignment], name_of[notebook]] = id
        self._scores: dict[str, dict[str, float | None]] = {}
        known = set(self._submitted.values())
        grade = api.Grade.__table__.c
        for notebook, cell, score in session.query(grade.notebook_id, grade.cell_id, grade.auto_score):
            if notebook in known:
                self._scores.setdefault(notebook, {})[cell] = score
        session.rollback()  # ends the reading transaction: others may write
        self._is_read = True

    def _cell_ids(self, kind: Any, notebook: str) -> dict[str, str]:
        return {n: i for n, i in self._book.db.query(kind.name, kind.id).filter(kind.notebook_id == notebook)}

    def _add_submission(self, one: Graded) -> None:
        """Add what nbgrader adds for a submission: itself, its notebooks, and an empty row for each of their cells."""
        api, student = self._api, one.judged.student
        if student not in self._students:
            self._insert(api.Student, [{"id": student}])
            self._students.add(student)
        if student in self._submissions:
            if one.timestamp is not None:
                table = api.SubmittedAssignment.__table__
                change = table.update().where(table.c.id == self._submissions[student])
                self._book.db.execute(change.values(timestamp=one.timestamp))
            return
        own = {"id": api.new_uuid(), "assignment_id": self._assignment, "student_id": student}
        self._insert(api.SubmittedAssignment, [own | {"timestamp": one.timestamp}])
        self._submissions[student] = own["id"]
        for name, notebook in self._notebooks.items():
            id = api.new_uuid()
            self._insert(api.SubmittedNotebook, [{"id": id, "assignment_id": own["id"], "notebook_id": notebook}])
            self._submitted[student, name] = id
            rows = [{"id": api.new_uuid(), "notebook_id": id, "cell_id": cell} for cell in self._cells[name].values()]
            self._insert(api.Grade, rows)
            rows = [{"id": api.new_uuid(), "notebook_id": id, "cell_id": cell} for cell in self._answers[name].values()]
            self._insert(api.Comment, rows)

    def _insert(self, kind: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._book.db.execute(kind.__table__.insert(), rows)

    def _set_grades(self, graded: Sequence[Graded]) -> None:
        from sqlalchemy import bindparam  # noqa: PLC0415 - comes with nbgrader

        table = self._api.Grade.__table__
        rows = []
        for judged in (one.judged for one in graded):
            notebook, cells = self._submitted[judged.student, judged.notebook], self._cells[judged.notebook]
            scores = {cells[result.grade_id]: float(result.points) for result in judged.results}
            rows += [{"of": notebook, "cell": cell, "score": score} for cell, score in scores.items()]
            self._scores[notebook] = dict(scores)
        chosen = table.update().where(table.c.notebook_id == bindparam("of"), table.c.cell_id == bindparam("cell"))
        change = chosen.values(auto_score=bindparam("score"), needs_manual_grade=table.c.manual_score.isnot(None))
        if rows:
            self._book.db.connection().execute(change, rows)

    def _set_comments(self, graded: Sequence[Graded]) -> None:
        from sqlalchemy import bindparam  # noqa: PLC0415 - comes with nbgrader

        table = self._api.Comment.__table__
        rows = [
            {
                "of": self._submitted[one.judged.student, one.judged.notebook],
                "cell": cell,
                "text": NO_RESPONSE if name in one.judged.untouched else None,
            }
            for one in graded
            for name, cell in self._answers[one.judged.notebook].items()
        ]
        chosen = table.update().where(table.c.notebook_id == bindparam("of"), table.c.cell_id == bindparam("cell"))
        if rows:
            self._book.db.connection().execute(chosen.values(auto_comment=bindparam("text")), rows)

    def _set_penalties(self, graded: Sequence[Graded]) -> None:
        """Let nbgrader's own plugin judge what came late, where the assignment has a due date."""
        due = self._book.find_assignment(self._name).duedate
        late = [one for one in graded if due is not None and one.timestamp is not None and one.timestamp > due]
        self._book.db.rollback()
        if late:
            from nbgrader.preprocessors import AssignLatePenalties  # noqa: PLC0415 - heavy, and rarely needed

            for one in late:
                where = {"notebook": one.judged.notebook, "assignment": self._name, "student": one.judged.student}
                resources = {"nbgrader": where | {"db_url": self._places.database}}
                AssignLatePenalties(config=self._places.settings).preprocess(NotebookNode(cells=[]), resources)


@contextmanager
def own_tools() -> Iterator[None]:
    """Let nbgrader find `alembic` beside this Python: it asks PATH for it when it makes a gradebook."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before
