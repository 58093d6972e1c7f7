"""Every setting, by every way in; every wrong value, before anything is sent."""

import json
import os
import shutil
import threading

import pytest

from conftest import KEY, LIVE_PATH, ROOT, V2_PATH, edit_script, environment_for, finish, run_program, start
from scripted_server import PCM, ScriptedServer, say

DEFAULTS = {"text": "Hello.", "voice_id": "ryan", "sample_rate": 24000, "speed": 1, "language": "en"}
DEFAULTS |= {"consistency": 0.5, "similarity": 0, "enhancement": 1}
# name, what is given, what travels in the payload
PAYLOAD = [("sample_rate", "16000", 16000), ("speed", ".5", 0.5), ("speed", "2.", 2), ("speed", "1e0", 1)]
PAYLOAD += [
    ("language", "hi", "hi"),
    ("consistency", "0.25", 0.25),
    ("similarity", "1.0", 1),
    ("enhancement", "1.5", 1.5),
]
TEXTS = ["Grüße, नमस्ते, வணக்கம், שלום, مرحبا, 你好, 🎉👩‍👩‍👧", "It's five o'clock\u2028and no-break\u00a0space"]
TEXTS += ['Quotes " and \\ backslash', "C#, <b>bold</b> and <speak>SSML</speak>"]
WAYS = ["flag", "variable", "dotenv", "constant"]


@pytest.fixture
def server():
    with ScriptedServer(say(PCM)) as running:
        yield running


CONSTANTS = {"text": 'TEXT = "<TEXT>"', "voice_id": 'VOICE_ID = "<VOICE>"', "api_key": 'API_KEY = "<AUTH TOKEN>"'}


def edit_constant(name, value, folder):
    """Return a copy of the script with another default in it, as a person would edit it."""
    if name in CONSTANTS:
        return edit_script(folder, (CONSTANTS[name], f"{name.upper()} = {value!r}"))
    return edit_script(folder, (f'    "{name}": {json.dumps(DEFAULTS[name])},', f'    "{name}": {value!r},'))


def give(run, server, folder, way, name, value):
    """Run the script with one setting given in one way."""
    variable = "SMALLEST_" + name.upper()
    env = {variable: None}
    if way == "flag":
        return run(f"--{name.replace('_', '-')}={value}", server=server, env=env)
    if way == "variable":
        return run(server=server, env={variable: value})
    if way == "dotenv":
        (folder / ".env").write_text(f"{variable}={value}\n", encoding="utf-8")
        return run(server=server, env=env)
    return run(server=server, env=env, script=edit_constant(name, value, folder))


def problem(result):
    """Return what the script says of a wrong setting, without the usage in front of it."""
    assert result.code == 2 and len(result.lines) == 2, result.err
    assert result.lines[0].startswith("usage: ") and result.lines[1].isascii()
    return result.lines[1].partition("error: ")[2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "value", "sent"), PAYLOAD)
def test_setting_arrives_in_payload(run, server, tmp_path, way, name, value, sent):
    result = give(run, server, tmp_path, way, name, value)
    assert result.code == 0, result.err
    payload = server.peers[0].payload
    assert payload == {**DEFAULTS, name: sent}
    assert type(payload[name]) is type(sent)


STDIN = {"standard input": "--text=-", "standard input of Windows": "--text=-", "standard input by variable": ""}


@pytest.mark.parametrize("way", [*WAYS, *STDIN])
@pytest.mark.parametrize("text", TEXTS)
def test_text_of_any_script_arrives_unchanged(run, server, tmp_path, way, text):
    if way in WAYS:
        assert give(run, server, tmp_path, way, "text", text).code == 0
    else:
        stdin = b"\xef\xbb\xbf" + text.encode() + b"\r\n" if "Windows" in way else text.encode() + b"\n"
        assert run(*STDIN[way].split(), server=server, env={"SMALLEST_TEXT": "-"}, stdin=stdin).code == 0
    assert server.peers[0].payload["text"] == text


