"""What stands in place of an answer is refused and named; a fair use of the same names is not."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest

from qlab.checks.report import Outcome, PartResult, Verdict
from qlab.grading import forbidden
from qlab.grading.check_cells import bound_names, check_cells, touched_names, used_names
from qlab.grading.forbidden import COURSE_WIDE, MISSING, Use, find, forbidden_for, named_in, named_in_run, refused
from qlab.labs import notebooks
from tests.answers.bank import Answer, answers_of

ROOT = Path(__file__).parents[2]
LABS = sorted(path.stem for path in (ROOT / "labs").glob("*/*.ipynb"))
QUANTIZE = ("qlab.quantize.quantize_with", "qlab.quantize.symmetric_grid_of")
SDPA = "torch.nn.functional.scaled_dot_product_attention"
ADAM = ("torch.optim", "torch.optim.Adam")

# right by what they compute, and what the task forbids: a second system that shows the check to be right
SECOND_SYSTEMS = {
    ("count-parameters", "by_building_it"),
    ("count-parameters", "by_building_it_on_no_device"),
    ("activation-bytes", "by_measuring"),
    ("fake-quantize", "of_torch"),
    ("loss-scaler", "AroundGradScaler"),
    ("adam-step", "by_torchs_optimizer"),
    ("adam-as-printed", "by_torchs_optimizer"),
}
QLABS_OWN = {  # the reference itself under another name than `by_qlab…`
    ("count-parameters", "as_a_float"),
    ("bits-per-weight", "by_the_check"),
    ("quantize-min-max", "by_the_check"),
}


@cache
def released(lab: str) -> nbformat.NotebookNode:
    return notebooks.read(ROOT / "solutions" / lab / f"{lab}.ipynb")


@cache
def checks_of(lab: str) -> dict[str, object]:
    return {cell.check.exercise: cell.check for cell in check_cells(released(lab)).values()}


def is_qlabs_own(answer: Answer) -> bool:
    return "qlab" in answer.name.lower() or (answer.exercise, answer.name) in QLABS_OWN


@cache
def plain_source(path: Path) -> str:
    """Return a bank's functions without what makes them a bank: decorators, and lines that add to it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.Expr | ast.For)]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
    return ast.unparse(tree)


@pytest.mark.parametrize("lab", LABS)
def test_every_forbidden_name_of_qlab_and_torch_exists(lab: str):
    for exercise, check in checks_of(lab).items():
        for name in [*check.forbids, *check.allows]:
            known = find(name) is not MISSING or not name.startswith(("qlab.", "torch."))
            assert known or name == "torch.nn.utils.prune", f"{exercise} forbids {name}, which does not exist"


@pytest.mark.parametrize("lab", LABS)
def test_the_solutions_and_what_surrounds_them_use_nothing_forbidden(lab: str):
    sources = [cell.source for cell in released(lab).cells if cell.cell_type == "code"]
    answers = notebooks.answer_cells(released(lab))
    for cell in check_cells(released(lab)).values():
        answer = answers[cell.answer].source
        others = [source for source in sources if source != answer]
        forbids = forbidden_for(cell.check)
        assert not named_in(answer, others, forbids, functions=cell.names)
        assert not named_in(answer, others, forbids)
        assert not named_in_run(sources, answer, forbids, functions=cell.names)


@pytest.mark.parametrize("lab", LABS)
def test_of_the_banks_right_answers_only_qlabs_own_and_second_systems_are_named(lab: str):
    for answer in answers_of(lab):
        if answer.outcome != "right" or is_qlabs_own(answer) or (answer.exercise, answer.name) in SECOND_SYSTEMS:
            continue
        forbids = forbidden_for(checks_of(lab)[answer.exercise])
        for function in answer.functions:
            name, module = getattr(function, "__name__", ""), getattr(function, "__module__", None) or ""
            path = ROOT / "tests/answers" / lab / f"{module.removeprefix(f'bank_{lab}_')}.py"
            if path.exists() and name in (source := plain_source(path)):
                found = named_in(source, (), forbids, functions=[name])
                assert not found, f"{answer.exercise}, {answer.name}: {found}"
                if name in bound_names(source):
                    found = named_in_run([source], source, forbids, functions=[name])
                    assert not found, f"{answer.exercise}, {answer.name}: {found}"


