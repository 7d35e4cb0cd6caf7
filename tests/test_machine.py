import subprocess
import sys

import torch

from mtrlib import machine


def test_exact_keeps_cudnn_and_forbids_tf32():
    with machine.exact():
        assert torch.backends.cudnn.enabled
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32


def test_relative_paths_start_at_the_repository_wherever_one_is(tmp_path):
    code = "from mtrlib import machine; print(machine.root())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(machine.root())
    assert (machine.root() / "mtrlib" / "machine.py").exists()


def test_where_a_result_comes_from_is_said():
    said = machine.describe()
    assert said["torch"] == torch.__version__
    assert said["commit"] != ""
    assert machine.precision() in ("float32", "bfloat16")