def test_key_arrives_in_the_handshake(run, server, tmp_path):
    (tmp_path / ".env").write_text(f"SMALLEST_API_KEY = '{KEY}'  # mine\n")
    assert run(server=server, env={"SMALLEST_API_KEY": KEY}).code == 0
    assert run(server=server, env={"SMALLEST_API_KEY": ""}).code == 0
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()  # as a virtual environment may be called
    script = edit_constant("api_key", KEY + "\n", tmp_path)
    assert run(server=server, env={"SMALLEST_API_KEY": None}, script=script).code == 0
    assert [request.headers["Authorization"] for request in server.requests] == [f"Bearer {KEY}"] * 3


def test_flag_beats_variable_beats_dotenv_beats_constant(run, server, tmp_path):
    script = edit_constant("speed", 2, tmp_path)
    speeds = []
    for flag, variable, dotenv in (("3", "4", "5"), (None, "4", "5"), (None, "", "5"), (None, None, "")):
        (tmp_path / ".env").write_text(f"SMALLEST_SPEED={dotenv}\n")
        flags = ["--speed", flag] if flag else []
        assert run(*flags, server=server, env={"SMALLEST_SPEED": variable}, script=script).code == 0
        speeds.append(server.peers[-1].payload["speed"])
    assert speeds == [3, 4, 5, 2]


def test_carriage_returns_of_a_sourced_file_are_no_part_of_the_values(run, server, tmp_path):
    sent = {"TEXT": "Hello.", "VOICE_ID": "ryan", "API_KEY": KEY, "OUTPUT": "a.wav", "SPEED": "1", "WS_URL": server.url}
    assert run(env={f"SMALLEST_{name}": value + "\r" for name, value in sent.items()}).code == 0
    assert server.peers[0].payload == DEFAULTS and [path.name for path in tmp_path.iterdir()] == ["a.wav"]


OTHERS = """PRIVATE_KEY="-----BEGIN\nnot = 'closed\n-----END"\nGREETING='It's open\nMY_SMALLEST_TEXT=no\n"""
DOTENV = [(OTHERS + "SMALLEST_TEXT=hello\n" + OTHERS, "hello"), ("SMALLEST_TEXT=#Monday", "#Monday")]
DOTENV += [("SMALLEST_TEXT='It's me, it's you.'", "It's me, it's you."), ("SMALLEST_TEXT=It's me", "It's me")]
DOTENV += [("SMALLEST_TEXT='It's me' # \"said\" he, 'twice'", "It's me"), ("SMALLEST_TEXT=C#=a", "C#=a")]
DOTENV += [('SMALLEST_TEXT="say "hi" to all"', 'say "hi" to all'), ("SMALLEST_TEXT='a # b'", "a # b")]
DOTENV += [("export SMALLEST_TEXT = spaced out  ", "spaced out"), ("SMALLEST_TEXT=a comment # is cut", "a comment")]
DOTENV += [("# SMALLEST_TEXT=no\n\n  \nSMALLEST_TEXT=yes\nnot a line", "yes")]
DOTENV += [("\ufeffSMALLEST_TEXT=windows\r\nSMALLEST_SPEED=1\r\n", "windows")]
DOTENV += [("SMALLEST_TEXT= # only a comment\nSMALLEST_TEXT=last", "last"), ("SMALLEST_TEXT=\"a 'b'\"  # c", "a 'b'")]
DOTENV += [("SMALLEST_TEXT=first\nSMALLEST_LANGUAGE=\nSMALLEST_SPEED=1", "first")]


@pytest.mark.parametrize(("line", "text"), DOTENV)
def test_dotenv(run, server, tmp_path, line, text):
    (tmp_path / ".env").write_bytes(line.encode())
    assert run(server=server, env={"SMALLEST_TEXT": None}).code == 0
    assert server.peers[0].payload == {**DEFAULTS, "text": text}