GUARDED = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from qlab.grading.inside import guard
from tests.grading.test_forbidden import LABS, checks_of, forbidden_for
from tests.answers.bank import answers_of
found = []
for lab in LABS:
    for answer in answers_of(lab):
        if answer.outcome == "right" and not answer.slow:
            check = checks_of(lab)[answer.exercise]
            guard.watch(forbidden_for(check), answer.functions)
            verdict = check(*answer.functions, seed=1)
            found.append([answer.exercise, answer.name, str(verdict.outcome), guard.uses()])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_guard_names_the_same_right_answers_of_the_bank_at_call_time():
    run = subprocess.run(
        [sys.executable, "-c", GUARDED], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) > 300
    second = {(exercise, name) for exercise, name, _, uses in found if uses and "qlab" not in name.lower()}
    assert second - QLABS_OWN == SECOND_SYSTEMS
    for _, name, outcome, _ in found:
        assert outcome == "right", f"{name}: the guard changed what it computes"


UNFAIR = {
    "by its name": "from qlab import quantize\ndef f(x): return quantize.quantize_with(x, 1)",
    "as another name": "import qlab.quantize as q\ndef f(x): return q.quantize_with(x, 1)",
    "from its package": "from qlab.quantize import quantize_with as mine\ndef f(x): return mine(x, 1)",
    "from the module that defines it": "from qlab.quantize.grid import quantize_with as g\ndef f(x): return g(x)",
    "imported inside": "def f(x):\n    from qlab.quantize import quantize_with as g\n    return g(x)",
    "imported inside, dotted": "def f(x):\n    import qlab.quantize.grid\n    qlab.quantize.grid.quantize_with(x)",
    "by a star": "from qlab.quantize import *\ndef f(x): return quantize_with(x)",
    "by getattr": "import qlab.quantize\ndef f(x): return getattr(qlab.quantize, 'quantize_' + 'with')(x)",
    "by an f-string": "import qlab.quantize\ndef f(x): return getattr(qlab.quantize, f'quantize_{\"with\"}')(x)",
    "by importlib": "import importlib\ndef f(x): return importlib.import_module('qlab.quantize').quantize_with(x)",
    "by importlib under another name": (
        "from importlib import import_module as load\nm = load('qlab.quantize')\ndef f(x): return m.quantize_with(x)"
    ),
    "by __import__": "def f(x): return __import__('qlab.quantize').quantize.quantize_with(x)",
    "by sys.modules": "import sys\ndef f(x): return sys.modules['qlab.quantize'].quantize_with(x)",
    "by vars": "import qlab.quantize as q\ndef f(x): return vars(q)['quantize_with'](x)",
    "by its dictionary": "import qlab.quantize as q\ndef f(x): return q.__dict__['quantize_with'](x)",
    "by eval": "import qlab.quantize as q\ndef f(x): return eval('q.quantize_with')(x)",
    "by exec": "def f(x): return 1\nexec('from qlab.quantize import quantize_with as f\\nf = f')",
    "as the answer itself": "from qlab.quantize import quantize_with as f",
    "assigned": "from qlab import quantize\nf = quantize.quantize_with",
    "through a lambda": "from qlab import quantize\nf = lambda x: quantize.quantize_with(x)",
    "in a default": "from qlab import quantize\ndef f(x, g=quantize.quantize_with): return g(x)",
    "in a decorator": "from qlab import quantize\n@quantize.quantize_with\ndef f(x): return x",
    "through a helper": "from qlab import quantize\ndef g(x): return quantize.quantize_with(x)\ndef f(x): return g(x)",
    "through a local name": "from qlab import quantize\ndef f(x):\n    q = quantize\n    return q.quantize_with(x)",
    "through a table": "from qlab import quantize\nt = {'g': quantize.quantize_with}\ndef f(x): return t['g'](x)",
    "through an item": "from qlab import quantize\nt = {}\nt['g'] = quantize.quantize_with\ndef f(x): return t['g'](x)",
    "through a method": "from qlab import quantize\nt = []\nt.append(quantize.quantize_with)\ndef f(x): return t[0](x)",
    "through an attribute": "from qlab import quantize\ndef f(x): return f.g(x)\nf.g = quantize.quantize_with",
    "through setattr": "from qlab import quantize\ndef f(x): return f.g(x)\nsetattr(f, 'g', quantize.quantize_with)",
    "through globals": "from qlab import quantize\nglobals()['f'] = quantize.quantize_with\ndef f(x): return f(x)",
    "through a method of a class": (
        "from qlab import quantize\nclass A:\n    def g(self, x): return quantize.quantize_with(x)\n"
        "def f(x): return A().g(x)"
    ),
    "through a class's attribute": "from qlab import quantize as q\nclass A:\n    g = q.quantize_with\ndef f(x): A.g",
    "through partial": "from functools import partial\nfrom qlab import quantize\nf = partial(quantize.quantize_with)",
    "under an if": "from qlab import quantize\nif True:\n    g = quantize.quantize_with\ndef f(x): return g(x)",
    "after a magic": "%matplotlib inline\nfrom qlab import quantize\ndef f(x): return quantize.quantize_with(x)",
    "in a magic cell": "%%time\nfrom qlab import quantize\ndef f(x): return quantize.quantize_with(x)",
    "by a walrus": "from qlab import quantize\ndef f(x): return (g := quantize.quantize_with)(x)",
    "in a comprehension": "from qlab import quantize\ndef f(x): return [quantize.quantize_with(y) for y in x]",
}


