"""Every setting, by every way in; every wrong value, before anything is sent."""

import contextlib
import json
import os
import re
import subprocess
import threading

import pytest

from conftest import KEY, LIVE_PATH, ROOT, V2_PATH, edit_script, environment_for, finish, run_program, start
from scripted_server import PCM, ScriptedServer, say

PLACEHOLDERS = {"text": '"<TEXT>"', "voice_id": '"<VOICE>"', "api_key": '"<AUTH TOKEN>"'}
DEFAULTS = {
    "text": "Hello.",
    "voice_id": "ryan",
    "sample_rate": 24000,
    "speed": 1,
    "language": "en",
    "consistency": 0.5,
    "similarity": 0,
    "enhancement": 1,
}
OPTIONS = {"model": "lightning-v2", "ws_url": "wss://api.smallest.ai", "output": "output.wav", "timeout": 30}


@pytest.fixture
def server():
    with ScriptedServer(say(PCM)) as running:
        yield running


def edit_constant(name, value, folder):
    """Return a copy of the script with another default in it, as a person would edit it."""
    if name in PLACEHOLDERS:
        return edit_script(folder, (PLACEHOLDERS[name], repr(value)))
    default = {**DEFAULTS, **OPTIONS}[name]
    return edit_script(folder, (f'    "{name}": {json.dumps(default)},', f'    "{name}": {value!r},'))


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
VALUES = [
    ("text", TEXT, TEXT),
    ("sample_rate", "16000", 16000),
    ("speed", ".5", 0.5),
    ("language", "hi", "hi"),
    ("consistency", "0.25", 0.25),
    ("similarity", "1.0", 1),
    ("enhancement", "1.5", 1.5),
]


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
    with contextlib.suppress(subprocess.TimeoutExpired):  # By then it has read the first half.
        process.wait(timeout=2)
    with open(writer, "wb") as file:
        file.write(b"the second half.")
    assert finish(process).code == 0
    assert sent(server) == [{**DEFAULTS, "text": "The first half, the second half."}]


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
    for flags, given, dotenv in ((["--speed=3"], "4", "5"), ([], "4", "5"), ([], "", "5"), ([], None, "")):
        (tmp_path / ".env").write_text(f"SMALLEST_SPEED={dotenv}\n")
        assert run(*flags, server=server, env={"SMALLEST_SPEED": given}, script=script).code == 0
    assert [payload["speed"] for payload in sent(server)] == [3, 4, 5, 2]


def test_carriage_returns_of_a_sourced_file_are_no_part_of_the_values(run, server, tmp_path):
    values = {"VOICE_ID": "ryan", "API_KEY": KEY, "OUTPUT": "a.wav", "SPEED": "1", "WS_URL": server.url}
    assert run(env={f"SMALLEST_{name}": value + "\r" for name, value in values.items()}).code == 0
    assert sent(server) == [DEFAULTS] and [path.name for path in tmp_path.iterdir()] == ["a.wav"]


OTHERS = """PRIVATE_KEY="-----BEGIN\nnot = 'closed\n-----END"\nGREETING='It's open\nMY_SMALLEST_TEXT=no\n"""
DOTENV = [
    (OTHERS + "SMALLEST_TEXT=hello\n" + OTHERS, "hello"),
    ("# SMALLEST_TEXT=no\n\n  \nSMALLEST_TEXT=yes\nnot a line\nSMALLEST_LANGUAGE=\nSMALLEST_SPEED=1", "yes"),
    ("\ufeffSMALLEST_TEXT=windows\r\nSMALLEST_SPEED=1\r\n", "windows"),
    ("export SMALLEST_TEXT = spaced out  ", "spaced out"),
    ("SMALLEST_TEXT=first\nSMALLEST_TEXT=last one # and a comment\nSMALLEST_TEXT= # only a comment", "last one"),
    ("SMALLEST_TEXT=#Monday, C#=a, it's", "#Monday, C#=a, it's"),
    ("SMALLEST_TEXT='It's # me' # \"said\" he, 'twice'", "It's # me"),
    ('SMALLEST_TEXT="say "hi" to all"  # c', 'say "hi" to all'),
    (r'SMALLEST_TEXT="Say \"yes\" now."', 'Say "yes" now.'),
    (r'SMALLEST_TEXT="two \\ are one"', r"two \ are one"),
    (r'SMALLEST_TEXT="C:\audio\new"', r"C:\audio\new"),
]


