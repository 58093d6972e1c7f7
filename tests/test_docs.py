"""The README, --help, .env.example, the requirements and the script say the same."""

import re
import runpy
import subprocess
import sys

import pytest

from conftest import ROOT, SCRIPT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def table(heading, number=0):
    """Return a table under a heading, row by row, without its head."""
    text = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\|.*\|\n\|[- |]+\n((?:\|.*\n)+)", text)[number].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_readme_and_help_list_every_setting(script):
    text = subprocess.check_output([sys.executable, str(SCRIPT), "--help"], text=True)
    shown = " ".join(text.split())
    rows = {variable.strip("`"): rest for variable, *rest in table("Settings")}
    assert list(rows) == ["SMALLEST_" + name.upper() for name in script["SETTINGS"]]
    for (variable, (flags, default, allowed)), (name, value) in zip(
        rows.items(), script["SETTINGS"].items(), strict=True
    ):
        assert allowed == script["ALLOWED"].get(name, "like the default")
        assert default == (f"`{value}`" if value != "" else "that of the model")
        if name != "api_key":
            assert f"`--{name.replace('_', '-')}`" in flags and ("`-o`" in flags) == (name == "output")
            assert f"--{name.replace('_', '-')} {variable}" in shown
            assert f"{allowed} (default: {value!r})" in shown


def test_dotenv_example_has_every_setting(script):
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if "=" in line]
    assert found == [
        ("" if name in ("api_key", "text", "voice_id") else "#") + f"SMALLEST_{name.upper()}={value}"
        for name, value in script["SETTINGS"].items()
    ]


def test_help_and_readme_have_the_same_exit_codes(script):
    manual = script["__doc__"][script["__doc__"].index("Exit codes: ") :].replace("\n", " ")
    for code, meaning, _ in table("When something goes wrong"):
        assert f"{code} {meaning.partition(' (')[0]}" in manual


def test_every_symptom_is_a_message_of_the_script(script):
    source = SCRIPT.read_text(encoding="utf-8")
    for symptoms, _ in table("When something goes wrong", 1):
        for symptom in re.findall("`(.+?)`", symptoms):
            advised = any(re.search(pattern, symptom) for pattern in script["ADVICE"] if pattern)
            assert advised or symptom in source or symptom == "CERTIFICATE_VERIFY_FAILED", symptom


def test_package_is_the_only_one_and_the_same_everywhere():
    source, requirements = SCRIPT.read_text(encoding="utf-8"), (ROOT / "requirements.txt").read_text()
    names = {re.match("[a-z-]+", line).group() for line in requirements.splitlines() if line[0] != "#"}
    assert names == {"websocket-client"} == set(re.findall(r'dependencies = \["([a-z-]+)', source))


def test_visible_top_level():
    product = {"ws_streaming_api.py", "README.md", "requirements.txt", "tests"}
    visible = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert visible - {"__pycache__", "output.wav"} == product