@pytest.mark.parametrize("way", UNFAIR)
def test_a_reference_in_place_of_an_answer_is_named(way: str):
    (use,) = named_in(UNFAIR[way], (), QUANTIZE, functions=["f"])
    assert use.name == "qlab.quantize.quantize_with"
    assert named_in(UNFAIR[way], (), QUANTIZE)
    if way != "through globals":  # where its own function comes last
        (use,) = named_in_run([UNFAIR[way]], UNFAIR[way], QUANTIZE, functions=["f"])
        assert use.name == "qlab.quantize.quantize_with"


FAIR = {
    "a comment": "def f(x):\n    # like qlab.quantize.quantize_with\n    return x",
    "a string": "def f(x):\n    'Do what qlab.quantize.quantize_with does.'\n    return 'quantize_with'",
    "one's own function of that name": "def quantize_with(x): return x\ndef f(x): return quantize_with(x)",
    "one's own over an import": "from qlab.quantize import *\ndef quantize_with(x): pass\ndef f(x): quantize_with(x)",
    "an argument of that name": "from qlab.quantize import quantize_with\ndef f(quantize_with): quantize_with(1)",
    "a local of that name": "from qlab.quantize import *\ndef f(x):\n    quantize_with = x\n    return quantize_with",
    "an import that is not used": "from qlab.quantize import quantize_with\ndef f(x): return x",
    "printed beside": "from qlab import quantize\ndef f(x): return x\nprint(quantize.quantize_with(1), f(1))",
    "compared beside": "from qlab import quantize\ndef f(x): return x\nassert f(1) == quantize.quantize_with(1)",
    "kept beside": "from qlab import quantize\ndef f(x): return x\nexpected = quantize.quantize_with(1)",
    "another function of qlab": "from qlab import quantize\ndef f(x): return quantize.sqnr_db(x, x)",
    "a method of that name": "def f(x): return x.quantize_with(1)",
    "no Python": "def f(x: return quantize.quantize_with(",
    "nothing": "",
}


@pytest.mark.parametrize("way", FAIR)
def test_a_fair_use_is_not_named(way: str):
    assert named_in(FAIR[way], (), QUANTIZE, functions=["f"]) == ()
    assert (
        "def f" not in FAIR[way]
        or way == "no Python"
        or not named_in_run([FAIR[way]], FAIR[way], QUANTIZE, functions=["f"])
    )