@pytest.mark.parametrize(("lines", "text"), DOTENV)
def test_dotenv(run, server, tmp_path, lines, text):
    (tmp_path / ".env").write_bytes(lines.encode())
    assert run(server=server, env={"SMALLEST_TEXT": None}).code == 0
    assert sent(server) == [{**DEFAULTS, "text": text}]


def test_dotenv_that_a_password_manager_serves_as_a_pipe(run, server, tmp_path):
    os.mkfifo(tmp_path / ".env")
    writer = threading.Thread(target=(tmp_path / ".env").write_text, args=("SMALLEST_TEXT=From a pipe.",))
    writer.start()
    assert run(server=server, env={"SMALLEST_TEXT": None}).code == 0
    writer.join()
    assert sent(server) == [{**DEFAULTS, "text": "From a pipe."}]


@pytest.mark.parametrize("with_dotenv", [True, False])
def test_all_that_is_missing_is_named_and_can_be_edited(run, server, tmp_path, with_dotenv):
    if with_dotenv:
        (tmp_path / ".env").write_bytes((ROOT / ".env.example").read_bytes())
    names = ["SMALLEST_API_KEY", "SMALLEST_TEXT", "SMALLEST_VOICE_ID"]
    said = problem(run(env=dict.fromkeys(names)))
    assert sorted(re.findall(r"SMALLEST_\w+", said)) == names
    assert str(tmp_path / ".env") in said
    values = {"text": "Hello.", "voice_id": "ryan", "api_key": KEY}
    script = edit_script(tmp_path, *[(PLACEHOLDERS[name], repr(value)) for name, value in values.items()])
    assert run(server=server, env=dict.fromkeys(names), script=script).code == 0
    assert sent(server) == [DEFAULTS]


@pytest.mark.parametrize("way", ["flag", "variable", "constant"])
@pytest.mark.parametrize("model", ["lightning_v3.1", "lightning-v21", "Lightning V2", "lightning_v2"])
def test_later_models_have_other_fields(run, server, tmp_path, model, way):
    assert give(run, server, tmp_path, way, "model", model).code == 0
    fields = {name: DEFAULTS[name] for name in ("text", "voice_id", "sample_rate", "speed", "language")}
    assert sent(server) == [DEFAULTS if model.lower().endswith("v2") else {**fields, "model": model}]
    assert server.requests[0].path == (V2_PATH if model.lower().endswith("v2") else LIVE_PATH)


def test_url_without_a_path_takes_that_of_the_model(run, server):
    for path in "", "/", "/a/b/?c=2", "/@/":
        assert run("--ws-url", server.url.rstrip("/") + path).code == 0
    assert [request.path for request in server.requests] == [V2_PATH, V2_PATH, "/a/b/?c=2", "/@/"]


def test_whatever_stands_in_the_payload_is_sent_as_it_stands(run, server, tmp_path):
    more = {"backoff_ms": 0, "flush": False, "session_id": "s 1", "dicts": ["id"], "x": None, "text": ["Hello."]}
    lines = "".join(f"    {name!r}: {value!r},\n" for name, value in more.items() if name != "text")
    comma_behind_the_text = (PLACEHOLDERS["text"], '"Hello.",')
    script = edit_script(tmp_path, comma_behind_the_text, ('    "consistency": 0.5,', lines))
    assert run(server=server, env={"SMALLEST_TEXT": None}, script=script).code == 0
    expected = {name: value for name, value in {**DEFAULTS, **more}.items() if name != "consistency"}
    assert json.dumps(sent(server), sort_keys=True) == json.dumps([expected], sort_keys=True)


