"""Help: every verb shows how it is used, and asking for it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ridgeline import __version__

VERBS = ("pull", "doctor", "run", "bench", "eval", "explain", "predict", "learn")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example(ridgeline, verb):
    stdout, _ = ridgeline(verb, "--help")
    assert "Examples:" in stdout
    assert f"ridgeline {verb}" in stdout
    assert "--json" in stdout


def test_the_command_names_every_verb(ridgeline):
    stdout, _ = ridgeline("--help")
    assert all(f"  {verb} " in stdout for verb in VERBS)


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from ridgeline.cli.main import app\n"
        "for verb in sys.argv[1:]:\n"
        "    try: app([verb, '--help'] if verb else ['--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'tokenizers', 'jinja2', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, "", *VERBS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(ridgeline):
    assert ridgeline("--version")[0] == f"ridgeline {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["run", "x", "--bogus"], ["nonsense"], ["run"], ["predict", "x", "--batch", "q"]]
)
def test_unknown_words_end_with_two(ridgeline, arguments):
    _, stderr = ridgeline(*arguments, code=2)
    assert stderr.strip()