SETUP = "import torch\nfrom qlab import quantize"
OWN = "def f(x):\n    total = torch.zeros(())\n    return total + x"
BESIDE = {
    "a method of the name eval": "model = quantize.quantize_with(1)\nmodel.eval()",
    "the same name imported": "from qlab.quantize import quantize_with as f\nprint(f(1))",
    "all names imported": "from qlab.quantize import *",
    "an earlier draft": "def f(x): return quantize.quantize_with(x)",
    "an earlier draft in a class": "class f:\n    g = quantize.quantize_with",
    "vars": "want = quantize.quantize_with(1)\nprint(vars(want).keys(), quantize.quantize_with(2))",
    "eval": "print(eval('1 + 1'), quantize.quantize_with(1))",
    "eval of what cannot be read": "for code in ['1']:\n    print(eval(code), quantize.quantize_with(1))",
    "globals asked": "print('want' in globals(), quantize.quantize_with(1))",
    "globals written": "globals()['want'] = quantize.quantize_with(1)\nglobals().update(more=quantize.quantize_with)",
    "setattr": "class Kept: pass\nkept = Kept()\nsetattr(kept, 'want', quantize.quantize_with(1))",
    "a local's name": "total = quantize.quantize_with(torch.ones(3))",
    "magics": "f_time = %timeit -o quantize.quantize_with(1)\nquantize.quantize_with?\nfiles = !ls",
}


@pytest.mark.parametrize("way", BESIDE)
def test_what_stands_beside_an_answer_is_not_named(way: str):
    assert named_in_run([SETUP, BESIDE[way], OWN], OWN, QUANTIZE, functions=["f"]) == ()
    if "f" not in bound_names(BESIDE[way]) and "*" not in BESIDE[way]:
        assert named_in(OWN, [SETUP, BESIDE[way]], QUANTIZE, functions=["f"]) == ()
        assert named_in_run([SETUP, OWN, BESIDE[way]], OWN, QUANTIZE, functions=["f"]) == ()


@pytest.mark.parametrize("way", ["the same name imported", "an earlier draft", "an earlier draft in a class"])
def test_what_comes_after_an_answer_or_instead_of_it_is_named(way: str):
    assert named_in_run([SETUP, OWN, BESIDE[way]], OWN, QUANTIZE, functions=["f"])
    assert named_in_run([SETUP, BESIDE[way], f"1 / 0\n{OWN}"], "", QUANTIZE, functions=["f"], failed=[f"1 / 0\n{OWN}"])


OWN_NAMES = {
    "captured by a pattern": "def f(x):\n    match x:\n        case (want, *_):\n            return want",
    "the rest of a pattern": "def f(x):\n    match x:\n        case {'a': 1, **want}:\n            return want",
    "of a class's body": "class Sum:\n    want = 0.0\n    half = want / 2\ndef f(x): return Sum.half",
}


@pytest.mark.parametrize("way", OWN_NAMES)
def test_a_name_of_the_answers_own_is_not_the_notebooks(way: str):
    other = "want = quantize.quantize_with(1)"
    assert named_in(OWN_NAMES[way], [SETUP, other], QUANTIZE, functions=["f"]) == ()
    assert named_in_run([SETUP, other, OWN_NAMES[way]], OWN_NAMES[way], QUANTIZE, functions=["f"]) == ()


def test_a_class_reads_a_name_of_the_notebook_until_it_has_its_own():
    for body in ("want = want", "want = 1\n    def g(self): return want(1)"):
        source = f"class Sum:\n    {body}\ndef f(x): return Sum().g(x)"
        assert named_in(source, [SETUP, "want = quantize.quantize_with"], QUANTIZE, functions=["f"])


@pytest.mark.parametrize("names", [4, 8])
def test_variables_made_of_each_other_are_read(names: int):
    lines = [
        f"    v{i % names} = v{(i + 1) % names}.sub(v{(3 * i + 2) % names}).add(v{i // 3 % names})" for i in range(60)
    ]
    source = "\n".join(["def f(x):", *(f"    v{i} = x.clone()" for i in range(names)), *lines, "    return v0"])
    assert named_in(source, (), QUANTIZE, functions=["f"]) == ()
    cyclic = source.replace("return v0", "v1 = quantize\n    v0 = v1\n    v1 = v0\n    return v0.quantize_with(x)")
    (use,) = named_in(cyclic, [SETUP], QUANTIZE, functions=["f"])
    assert use.name == QUANTIZE[0]


def test_names_are_read_as_of_the_time_they_are_used():
    swapped = "g = quantize.quantize_with\ndef get(): return g\nf = get()\ng = None\ndef get(): pass"
    assert named_in_run([SETUP, swapped], swapped, QUANTIZE, functions=["f"])
    kept = "g = quantize.quantize_with\nprint(g(1))\ng = torch.round\ndef f(x): return g(x)"
    assert named_in_run([SETUP, kept], kept, QUANTIZE, functions=["f"]) == ()
    turned = "for _ in range(2):\n    f = g\n    g = quantize.quantize_with"
    assert named_in_run([SETUP, "g = 1", turned], turned, QUANTIZE, functions=["f"])