def test_line_that_somebody_adds_is_a_flag_and_a_variable(run, server, tmp_path):
    fields = ('PAYLOAD = {\n    "text"', 'PAYLOAD = {\n    "pause": 1,\n    "say_as": "calm",\n    "text"')
    script = edit_script(tmp_path, fields, ("OPTIONS = {\n", 'OPTIONS = {\n    "log_level": 5,\n'))
    assert run("--pause=2.5", "--say-as=7", "--log-level=6", server=server, script=script).code == 0
    assert run(server=server, script=script, env={"SMALLEST_PAUSE": "3.0", "SMALLEST_SAY_AS": "8"}).code == 0
    assert [(payload.pop("pause"), payload.pop("say_as")) for payload in sent(server)] == [(2.5, "7"), (3, "8")]
    assert sent(server) == [DEFAULTS, DEFAULTS]  # without what stands in OPTIONS
    assert "--log-level" in problem(run(script=script, env={"SMALLEST_LOG_LEVEL": "much"}))


def test_help_names_every_setting_and_fits_any_console(run, tmp_path):
    script = edit_constant("text", "Gr\u00fc\u00dfe100%", tmp_path)
    env = {"COLUMNS": "80", "PYTHONIOENCODING": "ascii", "SMALLEST_TEXT": None, "SMALLEST_VOICE_ID": None}
    shown = run("--help", script=script, env=env).out.decode("ascii")
    assert max(map(len, shown.splitlines())) <= 80
    for name, value in {**DEFAULTS, **OPTIONS, "text": "Gr\u00fc\u00dfe100%", "voice_id": "<VOICE>"}.items():
        assert re.search(rf"--{name.replace('_', '-')} [A-Z_]+\s+default: {re.escape(ascii(value))}\n", shown), name
    live = re.findall(r'(?m)^LIVE_(?:MODEL|VOICE) = "(.+)"', script.read_text(encoding="utf-8"))
    assert [name for name in ("SMALLEST_API_KEY", " -o ", *live) if name not in shown] == [] and len(live) == 2


URL, API_KEY = "The URL", "The API key"
BAD_URLS = ["http://127.0.0.1/", "ws://127.0.0.1/ x", "ws://127.0.0.1/\r\nX-Evil: 1", "ws://:80/", "ws://x:y/"]
# how it is given, name, values, a pattern of the line that says so
WRONG = [
    ("variable", "api_key", ["sk one", "sk_\r\nX-Evil: 1", "'sk_1'"], API_KEY),
    ("dotenv", "api_key", ["sk_\u00e4"], API_KEY),
    ("constant", "api_key", [("sk_1",)], API_KEY),  # a comma behind it
    ("flag", "sample_rate", ["7999", "48001", "nan"], "sample_rate"),
    ("variable", "sample_rate", ["24000.5"], "sample_rate"),
    ("constant", "sample_rate", ["16000", 24000.5, None], "sample_rate"),
    ("variable", "speed", ["fast"], "--speed.*'fast'"),
    ("flag", "speed", ["nan", "inf"], "JSON"),
    ("constant", "timeout", ["30", None], "not supported"),
    ("flag", "timeout", ["0", "-1", "nan", "inf", "soon"], "timeout"),
    ("flag", "ws_url", [*BAD_URLS, "wss://\u00e4.example/", f"https://127.0.0.1/?key={KEY}"], URL),
    ("dotenv", "ws_url", ["wss://user:S3cret@127.0.0.1/"], URL),
    ("variable", "ws_url", ["ws://api.smallest.ai", "ws://api.smallest.ai:80/x"], "use wss://"),
    ("flag", "voice_id", ["", " ", "<VOICE>"], "SMALLEST_VOICE_ID"),
    ("dotenv", "voice_id", ["<VOICE>", "'ryan", '"ryan'], "SMALLEST_VOICE_ID"),  # quotation marks that stay open
    ("constant", "language", [""], "SMALLEST_LANGUAGE"),
    *[("flag", name, [""], "SMALLEST_" + name.upper()) for name in ("text", "model", "ws_url", "output")],
]
WRONG_VALUES = [(way, name, value, pattern) for way, name, values, pattern in WRONG for value in values]


