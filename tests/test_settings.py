"""Every setting, by every way in; every wrong value, before anything is sent."""

import json
import os
import shutil

import pytest

from conftest import KEY, ROOT, edit_script, environment_for, finish, run_program, start
from scripted_server import PCM, ScriptedServer, say

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
# name, what is given, what travels in the payload
PAYLOAD = [
    ("sample_rate", "44100.0", 44100),
    ("speed", "0.5", 0.5),
    ("speed", "2.0", 2),
    ("language", "hi", "hi"),
    ("consistency", "0.25", 0.25),
    ("similarity", "1", 1),
    ("enhancement", "1.5", 1.5),
]
TEXTS = [
    "Grüße, नमस्ते, வணக்கம், שלום, مرحبا, 你好, 🎉👩‍👩‍👧",
    "It's five o'clock\u2028and no-break\u00a0space",
    'Quotes " and \\ backslash',
    "C#, <b>bold</b> and <speak>SSML</speak>",
]
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
    value = value if isinstance(DEFAULTS[name], str) else json.loads(value)
    return run(server=server, env=env, script=edit_constant(name, value, folder))


def problems(result):
    """Return what the script says of wrong settings, without the usage in front of it."""
    assert result.code == 2, result.err
    assert result.lines[0].startswith("usage: ") and "error: " in result.lines[1]
    return [result.lines[1].partition("error: ")[2], *result.lines[2:]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "value", "sent"), PAYLOAD)
def test_setting_arrives_in_payload(run, server, tmp_path, way, name, value, sent):
    result = give(run, server, tmp_path, way, name, value)
    assert result.code == 0, result.err
    payload = server.peers[0].payload
    assert payload == {**DEFAULTS, name: sent}
    assert type(payload[name]) is type(sent)


@pytest.mark.parametrize("way", [*WAYS, "standard input", "standard input of Windows"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_of_any_script_arrives_unchanged(run, server, tmp_path, way, text):
    if way in WAYS:
        assert give(run, server, tmp_path, way, "text", text).code == 0
    else:
        stdin = b"\xef\xbb\xbf" + text.encode() + b"\r\n" if "Windows" in way else text.encode() + b"\n"
        assert run("--text", "-", server=server, stdin=stdin).code == 0
    assert server.peers[0].payload["text"] == text


def test_key_arrives_in_the_handshake_from_every_way_in(run, server, tmp_path):
    (tmp_path / ".env").write_text(f"SMALLEST_API_KEY = '{KEY}'  # mine\n")
    script = edit_constant("api_key", KEY, tmp_path)
    assert run(server=server, env={"SMALLEST_API_KEY": KEY}).code == 0
    assert run(server=server, env={"SMALLEST_API_KEY": ""}).code == 0
    (tmp_path / ".env").unlink()
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


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("export SMALLEST_TEXT = spaced out  ", "spaced out"),
        ("SMALLEST_TEXT=\"double 'quoted'\"  # comment", "double 'quoted'"),
        ("SMALLEST_TEXT='single # no comment'", "single # no comment"),
        ("SMALLEST_TEXT=a comment # is cut", "a comment"),
        ("SMALLEST_TEXT=C#=a", "C#=a"),
        ("SMALLEST_TEXT='It's quoted'", "It's quoted"),
        ("# SMALLEST_TEXT=no\n\n  \nSMALLEST_TEXT=yes\nnot a line", "yes"),
        ("\ufeffSMALLEST_TEXT=windows\r\nSMALLEST_SPEED=1\r\n", "windows"),
        ("SMALLEST_TEXT= # only a comment\nSMALLEST_TEXT=last", "last"),
        ("SMALLEST_TEXT=first\nSMALLEST_LANGUAGE=\nSMALLEST_SPEED=1", "first"),
    ],
)
def test_dotenv(run, server, tmp_path, line, text):
    (tmp_path / ".env").write_bytes(line.encode())
    assert run(server=server, env={"SMALLEST_TEXT": None}).code == 0
    assert server.peers[0].payload["text"] == text


def test_odd_dotenv(run, server, tmp_path):
    dotenv = tmp_path / ".env"
    dotenv.mkdir()
    assert run(server=server).code == 0
    dotenv.rmdir()
    dotenv.write_bytes(b"SMALLEST_LANGUAGE=fran\xe7ais")
    (problem,) = problems(run(server=server))
    assert problem.startswith(".env cannot be read")
    dotenv.write_text("SMALLEST_TEXT=\nSMALLEST_LANGUAGE=de\n")
    assert problems(run(server=server, env={"SMALLEST_TEXT": None}))[0].startswith("SMALLEST_TEXT is missing")
    assert run(server=server).code == 0 and server.peers[-1].payload["language"] == "de"
    assert server.connections == 2


