"""The README, --help, .env.example, the requirements and the script say the same."""

import fnmatch
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from conftest import PYTHON, ROOT, SCRIPT, SERVER, clean_environment

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def rows():
    """Return the README's rows of the settings: flags, default and meaning by the name of the variable."""
    return {variable.strip("`"): rest for variable, *rest in table("Settings")}


def table(heading):
    """Return a table under a heading, row by row, without its head."""
    text = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\|.*\|\n\|[- |]+\n((?:\|.*\n)+)", text)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_readme_and_help_list_every_setting(rows, tmp_path):
    """Every flag with its default; what a value may be stands in the README as it does in the script."""
    command = [sys.executable, str(SCRIPT), "--help"]
    text = subprocess.check_output(command, text=True, env=clean_environment(), cwd=tmp_path)
    entries = re.findall(r"--([a-z-]+) [A-Z_]+\s+default: '?(.*?)'?\n", text)
    defaults = {"SMALLEST_" + flag.upper().replace("-", "_"): default for flag, default in entries}
    assert defaults.keys() | {"SMALLEST_API_KEY"} == rows.keys()
    for name, default in defaults.items():
        flag = "--" + name[9:].lower().replace("_", "-")
        assert rows[name][0].startswith(f"`{flag}`") and rows[name][1] == f"`{default}`"
    remarks = re.findall(r'(?m)^    "(\w+)": .*?,  # (.*)$', SCRIPT.read_text(encoding="utf-8"))
    for name, remark in remarks:
        assert remark in rows["SMALLEST_" + name.upper()][2]


def test_dotenv_example_has_every_setting(rows):
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    given = [f"{name}={default.strip('`')}" for name, (_, default, _) in rows.items()]
    required = [line for line in given if line.endswith(">")]
    assert [line for line in lines if "=" in line] == required + ["#" + line for line in given if line not in required]


def test_readme_speaks_of_the_script_as_it_is(script):
    """Of its exit codes, its messages, its placeholders, its package, and the model that the hosted service runs."""
    codes = re.search(r"Exit codes: (.*?)\.", README).group(1).replace(" (Ctrl-C)", "")
    assert codes in script["__doc__"].replace("\n", " ")
    source = SCRIPT.read_text(encoding="utf-8")
    told_by_others = {"CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER"}
    for symptoms, _ in table("When something goes wrong"):
        for symptom in set(re.findall("`(.+?)`", symptoms)) - told_by_others:
            assert re.sub(r"status \d+", "status %d", symptom) in source, symptom
    for placeholder in "<TEXT>", "<VOICE>", "<AUTH TOKEN>":
        assert source.count(placeholder) == 1 and f"| `{placeholder}` |" in README
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    assert {re.match("[a-z-]+", line).group() for line in requirements if line[0] != "#"} == {"websocket-client"}
    assert '# dependencies = ["websocket-client"]' in source and "`uv run ws_streaming_api.py`" in README
    model, voice = script["LIVE_MODEL"], script["LIVE_VOICE"]
    assert source.count(model) == source.count(voice) == 1
    assert f"--model {model} --voice-id {voice}" in README and f"`{voice}` for `{model}`" in README
    assert set(re.findall(r"lightning_v[\w.]+", README)) == {model}


def test_console_block_is_a_real_report(tmp_path):
    """Of the quick start's own command, but for the times, the folder and the digits of the partial file."""
    (block,) = re.findall("(?s)```console\n(.*?)```", README)
    command = README.split("\n## Quick start\n")[1].split("```")[1].splitlines()[-1]
    arguments = shlex.split(command)[1:]
    programs = {"tests/lightning_server.py": SERVER, "ws_streaming_api.py": SCRIPT, ".venv/bin/python": PYTHON}
    command = [sys.executable, *[str(programs.get(argument, argument)) for argument in arguments]]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, env=clean_environment(), cwd=tmp_path)
    changing = r"[\d.]+(?= ms)|(?<=factor )[\d.]+|(?<=: )/.*/|(?<=partial-)[0-9a-f]{8}"
    assert re.sub(changing, "#", block) == re.sub(changing, "#", ended.stderr)


def test_visible_top_level():
    """But for what git ignores, such as the files that the README's own lines make."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    names = [path.name for path in ROOT.iterdir() if not path.name.startswith(".")]
    visible = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert visible - {"findings"} == {"ws_streaming_api.py", "README.md", "requirements.txt", "tests"}
