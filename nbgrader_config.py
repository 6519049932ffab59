"""Settings of nbgrader: solutions/ are the source, labs/ the release, and qlab judges what is submitted."""

c = get_config()  # given by whoever loads this file

c.CourseDirectory.course_id = "qlab"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "labs"
c.GenerateAssignment.force = True  # labs/ is in git: without this nbgrader skips a lab that is already there
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("replace this line with your answer")'}
c.ClearSolutions.enforce_metadata = True
c.IncludeHeaderFooter.header = ""
c.ExecutePreprocessor.timeout = 120
# nbgrader's own steps, but for the first: submissions run in a sandbox (bubblewrap, on Linux) and a trusted kernel
# judges the checks. `nbgrader autograde TOPIC --JudgedExecute.unsafe=True` grades where there is no sandbox
c.Autograde.autograde_preprocessors = [
    "qlab.grading.autograde.JudgedExecute",
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
# formgrader and feedback show what learners wrote, in the pages that set grades: without its scripts
c.HTMLExporter.sanitize_html = True
c.HTMLExporter.filters = {
    "clean_html": "qlab.grading.harmless.harmless_html",
    "markdown2html": "qlab.grading.harmless.harmless_markdown",  # nbgrader's own pages do not ask for clean HTML
}
