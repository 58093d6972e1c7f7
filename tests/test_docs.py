"""The README, --help, .env.example, the requirements and the script say the same."""

import fnmatch
import re
import runpy
import subprocess
import sys

import pytest

from conftest import ROOT, SCRIPT, clean_environment

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def defaults(script):
    """Return the default of every setting, in the order of --help."""
    known = {"api_key": script["API_KEY"], **script["PAYLOAD"], **script["OPTIONS"]}
    return {name: known[name] for name in ["api_key", *script["SETTINGS"]]}


def table(heading, number=0):
    """Return a table under a heading, row by row, without its head."""
    text = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\|.*\|\n\|[- |]+\n((?:\|.*\n)+)", text)[number].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_readme_and_help_list_every_setting(script, defaults):
    text = subprocess.check_output([sys.executable, str(SCRIPT), "--help"], text=True, env=clean_environment())
    shown = " ".join(text.split())
    rows = {variable.strip("`"): rest for variable, *rest in table("Settings")}
    assert list(rows) == ["SMALLEST_" + name.upper() for name in defaults]
    for (variable, (flags, default, meaning)), (name, value) in zip(rows.items(), defaults.items(), strict=True):
        assert default == (f"`{value}`" if value != "" else "the hosted service")
        if name != "api_key":
            kind, words = script["SETTINGS"][name]
            assert f"`--{name.replace('_', '-')}`" in flags and ("`-o`" in flags) == (name == "output")
            assert f"--{name.replace('_', '-')} {variable}" in shown
            assert meaning.startswith(words) and f"{words} (default: '{value}')" in shown
            assert not hasattr(kind, "args") or "{1} to {2}".format(*kind.args) in meaning


def test_dotenv_example_has_every_setting(defaults):
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    required = [f"SMALLEST_{name.upper()}={defaults[name]}" for name in ("api_key", "text", "voice_id")]
    others = [f"#SMALLEST_{name.upper()}={value}" for name, value in list(defaults.items())[3:]]
    assert [line for line in lines if "=" in line] == required + others


def test_readme_speaks_of_the_script_as_it_is(script):
    """Of its exit codes, its messages, its placeholders and its package."""
    manual = script["__doc__"][script["__doc__"].index("Exit codes: ") :].replace("\n", " ")
    for code, meaning, _ in table("When something goes wrong"):
        assert f"{code} {meaning.partition(' (')[0]}" in manual
    source = SCRIPT.read_text(encoding="utf-8")
    for symptoms, _ in table("When something goes wrong", 1):
        for symptom in re.findall("`(.+?)`", symptoms):
            status = re.fullmatch(r"status (\d+)", symptom)
            assert (status.group(1) if status else symptom) in source, symptom
    for placeholder in "<TEXT>", "<VOICE>", "<AUTH TOKEN>":
        assert source.count(placeholder) == 1 and f"| `{placeholder}` |" in README
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    assert {re.match("[a-z-]+", line).group() for line in requirements if line[0] != "#"} == {"websocket-client"}
    assert "--with websocket-client" in README and "pip install websocket-client" in source


def test_visible_top_level():
    """But for what git ignores, such as the files that the README's own lines make."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    names = [path.name for path in ROOT.iterdir() if not path.name.startswith(".")]
    visible = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert visible == {"ws_streaming_api.py", "README.md", "requirements.txt", "tests"}
