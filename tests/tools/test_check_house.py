"""The limits of sizes: each is seen to be broken and to be kept, on a tree made here."""

import pytest
from check_house import FUNCTION_LINES, MODULE_LINES, PARAMETERS, check, main

SEVEN = ", ".join("abcdefg")


def function(lines, parameters="", head="def f"):
    return f"{head}({parameters}):\n" + "    pass\n" * (lines - 1)


@pytest.fixture
def tree(tmp_path):
    """A tree in the shape of this repository; returns a function that writes a file and checks."""
    for folder in ("passionsr/quantization", "baselines", "workflow/scripts"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "passionsr" / "baselines").symlink_to("../baselines")

    def checked(name, text):
        (tmp_path / name).write_text(text)
        return check(tmp_path)

    checked.root = tmp_path
    return checked


def test_an_empty_tree_is_clean(tree, capsys):
    assert main([str(tree.root)]) == 0
    assert capsys.readouterr().out == "0 findings\n"


@pytest.mark.parametrize("folder", ["passionsr", "baselines", "workflow/scripts"])
def test_module_lines(tree, folder, capsys):
    name = f"{folder}/a.py"
    assert tree(name, "x = 1\n" * MODULE_LINES) == []
    assert tree(name, "x = 1\n" * 401) == [f"{name}:1: module of 401 lines, at most 400"]
    assert main([str(tree.root)]) == 1
    assert capsys.readouterr().out.endswith("\n1 findings\n")


@pytest.mark.parametrize("head", ["def f", "async def f", "class A:\n  def f"])
def test_function_lines(tree, head):
    first = 1 + head.count("\n")
    assert tree("passionsr/a.py", function(FUNCTION_LINES, head=head)) == []
    assert tree("passionsr/a.py", "@decorator\n" * 3 + function(FUNCTION_LINES)) == []
    found = tree("passionsr/a.py", function(61, head=head))
    assert found == [f"passionsr/a.py:{first}: f has 61 lines, at most 60"]


@pytest.mark.parametrize(
    ("parameters", "count"),
    [(SEVEN, 7), ("self, " + SEVEN, 7), ("cls, " + SEVEN, 7), (SEVEN + ", h", 8),
     (SEVEN + ", *h", 8), (SEVEN + ", **h", 8), ("a, /, b, *, c, d, e, f, g, h", 8)],
)  # fmt: skip
def test_parameters(tree, parameters, count):
    found = tree("baselines/a.py", function(2, parameters))
    expected = f"baselines/a.py:1: f has {count} parameters, at most {PARAMETERS}"
    assert found == ([expected] if count > PARAMETERS else [])


KERNEL = """
def around(t):
{decorator}    def kernel(a, b, c, d, e, f, g, h):
{body}
    return {maker}(kernel, t)
"""


@pytest.mark.parametrize(
    ("decorator", "maker", "excepted"),
    [("", "_compiled", True), ("    @njit\n", "id", True),
     ("    @numba.njit(cache=True)\n", "id", True), ("", "id", False),
     ("    @functools.cache\n", "id", False)],
)  # fmt: skip
def test_kernels_are_excepted_in_their_files_only(tree, decorator, maker, excepted):
    text = KERNEL.format(decorator=decorator, maker=maker, body="        pass\n" * 70)
    for file in ("cpu_kernels.py", "cpu_functions.py"):
        found = tree(f"passionsr/quantization/{file}", text)
        assert bool(found) != excepted
        (tree.root / "passionsr/quantization" / file).unlink()
    found = tree("passionsr/quantization/layer.py", text)
    assert [line.split(": ")[1].split(" has ")[0] for line in found] == [
        "around",
        "kernel",
        "kernel",
    ]