def test_dotenv_example_is_not_set_yet(run, server, tmp_path):
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    required = ["SMALLEST_API_KEY", "SMALLEST_TEXT", "SMALLEST_VOICE_ID"]
    result = run(env=dict.fromkeys(required))
    assert [line.partition(" is missing")[0] for line in problems(result)] == required
    assert run(server=server).code == 0 and server.peers[0].payload == DEFAULTS


@pytest.mark.parametrize("model", ["lightning_v3.1", "lightning-v4", "lightning_v2"])
def test_other_models_have_other_fields(run, server, model):
    assert run("--model", model, server=server).code == 0
    fields = {name: DEFAULTS[name] for name in ("text", "voice_id", "sample_rate", "speed", "language")}
    assert server.peers[0].payload == (DEFAULTS if model == "lightning_v2" else {**fields, "model": model})


@pytest.fixture
def with_fields(tmp_path):
    """Return a copy of the script that sends three more fields of the protocol, each one line."""
    last = '    "enhancement": 1,\n'
    more = '    "complete_backoff_ms": 4000,\n    "flush": False,\n    "session_id": "",\n'
    return edit_script(tmp_path, (last, last + more))


def test_another_field_is_one_line(run, server, tmp_path, with_fields):
    sent = {"complete_backoff_ms": 4000, "flush": False, "session_id": ""}
    assert run(server=server, script=with_fields).code == 0
    assert server.peers[-1].payload == {**DEFAULTS, **sent}
    flags = ["--complete-backoff-ms", "250.0", "--flush", "true", "--session-id", "s 1"]
    assert run(*flags, server=server, script=with_fields).code == 0
    sent = {"complete_backoff_ms": 250, "flush": True, "session_id": "s 1"}
    assert json.dumps(server.peers[-1].payload) == json.dumps({**DEFAULTS, **sent})


@pytest.mark.parametrize("given", ["complete-backoff-ms soon", "complete-backoff-ms true", "flush yes", "flush 5"])
def test_wrong_value_of_another_field(run, server, with_fields, given):
    flag, value = given.split()
    result = run(f"--{flag}", value, server=server, script=with_fields)
    (problem,) = problems(result)
    assert f"SMALLEST_{flag.upper().replace('-', '_')} is '{value}'" in problem
    assert server.connections == 0


WRONG = [
    ("api_key", ["sk one", "sk_\u00e4", "sk_\r\nX-Evil: 1", "sk_\tx", "Bearer sk_1", " \t "]),
    ("text", ["  ", "\n\t"]),
    ("sample_rate", ["7999", "48001", "24000.5", "x", "nan", "NaN", "1e400", "-1", "true", '"24000"']),
    ("speed", ["0.09", "5.01", "fast", "nan", "inf", "-Infinity", "1,5", "[1]", "null"]),
    ("language", [" "]),
    ("similarity", ["-0.1", "1.1", "true"]),
    ("enhancement", ["-0.1", "2.1", "none"]),
    ("ws_url", ["http://127.0.0.1/", "127.0.0.1", "ws://", "ws://127.0.0.1:99999/", "ws://127.0.0.1/ x"]),
    ("ws_url", ["ws://127.0.0.1/\r\nX-Evil: 1", "wss://[/", "wss://\u00e4.example/", "https://api.example/"]),
    ("ws_url", ["ws://8.8.8.8/"]),
    ("output", ["no/such/folder.wav", "."]),
    ("timeout", ["0", "-1", "nan", "inf", "soon", "3601"]),
]


# One setting of each kind by its flag too; the others differ in nothing.
WAYS_IN = {name: ["variable", "flag"] for name in ("text", "speed", "ws_url")}
WRONG_VALUES = [(n, value, way) for n, values in WRONG for value in values for way in WAYS_IN.get(n, ["variable"])]


@pytest.mark.parametrize(("name", "value", "way"), WRONG_VALUES)
def test_wrong_value(run, server, old_output, name, value, way):
    result = give(run, server, old_output, way, name, value)
    (line,) = problems(result)
    assert line.startswith(f"SMALLEST_{name.upper()} is ") and "allowed: " in line and line.isascii()
    assert value.strip() not in line or name != "api_key" or not value.strip()
    assert server.connections == 0
    assert (old_output / "output.wav").read_bytes() == b"old" and len(list(old_output.iterdir())) == 1


