"""The command `mtrlib`: its version, its help, and what completes it in a shell."""

import re
import subprocess
import sys

import pytest

import mtrlib
from mtrlib.__main__ import COMMANDS, main


def test_the_version_is_that_of_the_package_and_loads_no_pytorch():
    code = "import sys; sys.argv = ['mtrlib', '--version']; from mtrlib.__main__ import main\n"
    code += "try: main()\nfinally: sys.exit('torch is loaded' if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == (f"mtrlib {mtrlib.__version__}\n", "", 0)


def test_help_names_the_command_and_all_that_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: mtrlib ")
    assert re.findall(r"^    ([\w-]+)\b", shown, re.MULTILINE) == list(COMMANDS)


def test_bash_completes_commands_options_and_folders(capfd, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = capfd.readouterr().out
    (tmp_path / "params").mkdir()
    (tmp_path / "paper.txt").touch()

    def completed(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        asked = f"COMP_WORDS=(mtrlib {quoted}); COMP_CWORD={len(words)}; _shtab_mtrlib; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, cwd=tmp_path)
        return set(done.stdout.split())

    assert completed("re") == {"release", "release-models", "report"}
    assert completed("plan", "pa") == {"params"}, "folders, no files"
    assert completed("evaluate", "--no") == {"--notebooks"}
    assert completed("completion", "z") == {"zsh"}