UNREADABLE = {
    b'SMALLEST_TEXT="first line\nsecond line"\n': "a quotation mark of SMALLEST_TEXT is not closed",
    b"SMALLEST_SPEED=1\nSMALLEST_VOICE_ID='ryan\n": "a quotation mark of SMALLEST_VOICE_ID is not closed",
    b"SMALLEST_LANGUAGE=fran\xe7ais": "'utf-8' codec can't decode byte 0xe7 in position 22: invalid continuation byte",
}


@pytest.mark.parametrize(("content", "words"), UNREADABLE.items())
def test_dotenv_that_cannot_be_read(run, server, tmp_path, content, words):
    (tmp_path / ".env").write_bytes(content)
    assert problem(run(server=server)) == ".env cannot be read: " + words
    assert server.connections == 0


def test_dotenv_that_a_password_manager_serves_as_a_pipe(run, server, tmp_path):
    os.mkfifo(tmp_path / ".env")
    writer = threading.Thread(target=(tmp_path / ".env").write_text, args=("SMALLEST_TEXT=From a pipe.",))
    writer.start()
    assert run(server=server, env={"SMALLEST_TEXT": None}).code == 0
    writer.join()
    assert server.peers[0].payload["text"] == "From a pipe."


@pytest.mark.parametrize("with_dotenv", [True, False])
def test_all_that_is_missing_is_named_at_once(run, server, tmp_path, with_dotenv):
    if with_dotenv:
        shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    variables = ["SMALLEST_API_KEY", "SMALLEST_TEXT", "SMALLEST_VOICE_ID"]
    assert problem(run(env=dict.fromkeys(variables))) == f"set {', '.join(variables)}, or edit the top of the script"
    assert run(server=server, env={"SMALLEST_TEXT": None}, script=edit_constant("text", "Edited.", tmp_path)).code == 0
    assert server.peers[0].payload == {**DEFAULTS, "text": "Edited."}


@pytest.mark.parametrize("way", ["flag", "variable", "payload"])
@pytest.mark.parametrize("model", ["lightning_v3.1", "lightning-v21", "Lightning V2", "LIGHTNING-V2", "lightning_v2"])
def test_other_models_have_other_fields(run, server, tmp_path, model, way):
    flags = ["--model", model] if way == "flag" else []
    env = {"SMALLEST_WS_URL": server.url.rstrip("/"), "SMALLEST_MODEL": model if way == "variable" else None}
    more = f'"model": "{model}",' if way == "payload" else ""
    script = edit_script(tmp_path, ('    "language": "en",', '    "language": "en",' + more))
    assert run(*flags, env=env, script=script).code == 0
    fields = {name: DEFAULTS[name] for name in ("text", "voice_id", "sample_rate", "speed", "language")}
    assert server.peers[0].payload == (DEFAULTS if model.lower().endswith("v2") else {**fields, "model": model})
    assert server.requests[0].path == (V2_PATH if model.lower().endswith("v2") else LIVE_PATH)


GIVEN_PATHS = {"": V2_PATH, "/": V2_PATH, "/a/b/?timeout=20": "/a/b/?timeout=20", "/@/": "/@/"}


@pytest.mark.parametrize(("given", "asked"), GIVEN_PATHS.items())
def test_url_without_a_path_takes_that_of_the_model(run, server, given, asked):
    assert run("--ws-url", server.url.rstrip("/") + given).code == 0
    assert server.requests[0].path == asked


def test_another_field_is_one_line(run, server, tmp_path):
    more = {"complete_backoff_ms": 0, "flush": False, "session_id": "s 1", "pronunciation_dicts": ["id"], "x": None}
    lines = "".join(f"    {name!r}: {value!r},\n" for name, value in more.items())
    script = edit_script(tmp_path, ('    "consistency": 0.5,\n', lines))
    assert run(server=server, script=script).code == 0
    sent = {name: value for name, value in {**DEFAULTS, **more}.items() if name not in ("consistency", "x")}
    assert json.dumps(server.peers[0].payload, sort_keys=True) == json.dumps(sent, sort_keys=True)