HIDDEN = {
    "before a question": "def f(x): return quantize.quantize_with(x)\nf?",
    "before a line of shell": "def f(x): return quantize.quantize_with(x)\nfiles = !ls",
    "in a magic's line": "%time f = quantize.quantize_with",
    "in a magic without its sign": "time f = quantize.quantize_with",
    "after a prompt": "In [1]: f = quantize.quantize_with",
    "in a text": "code = 'def f(x): return quantize.quantize_with(x)'\nexec(code)",
    "in the shell's names": "get_ipython().user_ns['f'] = quantize.quantize_with",
    "in a text for the shell": "get_ipython().run_cell('f = quantize.quantize_with')",
    "by a function that rebinds": "def f(x): return x\ndef g():\n    global f\n    f = quantize.quantize_with\ng()",
    "in a module as an argument": "def f(x): return (lambda m: m.quantize_with(x))(quantize)",
    "in a module as a default": "def f(x, m=quantize): return m.quantize_with(x)",
    "by a name put together": "def f(x): return getattr(quantize, ''.join(PARTS))(x)",
    "among all of a module": "def f(x): return [v for k, v in vars(quantize).items() if k > 'quantize_w'][0](x)",
    "in a module by sys": "import sys\ndef f(x): return sys.modules.get('qlab.quantize').quantize_with(x)",
    "no Python": "def f(x: return",
}
REFLECTING = {
    "subprocess": "def f(x):\n    import subprocess, sys\n    return subprocess.run([sys.executable, '-c', '1'])",
    "importlib.import_module": "from importlib import import_module as i\nm = i(''.join(P))\ndef f(x): return m.g(x)",
    "__import__": "def f(x): return __import__(''.join(P)).g(x)",
    "sys.modules": "import sys\ndef f(x): return next(m for m in sys.modules.values() if 'quant' in m.__name__).g(x)",
    "types.FunctionType": "from types import FunctionType\ndef f(x): return FunctionType(x, {})",
    ".__code__": "def f(x): return 1\nf.__code__ = other.__code__",
    ".__globals__": "import torch\ndef f(x): return getattr(torch.no_grad, '__globals__')",
    "gc.get_objects": "import gc\ndef f(x): return gc.get_objects()[0](x)",
    "eval": "def f(x): return eval(''.join(P))",
    "qlab.grading": "import qlab.grading.inside.guard as g\ndef f(x): return g.find(x)",
}
HARMLESS = {
    "garbage collected": "import gc\ndef f(x):\n    gc.collect()\n    return x",
    "a module looked for": "import importlib.util, sys\nhas = 'triton' in sys.modules\n"
    "def f(x): return has or importlib.util.find_spec('triton')",
    "compiled": "import re, torch\npattern = re.compile('b' * 2)\ndef f(x): return torch.compile(x.eval()), pattern",
    "evaluated": "import torch\ndef f(x): return eval('0b' + x), eval(f'torch.float{x}'), getattr(torch, x)",
    "its own fields": "class A:\n    def f(self): return dict(vars(self)), self.__dict__\ndef f(x): return A().f()",
    "its own text": f"code = {OWN!r}\nexec(code)",
    "magics beside": "def g(x): return x\ng?\nfiles = !ls\n%time g(1)\ndef f(x): return g(x)",
}


@pytest.mark.parametrize("way", HIDDEN)
def test_a_hidden_reference_is_named(way: str):
    assert named_in_run([SETUP, HIDDEN[way]], HIDDEN[way], QUANTIZE, functions=["f"])


@pytest.mark.parametrize("tool", REFLECTING)
def test_what_reaches_a_function_without_its_name_is_refused_in_an_answer_and_not_beside_it(tool: str):
    source = REFLECTING[tool]
    assert tool in [use.name for use in named_in(source, (), QUANTIZE, functions=["f"])]
    assert tool in [use.name for use in named_in_run([source], source, QUANTIZE, functions=["f"])]
    assert named_in_run([source.replace("f(x)", "g(x)"), SETUP, OWN], OWN, QUANTIZE, functions=["f"]) == ()