@pytest.mark.parametrize(("name", "value"), [("sample_rate", 24000.5), ("speed", 9), ("text", ""), ("api_key", "")])
def test_wrong_constant(run, server, tmp_path, name, value):
    script = edit_constant(name, value, tmp_path)
    (line,) = problems(run(server=server, script=script, env={"SMALLEST_" + name.upper(): None}))
    assert line.startswith("SMALLEST_" + name.upper()) and server.connections == 0


def test_all_problems_at_once(run):
    flags = ["--speed", "9", "--timeout", "0", "-o", "no/such/folder.wav", "--ws-url", "ws://8.8.8.8/"]
    result = run(*flags, env={"SMALLEST_API_KEY": None, "SMALLEST_TEXT": ""})
    named = [line.split()[0].partition("_")[2].lower() for line in problems(result)]
    assert named == ["api_key", "text", "speed", "ws_url", "output", "timeout"]
    assert "SMALLEST_SPEED is '9'; allowed: 0.1 to 5.0." in result.err


@pytest.mark.parametrize("way", ["flag", "variable", "dotenv"])
def test_placeholder_is_missing(run, server, tmp_path, way):
    placeholder = CONSTANTS["voice_id"].split('"')[1]
    (problem,) = problems(give(run, server, tmp_path, way, "voice_id", placeholder))
    assert problem.startswith("SMALLEST_VOICE_ID is missing")


@pytest.mark.parametrize("arguments", [["--api-key", KEY], [f"--api-key={KEY}"], [KEY], ["-k" + KEY], ["--" + KEY]])
def test_key_on_the_command_line_is_not_repeated(run, arguments):
    (problem,) = problems(run(*arguments))
    assert "SMALLEST_API_KEY" in problem and ("--api-key" in problem) == ("--api-key" in arguments[0])


@pytest.mark.parametrize("key", [KEY, "a-key-without-the-prefix"])
def test_key_in_another_setting_is_not_repeated(run, key):
    result = run("--speed", key, "--ws-url", f"https://host/?key={key}", env={"SMALLEST_API_KEY": key})
    assert len(problems(result)) == 2 and key not in result.err and "[API key]" in result.err


def test_text_that_is_blank_or_not_utf8(run, server, tmp_path):
    assert problems(run("--text", "-", server=server, stdin=b" \n"))
    assert problems(run("--text", "-", server=server, stdin=b"caf\xe9"))
    assert problems(run("--text", b"caf\xe9", server=server))
    process = start("--text", "-", env=environment_for(server), cwd=tmp_path, preexec_fn=lambda: os.close(0))
    assert problems(finish(process)) and server.connections == 0


PRIVATE = "10.1.2.3 172.31.0.1 192.168.7.7 169.254.1.1 100.64.0.1 127.8.8.8 [::1] [fd00::1] [fe80::1]".split()
PUBLIC = "172.32.0.1 192.169.0.1 100.128.0.1 11.1.1.1 [2001:4860::8888]".split()


def test_ws_is_for_addresses_that_are_not_public(tmp_path):
    """Only asks: nothing is sent to any of these."""
    code = "import ws_streaming_api as api\n" + "".join(
        f"try:\n    print(api.check_url('ws://{host}:9/'))\nexcept api.SpeechError as error:\n    print(error)\n"
        for host in [*PRIVATE, *PUBLIC]
    )
    shown = run_program(code, tmp_path).out.decode().splitlines()
    assert shown[: len(PRIVATE)] == [str((host.strip("[]"), 9)) for host in PRIVATE]
    assert len(shown) == len([*PRIVATE, *PUBLIC]) and all("in the clear" in line for line in shown[len(PRIVATE) :])


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "https_proxy"])
def test_ws_never_goes_through_a_proxy(run, server, variable):
    with ScriptedServer(say(PCM)) as proxy:
        env = {variable: f"http://127.0.0.1:{proxy.port}", "SMALLEST_WS_URL": f"ws://localhost:{server.port}/"}
        assert run(env=env).code == 0
        assert proxy.connections == 0


def test_help_shows_an_edited_default_on_any_console(run, tmp_path):
    script = edit_constant("text", "Gr\u00fc\u00dfe 100%", tmp_path)
    result = run("--help", script=script, env={"PYTHONIOENCODING": "ascii"})
    assert result.code == 0 and r"Gr\xfc\xdfe 100%" in " ".join(result.out.decode("ascii").split())


def test_missing_library(run, server, tmp_path):
    (tmp_path / "path").mkdir()
    unrelated = tmp_path / "path" / "websocket.py"
    for source in ("", "raise ImportError", "print 'Python 2'"):
        unrelated.write_text(source)
        result = run(server=server, env={"PYTHONPATH": str(unrelated.parent)})
        assert result.code == 1 and "pip install websocket-client" in result.lines[0] and len(result.lines) == 1
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
