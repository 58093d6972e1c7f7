"""Every setting, by every way in; every wrong value, before anything is sent."""

import os
import re
import shutil

import pytest
from conftest import KEY, ROOT, SCRIPT, clean_environment, finish, start
from scripted_server import ScriptedServer

# name, what is given, what travels in the payload
PAYLOAD = [
    ("text", "It's five o'clock", "It's five o'clock"),
    ("voice_id", "emily", "emily"),
    ("sample_rate", "8000", 8000),
    ("sample_rate", "44100.0", 44100),
    ("speed", "0.5", 0.5),
    ("speed", "2.0", 2),
    ("language", "hi", "hi"),
    ("consistency", "0.25", 0.25),
    ("consistency", "1", 1),
    ("similarity", "0.75", 0.75),
    ("enhancement", "2", 2),
    ("enhancement", "1.5", 1.5),
]
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
TEXTS = [
    "Grüße aus Köln",
    "नमस्ते, आप कैसे हैं?",
    "வணக்கம்",
    "שלום עולם",
    "مرحبا بالعالم",
    "你好世界",
    "Emoji: 🎉👩‍👩‍👧 done",
    "Line separator \u2028 and no-break\u00a0space",
    'Quotes " and \\ backslash',
    "C# and #1, <b>bold</b> <speak>SSML</speak>",
]
WAYS = ["flag", "variable", "dotenv", "constant"]


def speak(peer):
    peer.hear()
    peer.chunk(b"\1\0" * 2400)
    peer.complete()


@pytest.fixture
def server():
    with ScriptedServer(speak) as running:
        yield running


def edit_constant(name, value, folder):
    """Return a copy of the script with another default in it, as a person would edit it."""
    source = SCRIPT.read_text(encoding="utf-8")
    if name in ("text", "voice_id", "api_key"):
        edited = re.sub(rf'(?m)^{name.upper()} = ".*"$', lambda _: f"{name.upper()} = {value!r}", source)
    else:
        edited = re.sub(rf'Setting\("{name}", [^,]+,', lambda _: f'Setting("{name}", {value!r},', source)
    assert edited != source
    copy = folder / "edited.py"
    copy.write_text(edited, encoding="utf-8")
    return copy


def give(run, server, folder, way, name, value):
    """Run the script with one setting given in one way."""
    variable = "SMALLEST_" + name.upper()
    env = {variable: None}
    if way == "flag":
        return run(f"--{name.replace('_', '-')}={value}", server=server, env=env)
    if way == "variable":
        return run(server=server, env={variable: value})
    if way == "dotenv":
        value = f"'{value}'" if " #" in value else value
        (folder / ".env").write_text(f"{variable}={value}\n", encoding="utf-8")
        return run(server=server, env=env)
    return run(server=server, env=env, script=edit_constant(name, value, folder))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "value", "sent"), PAYLOAD)
def test_setting_arrives_in_payload(run, server, tmp_path, way, name, value, sent):
    result = give(run, server, tmp_path, way, name, value)
    assert result.code == 0, result.err
    payload = server.peers[0].payload
    assert payload == {**DEFAULTS, name: sent}
    assert type(payload[name]) is type(sent)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_of_any_script_arrives_unchanged(run, server, tmp_path, way, text):
    assert give(run, server, tmp_path, way, "text", text).code == 0
    assert server.peers[0].payload["text"] == text


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_in_the_c_locale(run, server, text):
    env = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run("--text", text, server=server, env=env).code == 0
    assert run(server=server, env={**env, "SMALLEST_TEXT": text}).code == 0
    assert [peer.payload["text"] for peer in server.peers] == [text, text]


@pytest.mark.parametrize("text", TEXTS)
def test_standard_input_is_text(run, server, text):
    assert run("--text", "-", server=server, stdin=text.encode() + b"\n").code == 0
    assert run("--text", "-", server=server, stdin=b"\xef\xbb\xbf" + text.encode()).code == 0
    assert [peer.payload["text"] for peer in server.peers] == [text, text]