@pytest.mark.parametrize("way", HARMLESS)
def test_what_looks_like_it_and_is_harmless_is_not_refused(way: str):
    cells = [SETUP, "want = quantize.quantize_with(1)", HARMLESS[way]]
    assert named_in_run(cells, HARMLESS[way], QUANTIZE, functions=["f"]) == ()


def test_an_answer_whose_cell_was_cut_short_is_read():
    assert named_in_run([SETUP], OWN, QUANTIZE, functions=["f"]) == ()
    assert named_in_run([SETUP], "def f(x): return quantize.quantize_with(x)", QUANTIZE, functions=["f"])


@pytest.mark.parametrize(
    ("source", "bound", "used"),
    [
        ("def low(x): return x\nlow?", {"low"}, set()),
        ("files = !ls\nnext(files)", {"files"}, {"next", "files"}),
        ("%%time -n\nx = y", {"x"}, {"y"}),
        ("%timeit -n 1 -r 1 f(y)", set(), {"f", "y"}),
        ("%%capture out\nx = 1", {"x", "out"}, set()),
        ("%%bash\nls = 1", set(), set()),
        ("%matplotlib inline\nx = 1", {"x"}, set()),
        ("def f(: return x", set(), set()),
        ("%%time\n" * 2_000 + "x = 1", set(), set()),
        ("x?\n" * 30_000, set(), set()),
    ],
)
@pytest.mark.timeout(20)
def test_magics_and_questions_hide_no_name_of_a_cell(source: str, bound: set[str], used: set[str]):
    assert bound_names(source) == bound
    assert used_names(source) == used
    assert "get_ipython" not in touched_names(source)


def test_other_cells_count_where_the_answer_calls_them_and_only_there():
    setup = "import torch\nfrom qlab import quantize"
    helper = "def helper(x): return quantize.quantize_with(x)"
    (use,) = named_in("def f(x): return helper(x)", [setup, helper], QUANTIZE, functions=["f"])
    assert use == Use("qlab.quantize.quantize_with", "a cell your answer uses")
    tries = [setup, helper, "torch.testing.assert_close(f(1), helper(1))", "print(helper(1))", "f_ref = helper(2)"]
    assert named_in("def f(x): return torch.ones(x)", tries, QUANTIZE, functions=["f"]) == ()


def test_an_answer_replaced_in_a_later_cell_is_named():
    later = "from qlab.quantize import quantize_with as f"
    (use,) = named_in("def f(x): return x", [later], QUANTIZE, functions=["f"])
    assert use.how == "a cell your answer uses"


@pytest.mark.parametrize(
    ("source", "forbids", "name"),
    [
        ("from torch import optim\ndef f(p): return optim.Adam(p)", ADAM, "torch.optim"),
        ("import torch\nclass f(torch.optim.AdamW): pass", ADAM, "torch.optim"),
        ("from torch.optim.adam import adam as f", ADAM, "torch.optim"),
        ("import torch\ndef f(q): return torch._C._nn.scaled_dot_product_attention(q, q, q)", (SDPA,), SDPA),
        ("import torch.nn.functional as F\ndef f(q): return F.scaled_dot_product_attention(q, q, q)", (SDPA,), SDPA),
        ("import bitsandbytes as bnb\ndef f(x): return bnb.functional.quantize_4bit(x)", COURSE_WIDE, "bitsandbytes"),
        ("from peft.tuners import lora\ndef f(x): return lora.Linear(x)", COURSE_WIDE, "peft"),
        ("from qlab.checks.memory import weights\nf = weights.weight_gib", COURSE_WIDE, "qlab.checks"),
        (
            "from qlab.roofline import Work\ndef f(r): return Work(1, 2).least_seconds(r)",
            ("qlab.roofline.Work.least_seconds",),
            "qlab.roofline.Work.least_seconds",
        ),
    ],
)
def test_other_roads_to_a_forbidden_object_are_the_same_one(source: str, forbids: tuple[str, ...], name: str):
    assert [use.name for use in named_in(source, (), forbids, functions=["f"])] == [name]


