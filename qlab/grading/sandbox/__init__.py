"""Starting and ending sandboxes: isolation, limits, and processes forked from a warm one."""

from qlab.grading.sandbox.isolation import Isolation, NoIsolation, require_isolation
from qlab.grading.sandbox.kernel import Kernel
from qlab.grading.sandbox.lasting import LastingSandbox
from qlab.grading.sandbox.pool import Sandbox
from qlab.grading.sandbox.warm import SandboxFailed

__all__ = ["Isolation", "Kernel", "LastingSandbox", "NoIsolation", "Sandbox", "SandboxFailed", "require_isolation"]
