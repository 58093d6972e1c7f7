"""Every setting, by every way in; every wrong value, before anything is sent."""

import json
import os
import re
import time

import pytest

from conftest import KEY, LIVE_PATH, ROOT, SCRIPT, V2_PATH, edit_script, environment_for, finish, run_program, start
from scripted_server import PCM, ScriptedServer, say

LIVE_FIELDS = {"text": "Hello.", "voice_id": "ryan", "sample_rate": 24000, "speed": 1, "language": "en"}
DEFAULTS = {**LIVE_FIELDS, "consistency": 0.5, "similarity": 0, "enhancement": 1}


@pytest.fixture
def server():
    with ScriptedServer(say(PCM)) as running:
        yield running


def edit_constant(name, value, folder):
    """Return a copy of the script with another default in it, as a person would edit it."""
    line = re.search(rf'(?m)^({name.upper()} = |    "{name}": )[^,\n]+', SCRIPT.read_text(encoding="utf-8"))
    return edit_script(folder, (line.group(), line.group(1) + repr(value)))


def give(run, server, folder, way, name, value):
    """Run the script with one setting given in one way."""
    variable = "SMALLEST_" + name.upper()
    env = {variable: None}
    if way == "flag":
        return run(f"--{name.replace('_', '-')}={value}", server=server, env=env)
    if way == "variable":
        return run(server=server, env={variable: value + "\r"})  # as a file of Windows that is sourced leaves it
    if way == "dotenv":
        (folder / ".env").write_text(f"{variable}={value}\n", encoding="utf-8")
        return run(server=server, env=env)
    return run(server=server, env=env, script=edit_constant(name, value, folder))


def problem(result):
    """Return the line that says what is wrong; only argparse's own have another one, the usage, in front."""
    assert result.code == 2, result.err
    *usage, said = result.lines
    assert said.isprintable() and len(usage) == (": error: " in said), result.err
    return said


def sent(server):
    """Return the payloads that have reached the server."""
    return [peer.payload for peer in server.peers if hasattr(peer, "payload")]


TEXT = """Grüße, नमस्ते, வணக்கம், שלום, مرحبا, 你好, 🎉👩‍👩‍👧, o'clock\u2028no-break\u00a0" \\, C#, <b>bold</b>"""
# name, what is given, what travels in the payload
VALUES = [("text", TEXT, TEXT), ("language", "hi", "hi"), ("sample_rate", "16000", 16000), ("speed", ".5", 0.5)]
VALUES += [("consistency", "0.25", 0.25), ("similarity", "1.0", 1), ("enhancement", "1.5", 1.5)]


@pytest.mark.parametrize("way", ["flag", "variable", "dotenv", "constant"])
@pytest.mark.parametrize(("name", "value", "expected"), VALUES)
def test_setting_arrives_in_payload(run, server, tmp_path, way, name, value, expected):
    result = give(run, server, tmp_path, way, name, expected if way == "constant" else value)
    assert result.code == 0, result.err
    assert sent(server) == [{**DEFAULTS, name: expected}]
    assert type(sent(server)[0][name]) is type(expected)


def test_text_comes_from_standard_input(run, server):
    assert run("--text", "-", server=server, stdin=TEXT.encode() + b"\n").code == 0
    of_windows = b"\xef\xbb\xbf" + TEXT.encode() + b"\r\n"
    assert run(server=server, env={"SMALLEST_TEXT": "-"}, stdin=of_windows).code == 0
    assert sent(server) == [{**DEFAULTS, "text": TEXT}] * 2


