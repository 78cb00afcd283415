"""The path of a config: file, overrides, frozen dataclass, JSON and back."""

import dataclasses
import pathlib
import subprocess
import sys
import types
import typing
from typing import Any

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from maxagent.config import (
  Config,
  Data,
  Mesh,
  Model,
  Objective,
  Optimizer,
  Source,
  Training,
  freeze,
  from_json,
  load,
  thaw,
  to_json,
)
from maxagent.config.bridge import differing_fields
from maxagent.errors import ConfigError

SOURCES = (Source(name="web", path="w", share=0.6), Source(name="kv", path="k", share=0.4), Source(name="files", path="f"))
FULL = Config(
  name="full",
  model=Model(prefix=("global",), kv_heads=1),
  mesh=Mesh(data=2, tensor=4),
  data=Data(tokenizer="t.model", sources=SOURCES),
  objective=Objective(overrides=(("obs", 0.3), ("call.err", 0.0))),
  optimizer=Optimizer(clip_norm=None),
  training=Training(init_from="runs/a"),
)
FILE = """
from maxagent.config import Config, Data, Source

def get_config(arg: str = "plain") -> Config:
  return Config(name=arg, data=Data(sources=(Source(name="web", path="w", share=2), Source(name="kv", path="k"))))
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> str:
  path = tmp_path / "tiny.py"
  path.write_text(FILE)
  return str(path)


def written(tmp_path: pathlib.Path, text: str) -> list[str]:
  path = tmp_path / "odd.py"
  path.write_text(text)
  return [f"--config={path}"]


@pytest.mark.parametrize("config", [Config(), FULL])
def test_thaw_then_freeze_and_json_give_an_equal_config_with_an_equal_hash(config: Config) -> None:
  for copy in (freeze(thaw(config)), from_json(to_json(config))):
    assert copy == config
    assert hash(copy) == hash(config)
    assert to_json(copy) == to_json(config)


_VALUES: dict[Any, st.SearchStrategy[Any]] = {
  int: st.integers(1, 10**9),
  float: st.floats(0.001, 0.9),
  bool: st.booleans(),
}


@given(st.data())
def test_every_number_and_switch_survives_thaw_and_json(data: st.DataObject) -> None:
  parts = {}
  for name, hint in typing.get_type_hints(Config).items():
    if dataclasses.is_dataclass(hint) and name in ("optimizer", "evaluation", "checkpoint"):
      kinds = typing.get_type_hints(hint)
      parts[name] = typing.cast(Any, hint)(**{key: data.draw(_VALUES[kind]) for key, kind in kinds.items() if kind in _VALUES})
  config = Config(**parts)
  assert freeze(thaw(config)) == from_json(to_json(config)) == config


def test_the_order_in_which_sources_are_written_changes_nothing() -> None:
  other = dataclasses.replace(FULL, data=dataclasses.replace(FULL.data, sources=SOURCES[::-1]))
  assert other == FULL
  assert [source.name for source in freeze(thaw(other)).data.sources] == ["files", "kv", "web"]


def test_a_whole_number_in_a_float_field_is_the_same_config() -> None:
  whole, real = Config(optimizer=Optimizer(learning_rate=1)), Config(optimizer=Optimizer(learning_rate=1.0))
  assert to_json(whole) == to_json(real)
  assert differing_fields(whole, real) == []


def test_equal_configs_give_equal_text_in_another_process() -> None:
  code = "from maxagent.config import Config, to_json; print(to_json(Config(seed=3)), end='')"
  root = pathlib.Path(__file__).parents[2]
  said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root).stdout
  assert said == to_json(Config(seed=3))


def test_a_thawed_config_is_locked_typed_and_keeps_tuples() -> None:
  thawed = thaw(FULL)
  assert thawed.is_locked and thawed.data.sources.web.is_locked
  assert thawed.model.pattern == ("local", "local", "local", "global")
  assert thawed.objective.overrides == (("obs", 0.3), ("call.err", 0.0))
  assert thaw(Config()).mesh.data is None
  with pytest.raises(AttributeError):
    thawed.training.stpes = 3
  with pytest.raises(TypeError):
    thawed.training.steps = "many"


def test_freeze_names_the_nearest_key_and_the_field_given_and_expected() -> None:
  thawed = thaw(FULL)
  with thawed.unlocked():
    thawed.training.stpes = 3
  with pytest.raises(ConfigError, match=r"'training\.stpes' does not exist. Did you mean 'training\.steps'"):
    freeze(thawed)
  thawed = thaw(FULL).copy_and_resolve_references()
  with thawed.ignore_type():
    thawed.training.steps = "many"
  with pytest.raises(ConfigError, match=r"training\.steps is 'many'; expected a whole number"):
    freeze(thawed)


@pytest.mark.parametrize(
  ("text", "named"),
  [
    ("{", "not JSON"),
    ("[]", "config is"),
    ('{"training": 3}', "training is 3; expected a section"),
    ('{"training": {"steps": true}}', "training.steps is True"),
    ('{"training": {"steps": 1.0}}', "training.steps is 1.0"),
    ('{"model": {"qk_norm": 1}}', "model.qk_norm is 1"),
    ('{"model": {"pattern": "local"}}', "model.pattern is 'local'"),
    ('{"model": {"pattern": ["local", 3]}}', r"model.pattern\[1\] is 3"),
    ('{"objective": {"overrides": [["obs"]]}}', r"overrides\[0\] is \['obs'\]"),
    ('{"optimizer": {"clip_norm": "x"}}', "clip_norm is 'x'; expected a number or None"),
    ('{"data": {"sources": [{"name": "web"}]}}', "lacks path"),
    ('{"data": {"sources": {"web": 3}}}', "data.sources.web is 3"),
    ('{"data": {"sources": 3}}', "data.sources is 3"),
    ('{"data": {"sources": [{"name": "a", "path": "", "shaer": 1}]}}', "shaer.*share"),
    ('{"mdoel": {}}', "'mdoel' does not exist. Did you mean 'model'"),
  ],
)
def test_a_stored_config_that_is_wrong_says_where(text: str, named: str) -> None:
  with pytest.raises(ConfigError, match=named):
    from_json(text)


def test_a_stored_config_of_an_older_version_takes_defaults_for_new_fields() -> None:
  assert from_json('{"seed": 3}') == Config(seed=3)


def test_differing_fields_are_named_with_both_values() -> None:
  other = dataclasses.replace(
    FULL,
    seed=1,
    mesh=Mesh(),
    data=dataclasses.replace(FULL.data, sources=(dataclasses.replace(SOURCES[0], share=0.5), SOURCES[1])),
  )
  assert differing_fields(FULL, FULL) == []
  assert differing_fields(FULL, other) == [
    "data.sources.files.max_epochs: None != absent",
    "data.sources.files.path: 'f' != absent",
    "data.sources.files.share: 1.0 != absent",
    "data.sources.web.share: 0.6 != 0.5",
    "mesh.data: 2 != None",
    "mesh.tensor: 4 != 1",
    "seed: 0 != 1",
  ]


def test_a_file_alone_gives_its_config_and_its_argument_reaches_it(file: str) -> None:
  assert load([f"--config={file}"]).name == "plain"
  assert load([f"--config={file}:other"]).name == "other"
  assert load(["--config", file, "--config.seed", "3"]).seed == 3


def test_overrides_reach_every_kind_of_field(file: str) -> None:
  config = load(
    [
      f"--config={file}",
      "--config.data.sources.web.share=.3",
      "--config.training.steps=500",
      "--config.model.qk_norm=false",
      "--config.optimizer.learning_rate=1",
      "--config.optimizer.clip_norm=None",
      "--config.mesh.data=2",
      "--config.training.init_from=runs/a=b",
      "--config.evaluation.families=('kv', 'files')",
      "--config.model.suffix=local",
      "--config.model.suffix=global",
      "--config.objective.overrides=(('call.err', 0),)",
      "--config.name=x",
    ]
  )
  assert {source.name: source.share for source in config.data.sources} == {"kv": 1.0, "web": 0.3}
  assert (config.training.steps, config.training.init_from, config.name) == (500, "runs/a=b", "x")
  assert (config.model.qk_norm, config.model.suffix) == (False, ("local", "global"))
  assert (config.optimizer.learning_rate, config.optimizer.clip_norm, config.mesh.data) == (1.0, None, 2)
  assert (config.evaluation.families, config.objective.overrides) == (("kv", "files"), (("call.err", 0.0),))


def test_a_number_that_is_off_in_the_file_can_be_turned_on(tmp_path: pathlib.Path) -> None:
  text = "from maxagent.config import *\ndef get_config(): return Config(optimizer=Optimizer(clip_norm=None))"
  assert load([*written(tmp_path, text), "--config.optimizer.clip_norm=2"]).optimizer.clip_norm == 2.0


def test_the_last_of_two_overrides_counts_and_their_place_does_not(file: str) -> None:
  assert load(["--config.seed=3", f"--config={file}", "--config.seed=4"]).seed == 4


def test_loading_leaves_the_programs_own_flags_alone(file: str) -> None:
  before = set(flags.FLAGS)
  load([f"--config={file}", "--config.seed=3"])
  assert set(flags.FLAGS) == before


@pytest.mark.parametrize("form", ["thaw(Config(seed=3))", "thaw(Config(seed=3)).copy_and_resolve_references()"])
def test_a_file_may_return_a_config_dict(form: str, tmp_path: pathlib.Path) -> None:
  text = f"from maxagent.config import *\ndef get_config(): return {form}"
  assert load([*written(tmp_path, text), "--config.name=y"]) == Config(seed=3, name="y")


@pytest.mark.parametrize(
  ("item", "message"),
  [
    ("--config.training.stpes=3", r"'training\.stpes' does not exist. Did you mean 'training\.steps'"),
    ("--config.trainig.steps=3", r"'trainig' does not exist. Did you mean 'training'"),
    ("--config.data.sources.wbe.share=3", r"Did you mean 'data\.sources\.web'"),
    ("--config.data.sources.web.shre=3", r"Did you mean 'data\.sources\.web\.share'"),
    ("--config.zzz=3", "Expected one of checkpoint, data"),
    ("--config.training=3", "is a section; set one of its fields: hang_seconds"),
    ("--config.training.steps.x=3", r"goes below 'training\.steps'"),
    ("--config.training.steps=many", r"training\.steps is 'many'; expected a whole number"),
    ("--config.training.steps=1.5", r"training\.steps is '1\.5'; expected a whole number"),
    ("--config.data.sources.web.share=much", r"data\.sources\.web\.share is 'much'; expected a number"),
    ("--config.model.qk_norm=maybe", r"model\.qk_norm is 'maybe'; expected true or false"),
    ("--config.optimizer.clip_norm=none", r"clip_norm is 'none'; expected a number or None"),
    ("--config.mesh.data=1.5", r"mesh\.data is 1\.5; expected a whole number or None"),
    ("--config.evaluation.families=3", r"evaluation\.families\[0\] is 3; expected a text"),
    ("--config.objective.overrides=('obs', 0)", r"overrides\[0\] is 'obs'; expected a tuple of a text and a number"),
    ("--config.training.steps=-1", r"training\.steps is -1; expected a number above 0"),
    ("--config.model.kv_heads=3", r"model\.kv_heads is 3; expected a divisor of model\.heads = 4"),
    ("--config.data.sources.web.share=0", "remove a source to turn it off"),
    ("--config.training.steps", "expected --config=configs/NAME.py or --config.key=value"),
    ("--steps=3", "'--steps=3'"),
    ("extra", "'extra'"),
  ],
)
def test_a_wrong_override_says_what_was_given_and_what_is_expected(file: str, item: str, message: str) -> None:
  with pytest.raises(ConfigError, match=message):
    load([f"--config={file}", item])


def test_no_config_two_configs_and_a_missing_file_are_told_apart(file: str) -> None:
  with pytest.raises(ConfigError, match="no --config is given"):
    load([])
  with pytest.raises(ConfigError, match="no --config is given"):
    load(["--config.seed=3"])
  with pytest.raises(ConfigError, match="2 times"):
    load([f"--config={file}", f"--config={file}"])
  with pytest.raises(ConfigError, match=r"tinny\.py' is no file.*Did you mean .*tiny\.py"):
    load([f"--config={file.replace('tiny', 'tinny')}"])
  with pytest.raises(ConfigError, match=r"/nowhere/x\.py' is no file"):
    load(["--config=/nowhere/x.py:arg"])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("def get_config(): return 3", "a config is a int"),
    ("def get_config(): pass", "a config is a NoneType"),
    ("x = 1", "KeyError: 'get_config'"),
    ("def get_config(:", "SyntaxError"),
    ("import nothing_of_this_name", "nothing_of_this_name"),
    ("open('/nowhere/file')", "/nowhere/file"),
    ("def get_config(arg): return None", "missing 1 required positional argument: 'arg'"),
    ("def get_config(): raise ValueError('of mine')", "ValueError: of mine"),
    (
      "from maxagent.config import *\ndef get_config(): return Config(model=Model(hiden_size=3))",
      "Did you mean 'Model.hidden_size'",
    ),
    ("from maxagent.config import *\ndef get_config(): return Config(model=Model(kv_heads=3))", "model.kv_heads is 3"),
    ("from maxagent.config import *\ndef get_config(): return Config(seed='x')", "seed is 'x'; expected a whole number"),
    (
      "from maxagent.config import *\ndef get_config(): return Config(data=Data(sources=(Source(name='a.b', path=''),)))",
      "'a.b'; expected a name without a dot",
    ),
  ],
)
def test_a_file_that_fails_is_named_with_the_cause(text: str, message: str, tmp_path: pathlib.Path) -> None:
  with pytest.raises(ConfigError, match=message):
    load(written(tmp_path, text))


def test_a_second_file_sees_nothing_of_the_first(file: str, tmp_path: pathlib.Path) -> None:
  load([f"--config={file}"])
  with pytest.raises(ConfigError, match="get_config"):
    load(written(tmp_path, "x = 1"))


def test_there_are_at_most_150_fields_and_each_has_a_type_that_flags_can_set() -> None:
  def leaves(part: Any) -> list[Any]:
    kinds = typing.get_type_hints(part).values()
    return [leaf for kind in kinds for leaf in (leaves(kind) if dataclasses.is_dataclass(kind) else [kind])]

  kinds = leaves(Config)
  assert len(kinds) + len(dataclasses.fields(Source)) <= 150
  for kind in kinds:
    assert kind in (int, float, bool, str) or isinstance(kind, types.UnionType) or typing.get_origin(kind) is tuple