def test_key_arrives_in_the_handshake_from_every_way_in(run, server, tmp_path):
    (tmp_path / ".env").write_text(f"SMALLEST_API_KEY = '{KEY}'  # mine\n")
    script = edit_constant("api_key", KEY, tmp_path)
    assert run(server=server, env={"SMALLEST_API_KEY": f"  {KEY} "}).code == 0
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
        ("SMALLEST_TEXT=It's five o'clock", "It's five o'clock"),
        ("SMALLEST_TEXT = spaced out  ", "spaced out"),
        ("export SMALLEST_TEXT=exported", "exported"),
        ("SMALLEST_TEXT=\"double 'quoted'\"  # comment", "double 'quoted'"),
        ("SMALLEST_TEXT='single # no comment'", "single # no comment"),
        ("SMALLEST_TEXT=' kept blanks '", " kept blanks "),
        ("SMALLEST_TEXT=a comment # is cut", "a comment"),
        ("SMALLEST_TEXT=C#", "C#"),
        ("SMALLEST_TEXT=a=b", "a=b"),
        ("SMALLEST_TEXT='It's quoted'", "It's quoted"),
        ("# SMALLEST_TEXT=no\n\n  \nSMALLEST_TEXT=yes\nnot a line", "yes"),
        ("SMALLEST_TEXT=windows\r\nSMALLEST_SPEED=1\r\n", "windows"),
        ("\ufeffSMALLEST_TEXT=marked", "marked"),
        ("SMALLEST_TEXT= # only a comment\nSMALLEST_TEXT=last", "last"),
    ],
)
def test_dotenv(run, server, tmp_path, line, text):
    (tmp_path / ".env").write_bytes(line.encode())
    assert run(server=server, env={"SMALLEST_TEXT": None}).code == 0
    assert server.peers[0].payload["text"] == text


def test_folder_named_dotenv_is_passed_over(run, server, tmp_path):
    (tmp_path / ".env").mkdir()
    assert run(server=server).code == 0


def test_placeholders_of_dotenv_example_are_not_set(run, server, tmp_path):
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    result = run(env=dict.fromkeys(["SMALLEST_TEXT", "SMALLEST_VOICE_ID", "SMALLEST_API_KEY"]))
    assert result.code == 2
    missing = [line.split()[0].rstrip(":") for line in result.lines]
    assert missing == ["SMALLEST_API_KEY", "SMALLEST_TEXT", "SMALLEST_VOICE_ID"]
    assert run(server=server).code == 0
    assert server.peers[0].payload == DEFAULTS


@pytest.mark.parametrize("model", ["lightning_v3.1", "lightning_v3.1_pro", "lightning-v4"])
def test_other_models_have_other_fields(run, server, model):
    assert run("--model", model, server=server).code == 0
    fields = {name: DEFAULTS[name] for name in ("text", "voice_id", "sample_rate", "speed", "language")}
    assert server.peers[0].payload == {**fields, "model": model}


# --- Wrong values -----------------------------------------------------------------

WRONG = [
    ("api_key", ["sk one", "sk_ä", "sk_\r\nX-Evil: 1", "sk_\tx", "Bearer sk_1", " \t "]),
    ("text", ["  ", "\n\t"]),
    ("voice_id", [" "]),
    ("sample_rate", ["7999", "48001", "24000.5", "x", "nan", "inf", "1e400", "-1"]),
    ("speed", ["0.09", "5.01", "fast", "nan", "inf", "-inf", "1,5"]),
    ("language", [" "]),
    ("consistency", ["-0.1", "1.1", "nan"]),
    ("similarity", ["-0.1", "1.1", "inf"]),
    ("enhancement", ["-0.1", "2.1", "none"]),
    ("model", [" "]),
    (
        "ws_url",
        [
            "http://127.0.0.1/",
            "127.0.0.1",
            "ws://",
            "ws://8.8.8.8/",
            "ws://[::ffff:8.8.8.8]/",
            "ws://127.0.0.1:99999/",
            "ws://127.0.0.1/ x",
            "ws://127.0.0.1/\r\nX-Evil: 1",
            "wss://[/",
            "wss://ä.example/",
        ],
    ),
    ("output", ["no/such/folder.wav", "."]),
    ("timeout", ["0", "-1", "nan", "inf", "soon"]),
]


def wrong_values():
    for name, values in WRONG:
        for value in values:
            yield name, value, "variable"
            if name != "api_key":  # the key has no flag
                yield name, value, "flag"


@pytest.mark.parametrize(("name", "value", "way"), list(wrong_values()))
def test_wrong_value(run, server, tmp_path, name, value, way):
    (tmp_path / "output.wav").write_bytes(b"old")
    result = give(run, server, tmp_path, way, name, value)
    assert result.code == 2
    (line,) = result.lines
    assert line.startswith("SMALLEST_" + name.upper()) and "allowed: " in line
    assert name == "api_key" or f"--{name.replace('_', '-')}" in line
    assert name != "api_key" or value.strip() not in line or not value.strip()
    assert line.isascii() or value in ("sk_ä", "wss://ä.example/")
    assert server.connections == 0
    assert (tmp_path / "output.wav").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_all_problems_at_once(run):
    result = run("--speed", "9", "--timeout", "0", env={"SMALLEST_API_KEY": None, "SMALLEST_TEXT": ""})
    assert result.code == 2
    variables = [line.split()[0].rstrip(":") for line in result.lines]
    assert variables == ["SMALLEST_API_KEY", "SMALLEST_TEXT", "SMALLEST_SPEED", "SMALLEST_TIMEOUT"]