def test_standard_input_that_does_not_block_is_read_to_its_end(server, tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.write(writer, b"The first half, ")
    process = start("--text=-", env=environment_for(server), cwd=tmp_path, stdin=reader)
    os.close(reader)
    time.sleep(2)  # By then it has read the first half.
    with open(writer, "wb") as file:
        file.write(b"the second half.")
    assert finish(process).code == 0
    assert sent(server) == [{**DEFAULTS, "text": "The first half, the second half."}]


def test_flag_beats_variable_beats_dotenv_beats_constant(run, server, tmp_path):
    script = edit_constant("speed", 2, tmp_path)
    for flags, given, dotenv in ((["--speed=3"], "4", "5"), ([], "4", "5"), ([], "", "5"), ([], None, "")):
        (tmp_path / ".env").write_text(f"SMALLEST_SPEED={dotenv}\n")
        assert run(*flags, server=server, env={"SMALLEST_SPEED": given}, script=script).code == 0
    assert [payload["speed"] for payload in sent(server)] == [3, 4, 5, 2]


OTHERS = """PRIVATE_KEY="-----BEGIN\nnot = 'closed\n-----END"\nGREETING='It's open\nMY_SMALLEST_TEXT=no\n"""
DOTENV = [
    (OTHERS + "SMALLEST_TEXT=hello\n" + OTHERS, "hello"),
    ("# SMALLEST_TEXT=no\n\n  \nSMALLEST_TEXT=yes\nnot a line\nSMALLEST_LANGUAGE=\nSMALLEST_SPEED=1", "yes"),
    ("\ufeffSMALLEST_TEXT=windows\r\nSMALLEST_SPEED=1\r\n", "windows"),
    ("SMALLEST_TEXT=1\n export SMALLEST_TEXT = last one  # and a comment\nSMALLEST_TEXT= # only a comment", "last one"),
    ("SMALLEST_TEXT=#Monday, C#=a, it's", "#Monday, C#=a, it's"),
    ("SMALLEST_TEXT='It's # me' # \"said\" he, 'twice'", "It's # me"),
    ('SMALLEST_TEXT="say "hi" to all"  # c', 'say "hi" to all'),
    (r'SMALLEST_TEXT="Say \"yes\", \\ and C:\audio\new."', r'Say "yes", \ and C:\audio\new.'),
]


@pytest.mark.parametrize(("lines", "text"), DOTENV)
def test_dotenv(run, server, tmp_path, lines, text):
    (tmp_path / ".env").write_bytes(lines.encode())
    assert run(server=server, env={"SMALLEST_TEXT": None}).code == 0
    assert sent(server) == [{**DEFAULTS, "text": text}]


def test_all_that_is_missing_is_named_and_can_be_edited(run, server, tmp_path):
    dotenv, names = tmp_path / ".env", ["SMALLEST_API_KEY", "SMALLEST_TEXT", "SMALLEST_VOICE_ID"]
    dotenv.write_bytes((ROOT / ".env.example").read_bytes())
    said = problem(run(env=dict.fromkeys(names)))
    assert sorted(re.findall(r"SMALLEST_\w+", said)) == names and str(dotenv) in said
    script = edit_script(tmp_path, ('"<TEXT>"', '"Hello."'), ('"<VOICE>"', '"ryan"'), ('"<AUTH TOKEN>"', repr(KEY)))
    assert run(server=server, env=dict.fromkeys(names), script=script).code == 0
    dotenv.unlink()
    dotenv.mkdir()  # as a virtual environment may be called
    assert run(server=server, env=dict.fromkeys(names), script=script).code == 0
    assert sent(server) == [DEFAULTS] * 2
    assert [request.headers["Authorization"] for request in server.requests] == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("way", ["flag", "variable", "constant"])
@pytest.mark.parametrize("model", ["lightning_v3.1_pro", "lightning-v21", "Lightning V2", "lightning_v2"])
def test_later_models_have_other_fields(run, server, tmp_path, model, way):
    assert give(run, server, tmp_path, way, "model", model).code == 0
    assert sent(server) == [DEFAULTS if model.lower().endswith("v2") else {**LIVE_FIELDS, "model": model}]
    assert server.requests[0].path == (V2_PATH if model.lower().endswith("v2") else LIVE_PATH)


def test_url_without_a_path_takes_that_of_the_model(run, server):
    for path in "", "/", "/a/b/?c=2", "/@/":
        assert run("--ws-url", server.url.rstrip("/") + path).code == 0
    assert [request.path for request in server.requests] == [V2_PATH, V2_PATH, "/a/b/?c=2", "/@/"]


def test_line_that_somebody_adds_is_a_flag_and_a_variable(run, server, tmp_path):
    """Its value is sent as it stands, and a line that is taken out is not sent."""
    more = {"pause": 1, "say_as": "calm", "flush": False, "dicts": ["id"], "x": None}
    lines = "".join(f"    {name!r}: {value!r},\n" for name, value in more.items())
    log_level = ("OPTIONS = {\n", 'OPTIONS = {\n    "log_level": 5,\n')
    script = edit_script(tmp_path, ('    "consistency": 0.5,', lines), log_level)
    assert run(server=server, script=script).code == 0
    assert run("--pause=2.5", "--say-as=7", "--log-level=6", server=server, script=script).code == 0
    assert run(server=server, script=script, env={"SMALLEST_PAUSE": "3.0", "SMALLEST_SAY_AS": "8"}).code == 0
    fields = {**DEFAULTS, **more}
    del fields["consistency"]
    expected = [fields, {**fields, "pause": 2.5, "say_as": "7"}, {**fields, "pause": 3, "say_as": "8"}]
    assert json.dumps(sent(server), sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert "--log-level" in problem(run(script=script, env={"SMALLEST_LOG_LEVEL": "much"}))


def test_help_fits_any_console(run, tmp_path):
    text = "Gr\u00fc\u00dfe100%"
    script = edit_constant("text", text, tmp_path)
    shown = run("--help", script=script, env={"COLUMNS": "80", "PYTHONIOENCODING": "ascii", "SMALLEST_TEXT": None}).out
    assert max(map(len, shown.decode("ascii").splitlines())) <= 80
    live = re.findall(r'(?m)^LIVE_(?:MODEL|VOICE) = "(.+)"', script.read_text(encoding="utf-8"))
    for words in "SMALLEST_API_KEY", " -o ", ascii(text), *live:
        assert words in shown.decode("ascii")


URL, API_KEY = "The URL", "The API key"
BAD_URLS = ["http://127.0.0.1/", "ws://127.0.0.1/ x", "ws://127.0.0.1/\r\nX-Evil: 1", "ws://:80/", "ws://x:y/"]
BAD_URLS += ["wss://user:S3cret@127.0.0.1/", "wss://\u00e4.example/", f"https://127.0.0.1/?key={KEY}"]
# how it is given, name, values, a pattern of the line that says so
WRONG = [
    ("variable", "api_key", ["sk one", "sk_\r\nX-Evil: 1", "'sk_1'"], API_KEY),
    ("dotenv", "api_key", ["sk_\u00e4"], API_KEY),
    ("flag", "sample_rate", ["7999", "48001", "nan", "24000.5"], "sample_rate"),
    ("constant", "sample_rate", ["16000", 24000.5, None], "sample_rate"),
    ("variable", "speed", ["fast"], "--speed.*'fast'"),
    ("constant", "timeout", ["30", None], "not supported"),
    ("flag", "timeout", ["0", "-1", "nan", "inf", "soon"], "timeout"),
    ("flag", "ws_url", BAD_URLS, URL),
    ("variable", "ws_url", ["ws://api.smallest.ai", "ws://api.smallest.ai:80/x"], "use wss://"),
    ("flag", "voice_id", ["", " ", "<VOICE>"], "SMALLEST_VOICE_ID"),
    ("dotenv", "voice_id", ["<VOICE>", "'ryan", '"ryan'], "SMALLEST_VOICE_ID"),  # quotation marks that stay open
    *[("flag", name, [""], "SMALLEST_" + name.upper()) for name in ("text", "model", "ws_url", "output")],
]
WRONG_VALUES = [(way, name, value, pattern) for way, name, values, pattern in WRONG for value in values]


@pytest.mark.parametrize(("way", "name", "value", "pattern"), WRONG_VALUES)
def test_wrong_value(run, server, old_output, way, name, value, pattern):
    said = problem(give(run, server, old_output, way, name, value))
    assert re.search(pattern, said)
    if pattern in (URL, API_KEY):
        assert str(value) not in said and "S3cret" not in said
    assert server.connections == 0
    assert [path.read_bytes() for path in old_output.glob("output*")] == [b"old"]


def test_what_is_blank_or_not_unicode(run, server, tmp_path):
    assert "SMALLEST_TEXT" in problem(run("--text", "-", server=server, stdin=b" \n"))
    assert "decode" in problem(run("--text", "-", server=server, stdin=b"caf\xe9"))
    result = run("--text", b"caf\xe9", server=server)
    assert result.code == 2 and "encode" in result.lines[-1]
    (tmp_path / ".env").write_bytes(b"SMALLEST_LANGUAGE=fran\xe7ais")
    assert ".env" in problem(run(server=server))
    assert sent(server) == []


def test_main_leaves_the_descriptors_of_a_program_open(server, tmp_path):
    code = """
import os, ws_streaming_api as script
assert [script.main(["-o", "-"]), script.main(["-o", "-"]), script.main(["--text", "-"])] == [0, 0, 2]
os.fstat(0)
print("open")
"""
    values = {"SMALLEST_API_KEY": KEY, "SMALLEST_VOICE_ID": "ryan", "SMALLEST_TEXT": "Hello."}
    result = run_program(code, tmp_path, SMALLEST_WS_URL=server.url, **values)
    assert result.code == 0, result.err
    assert sent(server) == [DEFAULTS] * 2
    assert result.out.count(b"RIFF") == 2 and result.out.endswith(b"open\n")


def test_missing_library(tmp_path):
    """It ends the script in one line, and a program that imports the script can catch it."""
    result = finish(start(str(SCRIPT), script="-S", env=environment_for(None), cwd=tmp_path))
    assert result.code == 1 and len(result.lines) == 1
    assert result.err.startswith("No module named 'websocket'") and "virtual environment" in result.err
    (tmp_path / "websocket.py").touch()
    catch = "try: import ws_streaming_api\nexcept ImportError: print('caught')"
    assert run_program(catch, tmp_path).out == b"caught\n"


@pytest.mark.parametrize("source", ["", "print 'Python 2'"])
@pytest.mark.parametrize("name", ["websocket", "token", "http", "logging", "urllib"])
def test_file_named_like_a_module_is_named_first(run, tmp_path, name, source):
    (tmp_path / f"{name}.py").write_text(source)
    result = run(script=edit_script(tmp_path))
    assert result.code == 1 and len(result.lines) == 1, result.err
    named = name if source or name != "websocket" else "ABNF"  # Python 3.6 names only what is not in it
    assert named in result.err.partition("Activate")[0]


def test_importing_does_nothing(tmp_path):
    assert run_program("import ws_streaming_api", tmp_path).err == ""
    assert not list(tmp_path.iterdir())