def test_a_record_that_only_holds_data_and_what_the_task_gives_are_not_forbidden():
    names = forbidden_for(checks_of("10_qlora")["fine-tune-budget"])
    assert not [name for name in names if name.startswith("qlab.lora")]
    assert "torch.utils.checkpoint" in forbidden_for(checks_of("07_checkpointing")["checkpoint"])


TANGLED = {
    "parentheses": "(" * 5_000,
    "signs": "f = " + "-" * 20_000 + "1",
    "attributes": "f = " + "x." * 5_000 + "y",
    "attributes that can be parsed": "f = " + "x." * 800 + "y",
    "calls": "f = x" + "()" * 700,
    "itself": "f = f\nf = f",
    "a thousand names, each in two ways": "\n".join(f"a{i} = a{i + 1}\na{i} = a{i + 1}.b" for i in range(1000))
    + "\nf = a0",
    "a long list": "f = [" + "x.y," * 20_000 + "]",
    "no text": "\0",
}


@pytest.mark.parametrize("kind", TANGLED)
@pytest.mark.timeout(20)
def test_a_tangled_source_is_read_or_refused_but_never_raises_or_hangs(kind: str):
    for use in named_in(TANGLED[kind], (TANGLED[kind],), QUANTIZE, functions=["f"]):
        assert use.name == "code too tangled to be read"


def test_a_reference_buried_too_deep_to_be_read_is_refused():
    source = "from qlab import quantize\nf = (" + "-" * 1 + "x." * 5_000 + "y, quantize.quantize_with)[1]"
    assert named_in(source, (), QUANTIZE, functions=["f"])


def a_verdict() -> Verdict:
    parts = (
        PartResult("one", Outcome.RIGHT),
        PartResult("two", Outcome.WRONG, "no", "truncates", "round"),
        PartResult("three", Outcome.EMPTY),
    )
    return Verdict("03_quantization", "quantize-symmetric", 3, parts, seed=1, graded=True)


def test_refusing_takes_every_point_and_names_what_was_used():
    verdict = refused(a_verdict(), [Use("qlab.quantize.quantize_with", "line 3 of your answer")])
    assert verdict.points == 0
    assert [part.misconception for part in verdict.parts] == ["uses-the-reference", "truncates", ""]
    told = verdict.as_json()["parts"][0]
    assert "`qlab.quantize.quantize_with`" in told["thought"]
    assert "line 3" in told["thought"]
    assert refused(a_verdict(), []) == a_verdict()


