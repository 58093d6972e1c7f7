"""The README, --help, .env.example, the requirements and the script say the same."""

import re
import runpy

import pytest
from conftest import ROOT, SCRIPT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def table(heading):
    """Return the first table under a heading, row by row."""
    rows = re.findall(r"(?m)^\| .*$", README.split(f"\n## {heading}\n")[1].split("\n## ")[0])
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return cells[2:]


def test_readme_lists_every_setting(script):
    rows = [(name, variable, allowed) for name, variable, _, _, allowed in table("Settings")]
    assert rows == [(row.name, f"`{row.variable}`", row.allowed) for row in script["SETTINGS"]]
    for (_, _, flags, default, _), row in zip(table("Settings"), script["SETTINGS"], strict=True):
        assert re.findall("`(-[a-z-]+)`", flags) == row.flags
        assert default == (f"`{row.default}`" if row.default != "" else "the model's endpoint")


def test_dotenv_example_lists_every_setting(script):
    lines = [f"# {row.help}: {row.allowed}\n{row.variable}={row.default}" for row in script["SETTINGS"]]
    assert (ROOT / ".env.example").read_text(encoding="utf-8").rstrip().split("\n\n")[1:] == lines


def test_help_and_readme_define_the_same_figures(script):
    manual = script["__doc__"].split("payload:\n")[1].split("\n\n")[0]
    names = re.findall(r"(?m)^  (\S.*?)  ", manual)
    assert names == [name for name, _ in table("What the figures mean")]


def test_help_and_readme_have_the_same_exit_codes(script):
    manual = re.search(r"Exit codes: (.*?)\. What", script["__doc__"], re.DOTALL).group(1)
    codes = [code for row in table("Exit codes") for code in row[0].split(", ")]
    assert re.findall(r"\b\d+\b", manual) == codes == ["0", "1", "2", "130", "143"]
    assert "a setting is wrong,\nfound before anything was sent" in manual


def test_every_symptom_is_a_message_of_the_script():
    source = SCRIPT.read_text(encoding="utf-8")
    for symptoms, _ in table("Troubleshooting"):
        for symptom in re.findall("`(.+?)`", symptoms):
            words = re.sub(r"^\.\.\. |is missing|\d+|\.\.$|: \.\.\.", "", symptom).strip()
            assert words in source or symptom in ("410", "... is missing"), symptom


def test_package_is_the_only_one_and_the_same_everywhere():
    source, requirements = SCRIPT.read_text(encoding="utf-8"), (ROOT / "requirements.txt").read_text()
    names = {re.match("[a-z-]+", line).group() for line in requirements.splitlines() if line[0] != "#"}
    assert names == {"websocket-client"} == set(re.findall(r'dependencies = \["([a-z-]+)', source))


def test_visible_top_level():
    visible = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {"ws_streaming_api.py", "README.md", "requirements.txt", "tests"} <= visible
    assert visible <= {"ws_streaming_api.py", "README.md", "requirements.txt", "tests", "__pycache__", "output.wav"}