def test_placeholder_as_a_flag_is_missing(run):
    source = SCRIPT.read_text(encoding="utf-8")
    (placeholder,) = re.findall(r'(?m)^VOICE_ID = "(.*)"$', source)
    result = run("--voice-id", placeholder, env={"SMALLEST_VOICE_ID": None})
    assert result.code == 2 and result.lines[0].startswith("SMALLEST_VOICE_ID or --voice-id: missing")


def test_key_on_the_command_line_is_not_repeated(run):
    for arguments in (["--api-key", KEY], [f"--api-key={KEY}"], [KEY], ["-k" + KEY]):
        result = run(*arguments)
        assert result.code == 2 and "SMALLEST_API_KEY" in result.err


def test_key_in_another_setting_is_not_repeated(run):
    assert run("--speed", KEY).code == 2


def test_text_that_is_not_utf8(run, server, tmp_path):
    assert run("--text", "-", server=server, stdin=b"caf\xe9").code == 2
    assert run("--text", b"caf\xe9", server=server).code == 2
    (tmp_path / ".env").write_bytes(b"SMALLEST_TEXT=caf\xe9")
    assert run(server=server).code == 2
    assert server.connections == 0


def test_blank_standard_input(run, server):
    assert run("--text", "-", server=server, stdin=b" \n").code == 2
    assert server.connections == 0


@pytest.mark.skipif(os.name == "nt", reason="closes a stream as a POSIX shell does")
def test_closed_standard_input(run, server, tmp_path):
    env = {**clean_environment(), "SMALLEST_API_KEY": KEY, "SMALLEST_VOICE_ID": "ryan", "SMALLEST_WS_URL": server.url}
    process = start("--text", "-", env=env, cwd=tmp_path, preexec_fn=lambda: os.close(0))
    assert finish(process).code == 2


def test_ws_is_for_private_hosts_by_name_too(run, server):
    assert run("--ws-url", f"ws://localhost:{server.port}/").code == 0


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "https_proxy"])
def test_ws_never_goes_through_a_proxy(run, server, variable):
    with ScriptedServer(speak) as proxy:
        assert run(server=server, env={variable: f"http://127.0.0.1:{proxy.port}"}).code == 0
        assert proxy.connections == 0


def test_help_names_every_setting(run):
    result = run("--help", env={"PYTHONIOENCODING": "ascii"})
    assert result.code == 0 and not result.err
    shown = result.out.decode("ascii")
    for name in ["API_KEY", *(name.upper() for name in DEFAULTS), "MODEL", "WS_URL", "OUTPUT", "TIMEOUT"]:
        assert "SMALLEST_" + name in shown


def test_help_shows_an_edited_default_on_any_console(run, tmp_path):
    script = edit_constant("text", "Grüße 100%", tmp_path)
    result = run("--help", script=script, env={"PYTHONIOENCODING": "ascii"})
    assert result.code == 0 and rb"Gr\xfc\xdfe 100%" in result.out


def test_missing_library(run, server, tmp_path):
    (tmp_path / "path").mkdir()
    unrelated = tmp_path / "path" / "websocket.py"
    for source in ("", "raise ImportError", "print 'Python 2'"):
        unrelated.write_text(source)
        result = run(server=server, env={"PYTHONPATH": str(unrelated.parent)})
        assert result.code == 1 and "pip install websocket-client" in result.lines[0] and len(result.lines) == 1
    assert server.connections == 0


def test_three_edited_placeholders_are_enough(run, server, tmp_path):
    source = SCRIPT.read_text(encoding="utf-8")
    for placeholder, value in ("<TEXT>", "Hello."), ("<VOICE>", "ryan"), ("<AUTH TOKEN>", KEY):
        assert source.count(placeholder) == 1
        source = source.replace(placeholder, value)
    script = tmp_path / "mine.py"
    script.write_text(source, encoding="utf-8")
    env = dict.fromkeys(["SMALLEST_TEXT", "SMALLEST_VOICE_ID", "SMALLEST_API_KEY"])
    assert run(server=server, env=env, script=script).code == 0
    assert server.peers[0].payload == DEFAULTS


def test_importing_does_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import ws_streaming_api"
    assert finish(start(env=clean_environment(PYTHONDONTWRITEBYTECODE="1"), cwd=tmp_path, script="-c" + code)).err == ""
    assert not list(tmp_path.iterdir())


def test_unknown_host_is_no_wrong_setting(run):
    result = run("--ws-url", "ws://no-such-host.invalid:1234/")
    assert result.code == 1 and "no-such-host.invalid:1234" in result.err
