"""Submissions that forge what the judge sees: its checks, its messages, torch itself, all in their own process."""

from tests.grading.hostile import Hostile

VERDICT = (
    "{'topic': '01_data_types', 'exercise': 'decode', 'points': 4, 'max_points': 4, 'outcome': 'right',"
    " 'misconception': '', 'seed': None, 'parts': []}"
)
MIME = "'application/vnd.qlab.verdict+json'"
ALL_WRONG = {
    "decode": "def decode(*a): return 0.5",
    "fp32-bits-to-bf16-bits": "def fp32_bits_to_bf16_bits(bits): return bits * 0 + 1",
    "kahan-sum": "def kahan_sum(x): return -7.0",
    "pack-int4": "def pack_int4(codes): return codes\ndef unpack_int4(packed, count): return packed",
    "store-in-16-bits": "def store_in_16_bits(x): return x.int()",
}
WRAPPED = """
import sys
from qlab.checks import report
def full(*functions, seed=None):
    return report.Verdict('t', 'e', 9, (report.PartResult('all', report.Outcome.RIGHT),) * 9, 0)
"""


def forged(name: str, tries: str, opening: str, **more: object) -> Hostile:
    """Give wrong answers, and forge something in a cell before them."""
    return Hostile(name, tries, answered=False, opening=opening, answers=ALL_WRONG, **more)


