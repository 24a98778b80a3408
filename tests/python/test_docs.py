"""What the documentation shows runs, and what it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from names import MODULES, public_names

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
# A block of Python, and the block of what it prints if one follows.
PROGRAM = re.compile(r"```python\n(.*?)```(?:\s+```text\n(.*?)```)?", re.DOTALL)
PAGES = [README, *(ROOT / "docs" / f"{page}.md" for page in ("control", "executor", "supervisor"))]
PROGRAMS = [program for page in PAGES for program in PROGRAM.findall(page.read_text())]


def test_the_readme_has_programs():
    assert len(PROGRAMS) >= 2


@pytest.mark.parametrize(("source", "printed"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_a_page_runs_and_prints_what_it_says(tmp_path, source, printed):
    script = tmp_path / "program.py"
    script.write_text(source)
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=30
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == (printed or run.stdout)


def test_every_test_that_a_promise_names_exists():
    here = Path(__file__).parent
    tests = {
        name
        for file in here.glob("test_*.py")
        for name in [file.name, *re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)]
    }
    pages = [(ROOT / "docs" / page).read_text() for page in ("problems.md", "shortages.md")]
    named = re.findall(r"`(test_[\w.]+)(\*?)`", "".join(pages))
    assert named
    for name, star in named:
        if star:
            assert any(test.startswith(name) for test in tests), name
        else:
            assert name in tests


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_every_file_that_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([\w./-]+)\)", (ROOT / page).read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "package")
def test_every_public_name_has_a_row_in_the_page_on_compatibility(module):
    page = (ROOT / "docs" / "compatibility.md").read_text()
    title = f"## `multiprocessing{'.' * bool(module)}{module}`\n"
    assert page.count(title) == 1
    section = page.partition(title)[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    named = {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(public_names(module)) - named == set()
    verdicts = {verdict.strip() for _, verdict in rows}
    assert verdicts <= {"same", "better", "different", "shared", "the standard library's for now"}
