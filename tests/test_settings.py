"""Configuration files and configurations: what is wrong is said in one line that names the field, without torch."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdssm import cli
from gdssm.config import ConfigError
from gdssm.config_files import read_config_file
from gdssm.settings import ModelConfig, TrainConfig, evaluation_steps
from gdssm.tasks import LinearRegression

HEAD = "from gdssm import LinearRegression, ModelConfig, TrainConfig\n"


def read(tmp_path: Path, text: str | bytes) -> TrainConfig:
    path = tmp_path / "c.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config_file(path)


def test_a_configuration_file_is_a_program(tmp_path: Path) -> None:
    text = HEAD + "sizes = [3, 4]\nconfig = TrainConfig(task=LinearRegression(*sizes), lr=1, seeds=list(range(3)))\n"
    config = read(tmp_path, text)
    assert config == TrainConfig(task=LinearRegression(3, 4), lr=1.0, seeds=(0, 1, 2))
    assert isinstance(config.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.py: config is missing; a line `config = TrainConfig(..)` or `config = TextConfig(..)` is needed"),
        ("config = 3", "c.py: config is of type int"),
        (HEAD + "config = TrainConfig", "config is of type type"),
        ("x = (", "c.py, line 1: is no Python: '(' was never closed"),
        (b"\x00", "is no Python: source code string cannot contain null bytes"),
        (b"\xff\xfe", "is no Python: "),
        (HEAD + "\nx = 1 / 0\n", "c.py, line 3: ZeroDivisionError: division by zero"),
        (HEAD + "import nowhere", "c.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
        (HEAD + "raise SystemExit('stop')", "c.py, line 2: SystemExit: stop"),
        (HEAD + "raise ValueError('two\\nlines')", "line 2: ValueError: two lines"),
        (
            HEAD + "config = TrainConfig(stepps=3)",
            "unexpected keyword argument 'stepps' (did you mean 'steps'?); allowed: task, model",
        ),
        (
            "import gdssm\nconfig = gdssm.TextConfig(model=gdssm.DeepConfig(vocab_size=1, n_layer=3))",
            "DeepConfig.__init__() got an unexpected keyword argument 'n_layer' (did you mean 'n_layers'?)",
        ),
        (HEAD + "config = TrainConfig(steps=0)", "c.py, line 2: steps must be an integer >= 1, got 0"),
        (HEAD + "config = TrainConfig(steps='9')", "steps must be of type int, got '9'"),
        (HEAD + "config = TrainConfig(seeds=3)", "seeds must be of type tuple[int, ...], got 3"),
        (HEAD + "config = TrainConfig(seeds=())", "seeds must hold at least one seed and none twice, got ()"),
        (HEAD + "config = TrainConfig(seeds=(1, 1))", "none twice, got (1, 1)"),
        (HEAD + "config = TrainConfig(lr=float('nan'))", "lr must be a finite number > 0, got nan"),
        (HEAD + "config = TrainConfig(beta2=1.0)", "beta2 must be a finite number >= 0 and < 1, got 1.0"),
        (HEAD + "config = TrainConfig(dtype='float23')", "dtype is 'float23' (did you mean 'float32'?); allowed: float32, float64"),
        (HEAD + "config = TrainConfig(device='tpu')", "device is 'tpu' (did you mean 'cpu'?); allowed: cpu, cuda"),
        (HEAD + "config = TrainConfig(task=5)", "task must be a mapping with the fields of LinearRegression, got 5"),
        (HEAD + "config = TrainConfig(model=ModelConfig(decay='ful'))", "decay is 'ful' (did you mean 'full'?)"),
        (HEAD + "config = TrainConfig(model=ModelConfig(steps=2, n_heads=3))", "steps is 2: n_heads must be 1"),
        (HEAD + "config = TrainConfig(model=ModelConfig(steps=2, decay='full'))", "decay is 'full'; allowed: head, none"),
        (HEAD + "config = TrainConfig(model=ModelConfig(key_map=1))", "key_map must be of type bool, got 1"),
        (HEAD + "config = TrainConfig(task=LinearRegression(d_x=2, spectrum=(1,)))", "spectrum has 1 entries, d_x is 2"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("name", "why"), [("missing.py", "No such file or directory"), (".", "Is a directory")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"CONFIG is '.*', which cannot be read: {why}"):
        read_config_file(tmp_path / name)


WRONG = st.sampled_from(["None", "'many'", "float('nan')", "-1.5", "[[]]", "10**5000", "'a\\nb'", "object()", "b''", "1 +"])


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cls=st.sampled_from([TrainConfig, ModelConfig, LinearRegression]), data=st.data(), value=WRONG)
def test_any_wrong_field_ends_the_command_in_one_line(
    cls: type, data: st.DataObject, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line: exit code 2, the field and the line are named, and nothing is written."""
    name = data.draw(st.sampled_from([field.name for field in fields(cls)]))
    written = data.draw(st.sampled_from([name, name + "s", name[1:]]))
    call = f"{cls.__name__}({written}={value})"
    inner = {TrainConfig: call, ModelConfig: f"TrainConfig(model={call})", LinearRegression: f"TrainConfig(task={call})"}[cls]
    (tmp_path / "c.py").write_text(f"{HEAD}config = {inner}\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(tmp_path / "c.py"), "--out", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"gdssm: {tmp_path / 'c.py'}, line 2: ")
    assert value == "1 +" or written in err
    assert [p.name for p in tmp_path.iterdir()] == ["c.py"]


def test_settings_do_not_need_torch(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(HEAD + "config = TrainConfig(model=ModelConfig(decay='full'))\n")
    program = (
        "import sys, pathlib; from gdssm.config_files import read_config_file\n"
        "read_config_file(pathlib.Path('c.py')); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(("steps", "points"), [(1, 1), (1, 20), (7, 20), (4000, 20), (100, 3)])
def test_evaluations_start_at_zero_end_at_the_last_step_and_never_repeat(steps: int, points: int) -> None:
    at = evaluation_steps(steps, points)
    assert at[0] == 0
    assert at[-1] == steps
    assert list(at) == sorted(set(at))
    assert len(at) <= points + 1


def test_fields_of_a_model_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="steps must be an integer >= 1, got 0"):
        ModelConfig(steps=0)