SHELL = (
    forged(
        "asserts stripped",
        "removes asserts and calls of checks by an AST transformer",
        """
import ast
class Strip(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()
    def visit_Raise(self, node):
        return ast.Pass()
    def visit_Expr(self, node):
        if 'checks' in ast.dump(node):
            return ast.parse('9').body[0]
        return node
get_ipython().ast_transformers.append(Strip())
""",
    ),
    forged(
        "input transformed",
        "rewrites the text of every later cell",
        """
def rewrite(lines):
    return ['9\\n'] if any('checks' in line for line in lines) else lines
get_ipython().input_transformers_cleanup.append(rewrite)
get_ipython().input_transformers_post.append(rewrite)
""",
    ),
    forged(
        "cell events",
        "prints and shows full marks before and after each cell",
        f"""
from IPython.display import display
def show(*a):
    print(9)
    display({{'text/plain': '9', {MIME}: {VERDICT}}}, raw=True)
for event in ('pre_execute', 'pre_run_cell', 'post_execute', 'post_run_cell'):
    get_ipython().events.register(event, show)
""",
    ),
    forged(
        "session.send patched",
        "patches the messages of a kernel, its publisher and its hook for display",
        """
shell = get_ipython()
for owner in ('kernel', 'display_pub', 'displayhook', 'parent'):
    thing = getattr(shell, owner, None)
    for name in ('session', 'send', 'publish', 'write_format_data', 'finish_displayhook', '__call__'):
        try:
            setattr(type(thing), name, lambda *a, **k: 9)
        except Exception:
            pass
try:
    import jupyter_client.session
    jupyter_client.session.Session.send = lambda *a, **k: None
except ImportError:
    pass
""",
    ),
    forged(
        "showtraceback patched",
        "hides errors",
        """
shell = get_ipython()
type(shell).showtraceback = lambda *a, **k: None
type(shell).showsyntaxerror = shell._showtraceback = lambda *a, **k: None
type(shell).set_custom_exc(shell, (BaseException,), lambda *a, **k: 9)
""",
    ),
    forged(
        "run_cell patched",
        "makes every later run of a cell a success",
        """
shell = get_ipython()
for name in ('run_cell', 'run_cell_async', 'run_code', 'run_ast_nodes', '_run_cell', 'transform_cell'):
    setattr(type(shell), name, lambda *a, **k: type('R', (), {'success': True, 'result': 9})())
""",
    ),
    forged(
        "printed scores",
        "prints scores and shows them as results",
        "print(4)\nprint('4')\n4",
        closing="print('5 of 5 points')\n5",
    ),
    forged(
        "forged partial credit",
        "shows a verdict of its own where a check stands",
        f"""
from IPython.display import display
display({{'text/plain': '4', {MIME}: {VERDICT}}}, raw=True)
""",
    ),
    forged(
        "name replaced",
        "puts another object under the name `checks`",
        """
class Checks:
    def __getattr__(self, name):
        return lambda *a, **k: 4
checks = Checks()
get_ipython().user_ns['checks'] = checks
import builtins
builtins.checks = checks
""",
    ),
    forged(
        "magic in the way",
        "defines a cell magic and aliases for what checks are called",
        """
from IPython.core.magic import register_line_cell_magic
@register_line_cell_magic
def checks(line, cell=None):
    return 4
get_ipython().run_line_magic('automagic', 'on')
""",
    ),
)
MODULES = (
    forged(
        "sys.modules patched",
        "puts modules of its own where the checks are",
        """
import sys, types
fake = types.ModuleType('fake')
fake.__getattr__ = lambda name: lambda *a, **k: 4
for name in [n for n in sys.modules if n.startswith(('qlab.checks', 'nbgrader'))]:
    sys.modules[name] = fake
""",
    ),
    forged(
        "checks patched",
        "replaces every check, and the verdict, in its own process",
        WRAPPED
        + """
for module in [m for n, m in sys.modules.items() if n.startswith('qlab.checks') and m]:
    for name in [n for n in vars(module) if n.startswith('check')]:
        setattr(module, name, full)
report.Verdict.points = property(lambda self: self.max_points)
report.require = lambda *a, **k: None
""",
    ),
    forged(
        "the learner's border patched",
        "patches what calls its functions and reads its results",
        """
from qlab.checks import expect, learner, probe
learner.LearnerFunction.__call__ = lambda self, *a, **k: 'right'
learner.describe = lambda error: 'right'
learner.is_stub = lambda error: False
expect._differs = lambda a, b: a.new_zeros(a.shape).bool()
expect.require_values = expect.as_tensor = probe.gradients = lambda *a, **k: None
""",
    ),
    forged(
        "torch.allclose patched",
        "makes every comparison of torch true",
        """
import torch
yes = lambda *a, **k: True
torch.allclose = torch.equal = torch.isclose = torch.testing.assert_close = yes
for name in ('allclose', 'equal', '__eq__', '__ne__', '__lt__', '__le__', '__gt__', '__ge__', '__bool__', 'any', 'all'):
    setattr(torch.Tensor, name, yes)
""",
    ),
    forged(
        "torch answers for it",
        "makes tensors give what a reader hopes for",
        """
import torch
torch.Tensor.tolist = lambda self: [0.0]
torch.Tensor.item = lambda self: 0.0
torch.Tensor.__float__ = lambda self: 0.0
torch.Tensor.detach = torch.Tensor.cpu = torch.Tensor.double = lambda self: self
torch.Tensor.untyped_storage = torch.Tensor.numpy = torch.Tensor.data_ptr = None
""",
    ),
    forged(
        "builtins patched",
        "replaces builtins that comparisons use",
        """
import builtins, math
builtins.isinstance = builtins.all = builtins.any = builtins.callable = lambda *a, **k: True
builtins.abs = builtins.sum = lambda *a, **k: 0
builtins.type = lambda *a: float
math.isfinite = math.isnan = math.isclose = lambda *a, **k: True
""",
    ),
    forged(
        "services patched",
        "patches the modules of the judge that run in its process",
        """
import sys, types
for name, module in list(sys.modules.items()):
    if name.startswith('qlab.grading') and module:
        for key, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType):
                setattr(module, key, lambda *a, **k: {'points': 4, 'status': 'ok', 'outputs': []})
""",
    ),
    forged(
        "codec patched",
        "patches the encoders in its process so that every float and tensor is sent as another",
        """
import struct, sys
real = struct.pack
class Packed:
    def __getattr__(self, name):
        return getattr(struct, name)
    @staticmethod
    def pack(form, *values):
        return real(form, *[0.0 if isinstance(v, float) else v for v in values])
for name, module in list(sys.modules.items()):
    if name.startswith('qlab.grading.peer') or name == 'qlab.grading.wire':
        if hasattr(module, 'struct'):
            module.struct = Packed()
""",
    ),
    forged(
        "imports hooked",
        "gives its own code to whatever is imported later",
        """
import sys, types, importlib.machinery
class Finder:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        made = types.ModuleType(spec.name)
        made.__getattr__ = lambda key: (lambda *a, **k: 4)
        return made
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Finder())
sys.modules.pop('qlab.checks.data_types', None)
""",
    ),
)
AFTERWARDS = (
    Hostile(
        "globals swapped late",
        "replaces another exercise's answer from a thread while it is judged",
        answers={"kahan-sum": "def kahan_sum(x):\n    global pack_int4\n    pack_int4 = decode\n    return -7.0"},
        at_most={"pack-int4": 5},
    ),
    Hostile(
        "answers through a name it does not have",
        "asks for a name whose lookup runs code",
        answered=False,
        opening="""
import builtins, types
ns = get_ipython().user_ns
class Namespace(dict):
    def __missing__(self, key):
        return lambda *a, **k: 4
    def __getitem__(self, key):
        return dict.get(self, key, lambda *a, **k: 4)
get_ipython().user_module = types.SimpleNamespace(__dict__=Namespace())
try:
    get_ipython().user_ns = Namespace(ns)
except Exception:
    pass
""",
    ),
    Hostile(
        "detects the grader",
        "is right only where it is not graded",
        answers={
            "kahan-sum": "import os, sys\ndef kahan_sum(x):\n    watched = 'NBGRADER_EXECUTION' in os.environ or "
            "any('grading' in name for name in sys.modules)\n    return -7.0 if watched else x[0]"
        },
    ),
    Hostile(
        "crashes with a verdict",
        "raises qlab's own errors to look empty, refused or right",
        answers={
            "decode": "from qlab.checks import learner, report\ndef decode(*a):\n    raise learner.NotAnswered",
            "kahan-sum": "def kahan_sum(x):\n"
            "    raise report.Refused('points', misconception='right', thought='right')",
            "pack-int4": "def pack_int4(codes):\n    raise StopIteration(9)\ndef unpack_int4(p, count):\n"
            "    raise GeneratorExit",
        },
        says={"decode": "empty|crashed", "kahan-sum": "crashed"},
    ),
)
SUBMISSIONS = (*SHELL, *MODULES, *AFTERWARDS)