@pytest.mark.parametrize(("way", "name", "value", "pattern"), WRONG_VALUES)
def test_wrong_value(run, server, old_output, way, name, value, pattern):
    result = give(run, server, old_output, way, name, value)
    if pattern == "JSON":  # found when the payload is made
        result.lines = result.lines[2:]
    said = problem(result)
    assert re.search(pattern, said)
    if pattern in (URL, API_KEY):
        assert str(value) not in said and "S3cret" not in said
    assert sent(server) == [] and (server.connections == 0 or pattern == "JSON")
    assert [path.read_bytes() for path in old_output.glob("output*")] == [b"old"]


@pytest.mark.parametrize("named", ["--voice_id x", "-t Hello.", "Hello."])
def test_what_is_not_known_is_named(run, named):
    assert problem(run("--speed=1", *named.split())).endswith(": " + named)


def test_what_is_blank_or_not_unicode(run, server, tmp_path):
    assert "SMALLEST_TEXT" in problem(run("--text", "-", server=server, stdin=b" \n"))
    assert "decode" in problem(run("--text", "-", server=server, stdin=b"caf\xe9"))
    result = run("--text", b"caf\xe9", server=server)
    assert result.code == 2 and "encode" in result.lines[-1]
    (tmp_path / ".env").write_bytes(b"SMALLEST_LANGUAGE=fran\xe7ais")
    assert ".env" in problem(run(server=server))
    (tmp_path / ".env").unlink()
    process = start("--text", "-", env=environment_for(server), cwd=tmp_path, preexec_fn=lambda: os.close(0))
    assert "descriptor" in problem(finish(process))
    assert sent(server) == []


def test_main_leaves_the_descriptors_of_a_program_open(server, tmp_path):
    (tmp_path / "text").write_text("Hello.")
    code = "import os, ws_streaming_api as script; os.dup2(os.open('text', os.O_RDONLY), 0)\n"
    code += "for turn in 1, 2: os.lseek(0, 0, 0); assert script.main(['-o', '-', '--text', '-']) == 0\n"
    code += "print('open')"
    env = {"SMALLEST_API_KEY": KEY, "SMALLEST_VOICE_ID": "ryan", "SMALLEST_WS_URL": server.url}
    result = run_program(code, tmp_path, **env)
    assert result.code == 0, result.err
    assert sent(server) == [DEFAULTS] * 2
    assert result.out.count(b"RIFF") == 2 and result.out.endswith(b"open\n")


def test_missing_library(run, tmp_path):
    results = [finish(start(str(ROOT / "ws_streaming_api.py"), script="-S", env=environment_for(None), cwd=tmp_path))]
    for source in "", "print 'Python 2'":  # another file of the library's name
        (tmp_path / "websocket.py").write_text(source)
        results.append(run(env={"PYTHONPATH": str(tmp_path)}))
    assert [(result.code, len(result.lines)) for result in results] == [(1, 1)] * 3
    assert results[0].err.startswith("No module named 'websocket'") and "virtual environment" in results[0].err
    catch = "try: import ws_streaming_api\nexcept ImportError as error: print('caught')"
    (tmp_path / "websocket.py").write_text("")
    assert run_program(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{catch}", tmp_path).out == b"caught\n"


@pytest.mark.parametrize("name", ["token", "http", "logging", "urllib"])
def test_file_named_like_a_standard_module_is_named_first(run, tmp_path, name):
    (tmp_path / f"{name}.py").touch()
    result = run(script=edit_script(tmp_path))
    assert result.code == 1 and len(result.lines) == 1, result.err
    assert name in result.err.partition("Activate")[0]


def test_importing_does_nothing(tmp_path):
    assert run_program("import ws_streaming_api", tmp_path).err == ""
    assert not list(tmp_path.iterdir())
