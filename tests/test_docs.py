"""The README, --help, .env.example, the requirements and the script say the same."""

import fnmatch
import re
import runpy
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


def table(heading, number=0):
    """Return a table under a heading, row by row, without its head."""
    text = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\|.*\|\n\|[- |]+\n((?:\|.*\n)+)", text)[number].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_readme_and_help_list_every_setting(rows, tmp_path):
    """Every flag with its meaning and its default, in the same order and in the same words."""
    command = [sys.executable, str(SCRIPT), "--help"]
    text = subprocess.check_output(command, text=True, env=clean_environment(), cwd=tmp_path)
    shown = " ".join(text.partition("show this help message and exit")[2].split())
    entries = re.findall(r"--([a-z-]+) [A-Z_]+(, -\w [A-Z]+)? (.*?) \(default: '(.*?)'\)", shown)
    names = ["SMALLEST_" + flag.upper().replace("-", "_") for flag, *_ in entries]
    assert names == list(rows)[1:] and next(iter(rows)) == "SMALLEST_API_KEY"
    for name, (flag, short, words, default) in zip(names, entries, strict=True):
        flags, shown_default, meaning = rows[name]
        assert flags.startswith(f"`--{flag}`") and ("`-o`" in flags) == bool(short) and shown_default == f"`{default}`"
        assert meaning.startswith(words)


def test_dotenv_example_has_every_setting(rows):
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    given = [f"{name}={default.strip('`')}" for name, (_, default, _) in rows.items()]
    required = [line for line in given if line.endswith(">")]
    assert [line for line in lines if "=" in line] == required + ["#" + line for line in given if line not in required]


def test_readme_speaks_of_the_script_as_it_is(script):
    """Of its exit codes, its messages, its placeholders and its package."""
    manual = script["__doc__"][script["__doc__"].index("Exit codes: ") :].replace("\n", " ")
    for code, meaning, _ in table("When something goes wrong"):
        assert f"{code} {meaning.partition(' (')[0]}" in manual
    source = SCRIPT.read_text(encoding="utf-8")
    told_by_the_system = {"No route to host", "timed out"}
    for symptoms, _ in table("When something goes wrong", 1):
        for symptom in set(re.findall("`(.+?)`", symptoms)) - told_by_the_system:
            status = re.fullmatch(r"status (\d+)", symptom)
            assert (status.group(1) if status else symptom) in source, symptom
    for placeholder in "<TEXT>", "<VOICE>", "<AUTH TOKEN>":
        assert source.count(placeholder) == 1 and f"| `{placeholder}` |" in README
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    assert {re.match("[a-z-]+", line).group() for line in requirements if line[0] != "#"} == {"websocket-client"}
    assert '# dependencies = ["websocket-client"]' in source and "`uv run ws_streaming_api.py`" in README
    assert "pip install --force-reinstall websocket-client" in source


def test_every_host_and_path_of_the_script_is_documented(script):
    """A model with a URL of its own, or a field of the payload, needs its word in the README."""
    source = SCRIPT.read_text(encoding="utf-8")
    names = re.findall(r"(?m)^(\w+) = .*[\"'](?:wss?:/)?/", source)
    assert names == ["HOST", "V2_PATH", "LIVE_PATH"] and all(name in README for name in names)
    fields = {"SMALLEST_" + name.upper() for name in script["PAYLOAD"]}
    assert fields <= {variable.strip("`") for variable, *_ in table("Settings")}


def test_console_block_is_a_real_report(tmp_path):
    """Of the quick start, but for the times."""
    (block,) = re.findall("(?s)```console\n(.*?)```", README)
    command = [sys.executable, str(SERVER), "--", PYTHON, str(SCRIPT)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, env=clean_environment(), cwd=tmp_path)
    times = r"[\d.]+(?= ms)|(?<=factor )[\d.]+"
    assert re.sub(times, "#", block) == re.sub(times, "#", ended.stderr)


def test_visible_top_level():
    """But for what git ignores, such as the files that the README's own lines make."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    names = [path.name for path in ROOT.iterdir() if not path.name.startswith(".")]
    visible = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert visible == {"ws_streaming_api.py", "README.md", "requirements.txt", "tests"}