def in_a_fresh_python(script: str) -> str:
    """Run a script where annotations are not checked: what checks them stands between a caller and the called."""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_the_guard_sees_calls_of_the_learners_code_and_leaves_objects_as_they_are():
    script = """
import copy, functools, inspect, json, pickle
import torch
from torch import nn
from qlab import attention, checkpointing, lora, loss_scaling, optimizers, quantize
from qlab.config import COURSE_MODEL
from qlab.model import Decoder
from qlab.grading.inside import guard
NAMES = ("qlab.quantize.quantize_with", "torch.optim", "torch.utils.checkpoint", "qlab.lora.LoRALinear",
         "torch.nn.functional.scaled_dot_product_attention", "qlab.loss_scaling.LossScaler", "bitsandbytes")
before = torch.optim.Adam, quantize.quantize_with, torch.utils.checkpoint.checkpoint, lora.LoRALinear
signature = inspect.signature(quantize.quantize_with)
guard.install(NAMES)
assert before == (torch.optim.Adam, quantize.quantize_with, torch.utils.checkpoint.checkpoint, lora.LoRALinear)
assert inspect.signature(quantize.quantize_with) == signature
assert "def quantize_with" in inspect.getsource(quantize.quantize_with)
assert pickle.loads(pickle.dumps(quantize.quantize_with)) is quantize.quantize_with
weights = [nn.Parameter(torch.ones(2))]
def seen(run, *given):
    guard.watch(NAMES, given)
    result = run()
    return sorted(name for name, _ in guard.uses())
class Own(torch.optim.Adam): pass
class OwnLayer(lora.LoRALinear): pass
def step():
    optimizer = torch.optim.Adam(weights)
    assert isinstance(optimizer, torch.optim.Optimizer) and isinstance(copy.deepcopy(optimizer), torch.optim.Adam)
    weights[0].grad = torch.ones(2)
    optimizer.step()
q = torch.ones(1, 1, 2, 2)
grid = quantize.symmetric_grid(torch.ones(4), bits=4)
print(json.dumps({
    "nothing": seen(lambda: 1),
    "adam": seen(step),
    "own adam": seen(lambda: Own(weights)),
    "own class": seen(lambda: 1, OwnLayer),
    "own layer": seen(lambda: OwnLayer(nn.Linear(4, 4), rank=1, alpha=1)),
    "function": seen(lambda: quantize.quantize_with(torch.ones(4), grid)),
    "mapped": seen(lambda: list(map(functools.partial(quantize.quantize_with, grid=grid), [torch.ones(4)]))),
    "handed": seen(lambda: 1, functools.partial(quantize.quantize_with)),
    "by torch": seen(lambda: torch.utils.checkpoint.checkpoint_sequential([nn.Tanh()] * 4, 2, torch.ones(2),
                                                                           use_reentrant=False)),
    "builtin": seen(lambda: nn.functional.scaled_dot_product_attention(q, q, q)),
    "scaler": seen(lambda: loss_scaling.LossScaler()),
    "inside qlab": seen(lambda: quantize.quantize_symmetric(torch.ones(4), bits=4)),
    "model": seen(lambda: Decoder(COURSE_MODEL)(torch.zeros(1, 4, dtype=torch.long))),
}))
"""
    found = json.loads(in_a_fresh_python(script).splitlines()[-1])
    assert found == {
        "nothing": [],
        "adam": ["torch.optim"],
        "own adam": ["torch.optim"],
        "own class": ["qlab.lora.LoRALinear"],
        "own layer": ["qlab.lora.LoRALinear"],
        "function": ["qlab.quantize.quantize_with"],
        "mapped": ["qlab.quantize.quantize_with"],
        "handed": ["qlab.quantize.quantize_with"],
        "by torch": ["torch.utils.checkpoint"],
        "builtin": [SDPA],
        "scaler": ["qlab.loss_scaling.LossScaler"],
        "inside qlab": [],
        "model": [],
    }


def test_the_guard_says_so_where_it_was_silenced():
    script = """
import importlib, json
from qlab import quantize
from qlab.grading.inside import guard
NAMES = ("qlab.quantize.quantize_with", "qlab.checks")
grid = quantize.symmetric_grid(__import__("torch").ones(4), bits=4)
note, call, recorded = guard._Record.note, guard._Recorder.__call__, {}
def seen(run):
    guard.watch(NAMES)
    run()
    return sorted(name for name, _ in guard.uses())
def silence(): guard._Record.note = lambda *a: None
def unhook(): guard._Recorder.__call__ = lambda self, *a, **k: self.original(*a, **k)
def undo(): quantize.quantize_with.__code__ = guard._recorders[id(quantize.quantize_with)].original.__code__
exact = importlib.import_module("".join(["qlab.checks.", "flash_attention.exact"]))
lossless = importlib.import_module("qlab.checks.qlora.lossless")
q = __import__("torch").ones(1, 1, 2, 2)
found = {"nothing": seen(lambda: 1), "silenced": seen(silence)}
guard._Record.note = note
found["unhooked"] = seen(unhook)
guard._Recorder.__call__ = call
found |= {"undone": seen(undo), "put back": seen(lambda: 1), "below": seen(lambda: exact.Attention(q, q, q, False))}
print(json.dumps(found | {"noted again": seen(lambda: quantize.quantize_with(q.flatten(), grid))}))
"""
    both = ["qlab.checks", "qlab.quantize.quantize_with"]
    assert json.loads(in_a_fresh_python(script).splitlines()[-1]) == {
        "nothing": [],
        "silenced": both,
        "unhooked": both,
        "undone": both[1:],
        "put back": [],
        "below": both[:1],
        "noted again": both[1:],
    }


def test_only_libraries_are_looked_into_and_nothing_of_the_learners_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert named_in("import evil\ndef f(x): return evil.g(x)", (), QUANTIZE, functions=["f"]) == ()
    assert "evil" not in sys.modules
    assert find("qlab.__main__") is MISSING
    assert forbidden.find("qlab.no_such_module.thing") is MISSING
