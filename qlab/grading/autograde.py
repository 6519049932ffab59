"""The step of `nbgrader autograde` that runs a submission: here it talks to the judge's front instead of a bare kernel.

`nbgrader_config.py` names it in `Autograde.autograde_preprocessors`, and nothing else of nbgrader or of JupyterLab
sees it. nbgrader itself puts the locked cells back; it stops at a check cell that was doubled or deleted, where
`qlab grade` repairs the notebook first.
"""

from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbgrader.preprocessors import Execute
from traitlets import Bool

from qlab.grading.front import check_sources
from qlab.grading.provisioner import JudgeKernelManager
from qlab.labs import notebooks


class JudgedExecute(Execute):
    """nbgrader's `Execute` with a kernel that judges the checks of the release and confines all other code."""

    unsafe = Bool(False, help="grade without a sandbox: the submissions can do what you can").tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("timeout", None)  # the judge has limits of its own, for each cell and for the whole
        super().__init__(**kwargs)

    def preprocess(self, nb: NotebookNode, resources: Any, km: Any = None) -> tuple[NotebookNode, Any]:
        """Run one submission, each of whose graded cells must hold a check of the release.

        Errors:  ValueError if one does not: it would run in the sandbox, which may print any grade it likes.
        """
        self.release = self._released(**resources["nbgrader"])
        checks = check_sources(notebooks.read(self.release))
        for grade_id, cell in notebooks.graded_cells(nb).items():
            by_hand = notebooks.marks(cell).get("solution")
            if not by_hand and cell.source.strip() not in checks:
                raise ValueError(
                    f"the gradebook's cell {grade_id!r} is not a check of {self.release}: "
                    "run nbgrader generate_assignment again"
                )
        self.answers = {grade_id: cell.source for grade_id, cell in notebooks.answer_cells(nb).items()}
        return super().preprocess(nb, resources, km)

    def create_kernel_manager(self) -> JudgeKernelManager:
        """Return the manager of this submission's front, whatever kernel the notebook asks for."""
        self.km = JudgeKernelManager(
            config=self.config, release=str(self.release), answers=self.answers, unsafe=self.unsafe
        )
        return self.km

    def _released(self, *, assignment: str, notebook: str, **_: Any) -> Path:
        course = self.parent.parent.coursedir  # the exporter's parent is the command
        folder = course.format_path(course.release_directory, ".", assignment)
        return Path(folder, f"{notebook}.ipynb").absolute()