@pytest.mark.parametrize("edit", ["taken out", "None"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_field_that_is_taken_out_is_sent_only_where_its_flag_or_variable_is_given(run, server, tmp_path, name, edit):
    default = {"text": "TEXT", "voice_id": "VOICE_ID"}.get(name, json.dumps(DEFAULTS[name]))
    script = edit_script(tmp_path, (f'    "{name}": {default},\n', f'    "{name}": None,\n' * (edit == "None")))
    flag, variable, value = f"--{name.replace('_', '-')}", "SMALLEST_" + name.upper(), str(DEFAULTS[name])
    result = run(server=server, env={variable: None}, script=script)
    if name in ("text", "voice_id", "sample_rate"):
        assert problem(result) == f"set {variable}, or edit the top of the script"
    else:
        assert result.code == 0
        assert server.peers[0].payload == {key: value for key, value in DEFAULTS.items() if key != name}
    for arguments, env in ([], {variable: value}), ([flag, value], {}):
        assert run(*arguments, server=server, env=env, script=script).code == 0
        assert server.peers[-1].payload == DEFAULTS


RATE, NUMBER = "is not a number from 8000 to 48000", "is not a number from {} to {}"
URL = "The URL has to be wss://host/path, or ws://host/path, without user and password"
BAD_KEY = "The API key is empty, in quotation marks, or not printable ASCII without blanks"
UNIT = ["-0.1", "1.1", "true"]
WRONG = [
    ("api_key", ["sk one", "sk_\u00e4", "sk_\r\nX-Evil: 1", "sk_\tx", '"sk_1"', "'sk_1'", "Basic sk_1"], BAD_KEY),
    ("sample_rate", ["7999", "48001", "24000.5", "x", "nan", "1e400", "-1", "true", '"24000"'], RATE),
    ("speed", ["0.09", "5.01", "fast", "nan", "inf", "-Infinity", "1,5", "[1]"], NUMBER.format("0.1", "5.0")),
    ("consistency", UNIT, NUMBER.format("0.0", "1.0")),
    ("similarity", UNIT, NUMBER.format("0.0", "1.0")),
    ("enhancement", ["-0.1", "2.1", "none"], NUMBER.format("0.0", "2.0")),
    ("timeout", ["0", "-1", "nan", "inf", "soon", "3601"], NUMBER.format("0.1", "3600.0")),
    ("ws_url", ["http://127.0.0.1/", "127.0.0.1", "wss://?", "ws://127.0.0.1/ x", "ws://:80/", "ws://x:y/"], URL),
    ("ws_url", ["ws://127.0.0.1/\r\nX-Evil: 1", "wss://[/", "wss://\u00e4.example/", "https://api.example/"], URL),
    ("ws_url", ["wss://user:S3cret@127.0.0.1/", "wss://S3cret@[::1]:1"], URL),
    ("voice_id", [CONSTANTS["voice_id"].split('"')[1]], "set SMALLEST_VOICE_ID, or edit the top of the script"),
    ("ws_url", ["ws://api.smallest.ai", "ws://api.smallest.ai:80/x"], "in the clear: use wss://"),
]
# One setting of each kind by its flag too; the others differ in nothing.
WAYS_IN = {"speed": ["variable", "flag"], "ws_url": ["variable", "flag"], "voice_id": ["variable", "flag", "dotenv"]}
WRONG_VALUES = [(n, v, words, way) for n, vs, words in WRONG for v in vs for way in WAYS_IN.get(n, ["variable"])]
WRONG_VALUES += [("sample_rate", 24000.5, RATE, "constant"), ("speed", 9, NUMBER.format("0.1", "5.0"), "constant")]
WRONG_VALUES += [("sample_rate", 0, RATE, "constant"), ("api_key", "sk one", BAD_KEY, "constant")]
WRONG_VALUES += [("api_key", ("sk_1",), BAD_KEY, "constant")]  # a comma behind it
EMPTY = ["text", "voice_id", "language", "model", "ws_url", "output"]
WRONG_VALUES += [(name, value, "it is empty", "flag") for name in EMPTY for value in ("", " ")]
WRONG_VALUES += [(name, "", "it is empty", "constant") for name in ("text", "voice_id", "language")]


@pytest.mark.parametrize(("name", "value", "words", "way"), WRONG_VALUES)
def test_wrong_value(run, server, old_output, name, value, words, way):
    said = problem(give(run, server, old_output, way, name, value))
    if "number" in words:
        assert said == f"argument --{name.replace('_', '-')}: {str(value)!r} {words}"
    else:
        assert said.endswith(words) and (not str(value).strip() or str(value) not in said) and "S3cret" not in said
    assert server.connections == 0 and [path.read_bytes() for path in old_output.glob("output*")] == [b"old"]


UNKNOWN = {"--voice_id x --speed 1": "--voice_id x", "-t Hello.": "-t Hello.", "Hello.": "Hello."}
UNKNOWN |= {f"--api-key {KEY}": "--api-key [API key]", f"--api-key={KEY}": "--api-key=[API key]"}
UNKNOWN |= {f"--{KEY}": "--[API key]", KEY: "[API key]", f"-k{KEY}": "-k[API key]"}


@pytest.mark.parametrize(("arguments", "named"), UNKNOWN.items())
def test_what_is_not_known_is_named(run, arguments, named):
    assert problem(run(*arguments.split())) == "unrecognized arguments: " + named.rstrip(".")


def test_key_in_another_setting_is_not_repeated(run):
    assert "'[API key]' is not a number" in problem(run("--speed", KEY))
    assert problem(run("--ws-url", f"https://host/?key={KEY}")) == URL


def test_text_that_is_blank_or_not_utf8(run, server, tmp_path):
    assert problem(run("--text", "-", server=server, stdin=b" \n")) == "argument --text: it is empty"
    for result in run("--text", "-", server=server, stdin=b"caf\xe9"), run("--text", b"caf\xe9", server=server):
        assert problem(result).startswith("argument --text: the text cannot be read: 'utf-8' codec can't ")
    process = start("--text", "-", env=environment_for(server), cwd=tmp_path, preexec_fn=lambda: os.close(0))
    assert problem(finish(process)) == "argument --text: the text cannot be read: [Errno 9] Bad file descriptor"
    assert server.connections == 0


@pytest.mark.parametrize("columns", ["40", "200"])
def test_help_fits_any_console(run, tmp_path, columns):
    script = edit_constant("text", "Gr\u00fc\u00dfe100%", tmp_path)
    env = {"COLUMNS": columns, "PYTHONIOENCODING": "ascii", "SMALLEST_TEXT": None}
    shown = run("--help", script=script, env=env).out.decode("ascii")
    assert 70 < max(map(len, shown.splitlines())) <= 80 and r"'Gr\xfc\xdfe100%'" in shown


def test_missing_library(run, server, tmp_path):
    unrelated = tmp_path / "websocket.py"
    imports = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ws_streaming_api"
    for source in ("", "raise ImportError", "print 'Python 2'"):
        unrelated.write_text(source)
        for result in run(server=server, env={"PYTHONPATH": str(tmp_path)}), run_program(imports, tmp_path):
            assert result.code == 1 and len(result.lines) == 1
            assert result.lines[0].endswith("Run: python -m pip install --force-reinstall websocket-client")
    assert server.connections == 0


def test_three_edited_placeholders_are_enough(run, server, tmp_path):
    values = {"text": "Hello.", "voice_id": "ryan", "api_key": KEY}
    script = edit_script(tmp_path, *[(CONSTANTS[name].split('"')[1], value) for name, value in values.items()])
    env = dict.fromkeys(["SMALLEST_TEXT", "SMALLEST_VOICE_ID", "SMALLEST_API_KEY"])
    assert run(server=server, env=env, script=script).code == 0
    assert server.peers[0].payload == DEFAULTS


def test_importing_does_nothing(tmp_path):
    assert run_program("import ws_streaming_api", tmp_path).err == ""
    assert not list(tmp_path.iterdir())
