"""Settings of nbgrader: solutions/ are the source, labs/ the release."""

c = get_config()  # given by whoever loads this file

c.CourseDirectory.course_id = "qlab"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "labs"
c.GenerateAssignment.force = True  # labs/ is in git: without this nbgrader skips a lab that is already there
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("replace this line with your answer")'}
c.ClearSolutions.enforce_metadata = True
c.IncludeHeaderFooter.header = ""
c.ExecutePreprocessor.timeout = 120
