import json
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable

import pytest

from maxagent.cli.main import main

Maxagent = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def trained(maxagent: Maxagent, smoke_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A finished smoke run that was also measured in its environments."""
  workdir = tmp_path_factory.mktemp("trained")
  played = ["--config.evaluation.families=('kv',)", "--config.evaluation.episodes=4", "--config.evaluation.slots=8"]
  done = maxagent("train", f"--workdir={workdir}", *smoke_arguments, *played)
  assert re.search(r"report: \S+report\.html   agent: success \d+\.\d%, recovery \d+\.\d%", done.stdout)
  return workdir


COMMANDS = ("train", "evaluate", "play", "report", "jumps", "data")
VERBS = ("build", "generate", "tokenizer", "inspect")


@pytest.mark.parametrize("command", ["", *COMMANDS, *(f"data {verb}" for verb in VERBS)])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
  with pytest.raises(SystemExit) as ended:
    main([*command.split(), "--help"])
  assert ended.value.code == 0
  assert len(capsys.readouterr().out.splitlines()) > 5


def test_a_run_leaves_records_checkpoints_episodes_and_a_report(trained: pathlib.Path):
  records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
  assert [record["step"] for record in records] == list(range(1, 21))
  assert {"eval/success", "eval/recovery", "eval/kv/success_low", "eval/loss/source/web"} <= records[-1].keys()
  assert len((trained / "episodes.jsonl").read_text().splitlines()) == 8
  assert (trained / "checkpoints" / "20").is_dir()
  assert "<html" in (trained / "report.html").read_text()
  assert list((trained / "tensorboard").iterdir())


def test_evaluate_gives_the_numbers_of_the_end_of_training(trained: pathlib.Path, maxagent: Maxagent):
  last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
  again = json.loads(maxagent("evaluate", f"--workdir={trained}", "--json").stdout.splitlines()[-1])
  assert again["step"] == 20
  for name in ("eval/loss/source/web", "eval/loss/source/trace", "eval/success", "eval/recovery"):
    assert again[name] == pytest.approx(last[name], rel=1e-6)


def test_play_prints_the_episode_turn_by_turn_and_says_how_it_ended(trained: pathlib.Path, maxagent: Maxagent):
  shown = maxagent("play", f"--workdir={trained}", "--family=kv", "--seed=3", "--fault", "--delay=0").stdout
  assert "tools" in shown and "goal" in shown
  assert re.search(r"(success|failure) after \d+ actions \(.+\), step 20", shown)


def test_inspect_shows_rows_with_roles_and_edges(maxagent: Maxagent, smoke_arguments: list[str]):
  shown = maxagent("data", "inspect", "--step=1", "--rows=8", *smoke_arguments).stdout
  assert len(re.findall(r"─ Row \d ─", shown)) == 8
  assert "<|bos|>" in shown and "│ trace · segment" in shown and "│ web · segment" in shown


def test_inspect_finds_the_data_of_a_run(trained: pathlib.Path, maxagent: Maxagent):
  shown = maxagent("data", "inspect", f"--workdir={trained}", "--step=2", "--rows=1").stdout
  assert "The batch of step 2, 1 of its 8 rows" in shown


def test_a_finished_run_started_again_says_what_it_had_reached(
  trained: pathlib.Path, maxagent: Maxagent, smoke_arguments: list[str]
):
  before = (trained / "metrics.jsonl").read_bytes()
  played = ["--config.evaluation.families=('kv',)", "--config.evaluation.episodes=4", "--config.evaluation.slots=8"]
  assert re.search(r"agent: success \d+\.\d%", maxagent("train", f"--workdir={trained}", *smoke_arguments, *played).stdout)
  assert (trained / "metrics.jsonl").read_bytes() == before


def test_a_run_is_looked_at_on_a_number_of_devices_that_its_mesh_does_not_fit(
  trained: pathlib.Path, maxagent: Maxagent, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
  done = maxagent("evaluate", f"--workdir={trained}", "--episodes=1", "--json")
  assert "does not fit 3 devices" in done.stderr and json.loads(done.stdout)["step"] == 20


def test_the_report_can_be_written_again(trained: pathlib.Path, maxagent: Maxagent):
  (trained / "report.html").unlink()
  assert maxagent("report", f"--workdir={trained}").stdout.strip() == str(trained / "report.html")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["train", "--workdir=W", "--config=configs/smok.py"], "configs/smoke.py"),
    (["train", "--workdir=W", "--config=configs/smoke.py", "--config.trainning.steps=3"], "training"),
    (["train", "--workdir=W", "--config=configs/smoke.py", "--stepz=3"], "unknown argument '--stepz=3'"),
    (["train", "--workdir=W", "--config=configs/smoke.py:ABSENT"], "ABSENT/tokenizer.model"),
    (["train", "--workdir=W", "--config=SMOKE", "--config.mesh.fsdp=3"], "fsdp"),
    (["train", "--workdir=W", "--config=SMOKE", "--config.model.vocab_size=1024"], "has 512 tokens"),
    (["train", "--workdir=W", "--config=SMOKE", "--config.data.sources.web.path=nowhere"], "nowhere"),
    (["train", "--workdir=W", "--config=SMOKE", "--config.model.attention=flash"], "xla"),
    (["train", "--workdir=W", "--config=SMOKE", "--config.evaluation.families=('chess',)"], "files, kv"),
    (
      [
        "train",
        "--workdir=W",
        "--config=SMOKE",
        "--config.evaluation.families=('kv',)",
        "--config.evaluation.context_tokens=8",
      ],
      "context_tokens is 8",
    ),
    (["train", "--workdir=W", "--config=SMOKE", "--config.data.global_batch=4"], "mesh.data x fsdp = 8 x 1 = 8"),
    (["data", "generate", "--episodes=-2", "--output=W"], "1 or more"),
    (["data", "generate", "--episodes=2", "--output="], "path is empty"),
    (["play", "--workdir=W", "--seed=-1"], "-1 is given"),
    (["train", "--workdir=W", "--config=SMOKE", "--config.mesh.expert=2"], "mesh.expert is 2"),
    (["train", "--workdir=gs://bucket/run", "--config=SMOKE"], "mount the bucket"),
    (["train", "--workdir=setup.py", "--config=SMOKE"], "setup.py"),
    (["train", "--workdir=W", "--config=SMOKE", "--config.data.tokenizer=s3://bucket/t.model"], "begins with gs://"),
    (["data", "build", "--kind=web", "--output=gs://bucket/web"], "gcloud storage cp -r"),
    (["evaluate", "--workdir=W"], "holds no run"),
    (["play", "--workdir=W"], "holds no run"),
    (["report", "--workdir=W"], "metrics"),
    (["data", "build", "--kind=web", "--output=W", "ABSENT.txt"], "ABSENT.txt"),
    (["data", "build", "--kind=trace", "--output=W"], "maxagent data generate"),
    (["data", "generate", "--episodes=2", "--output=W", "--families=chess"], "files, kv"),
    (["data", "generate", "--episodes=2", "--output=W", "--failing=2"], "failing is 2.0; expected 0 to 1"),
  ],
)
def test_a_mistake_gets_one_message_with_its_cure_and_no_traceback(
  arguments: list[str], message: str, maxagent: Maxagent, small_data: pathlib.Path, tmp_path: pathlib.Path
):
  words = [word.replace("=W", f"={tmp_path / 'w'}").replace("SMOKE", f"configs/smoke.py:{small_data}") for word in arguments]
  if any("SMOKE" in word for word in arguments) and not any("vocab_size" in word for word in arguments):
    words.append("--config.model.vocab_size=512")
  done = maxagent(*words, code=2)
  assert message in done.stderr
  assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_damaged_shard_is_named_with_its_record_and_quarantine_goes_on(
  small_data: pathlib.Path, maxagent: Maxagent, smoke_arguments: list[str], tmp_path: pathlib.Path
):
  damaged = tmp_path / "damaged"
  shutil.copytree(small_data, damaged)
  (shard,) = (damaged / "trace" / "train").glob("*.array_record")
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 1
  shard.write_bytes(content)
  arguments = [f"--config=configs/smoke.py:{damaged}", *smoke_arguments[1:]]
  workdir = f"--workdir={tmp_path / 'run'}"
  message = maxagent("train", workdir, *arguments, code=2).stderr
  assert shard.name in message and "quarantine" in message
  maxagent("train", workdir, *arguments, "--config.data.on_damage=quarantine")
